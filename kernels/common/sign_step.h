// sign_step_: x <- clip(x + alpha * sign(g)) around an origin. The arithmetic, once, for C++ and CUDA.
#pragma once

#include "common/types.h"

namespace fastadv {

// Everything a kernel needs; passed by value. A null alpha_each or eps_each means: the scalar, for every image.
struct SignStepArgs {
  float* x;
  const void* grad;
  const float* origin;
  const float* alpha_each;
  const float* eps_each;
  const uint8_t* active;  // null: every image
  int64_t* stats;         // (images, 2): non-finite, zero; null: not counted
  float alpha;
  float eps;
  float lo;
  float hi;
  int grad_type;
  int64_t images;
  int64_t size;
  Partition cut;
};

// Selects, not min/max: those drop a NaN on some machines and keep it on others.
static FASTADV_HD float clip(float x, float lower, float upper) {
  const float raised = x < lower ? lower : x;
  return raised > upper ? upper : raised;
}

static FASTADV_HD float clip_to_ball(float x, float origin, float eps, float lo, float hi) {
  const float ball_lower = origin - eps;
  const float ball_upper = origin + eps;
  const float lower = ball_lower > lo ? ball_lower : lo;
  const float upper = ball_upper < hi ? ball_upper : hi;
  return clip(x, lower, upper);
}

// alpha * sign_of(direction), which is cheaper to find: the sign of a direction that has one, on alpha.
static FASTADV_HD float signed_step(float direction, float alpha) {
  const float step = from_bits(to_bits(alpha) ^ (to_bits(direction) & 0x80000000u));
  return direction < 0.0f || direction > 0.0f ? step : alpha * 0.0f;
}

// `direction` is the gradient, or the velocity; the caller leaves a pixel alone whose gradient is not finite.
static FASTADV_HD float sign_move(float x, float direction, float origin, float alpha, float eps, float lo, float hi) {
  return clip_to_ball(x + signed_step(direction, alpha), origin, eps, lo, hi);
}

}  // namespace fastadv
