// momentum_step_: velocity <- mu * velocity + g / ||g||, then a sign or an L2 step. The arithmetic, for C++ and CUDA.
// Compiled without fused multiply-add, so that every backend gives the same bits.
#pragma once

#include <cmath>

#include "common/sign_step.h"

namespace fastadv {

enum Norm : int { kNormL1 = 0, kNormL2 = 1 };
enum Step : int { kStepSign = 0, kStepL2 = 1 };

struct MomentumStepArgs {
  float* x;
  const void* grad;
  const float* origin;
  float* velocity;
  const float* alpha_each;
  const float* eps_each;
  const uint8_t* active;
  int64_t* stats;
  double* partials;  // (2, images, chunks): two regions, since one pass reads the sums of the pass before
  float alpha;
  float eps;
  float mu;
  float lo;
  float hi;
  int grad_type;
  int norm;
  int step;
  int64_t images;
  int64_t size;
  Partition cut;
};

// What one gradient element adds to the norm's sum, in double: the square of a float is exact there.
static FASTADV_HD double norm_term(float value, int norm) {
  const double wide = static_cast<double>(from_bits(to_bits(value) & 0x7fffffffu));
  return norm == kNormL1 ? wide : wide * wide;
}

// Rounded to float once, so that the order of the additions hardly ever shows.
static FASTADV_HD float finish_norm(double sum, int norm) {
  return static_cast<float>(norm == kNormL1 ? sum : sqrt(sum));
}

static FASTADV_HD float next_velocity(float velocity, float grad, bool finite, float mu, float norm) {
  const float term = finite && norm > 0.0f ? grad / norm : 0.0f;
  return mu * velocity + term;
}

static FASTADV_HD float l2_move(float x, float velocity, bool finite, float alpha, float norm) {
  return finite && norm > 0.0f ? x + alpha * (velocity / norm) : x;
}

static FASTADV_HD float l2_project(float x, float origin, float distance, float eps, float lo, float hi) {
  const float inside = distance > eps ? origin + (x - origin) * (eps / distance) : x;
  return clip(inside, lo, hi);
}

}  // namespace fastadv
