// trajectory_score: a detector's network, from the distances of every layer to a logit.
#pragma once

#include "common/layers.h"

namespace fastadv {

enum DetectorKind : int { kLinear = 0, kPerceptron = 1, kRecurrent = 2 };

constexpr int64_t kScoreRows = 4;      // rows that pass by the same weights together
constexpr int64_t kScoreColumns = 64;  // sums of a row in one task

struct TrajectoryScoreArgs {
  float* values;           // (images, layers, classes): distances, standardised in place
  const float* mean;       // (layers, classes)
  const float* scale;      // (layers, classes)
  const float* first;      // linear, perceptron: (layers, classes, width); recurrent: (classes, width)
  const float* bias;       // (width)
  const float* recurrent;  // (hidden, width) or null
  const float* last;       // (hidden)
  const float* whole;      // (images, 3), rows `row` apart: not finite for an image that is not; null: all are
  float* projected;        // (images, layers, width)
  float* state;            // recurrent: (images, 6, lanes): the gates' sums, the cell, the output
  float* out;              // (images)
  uint8_t* flags;          // (images) or null: whether the score is not below the threshold
  int64_t images;
  int64_t layers;
  int64_t classes;
  int64_t hidden;
  int64_t lanes;  // hidden, filled up with zeros to a multiple of 16
  int64_t width;  // lanes, or four times as many: the gates of a step, in the order i, f, g, o
  int64_t row;
  float last_bias;
  float threshold;
  int kind;
};

// e^x = 2^n e^r with |r| <= ln(2) / 2, where the Taylor polynomial of degree 7 is exact to 5e-9. Written out, so that it
// is the same bits on every instruction set, and vectorised.
static inline float exp_of(float x) {
  x = x > 88.0f ? 88.0f : x;  // a NaN stays one
  x = x < -87.0f ? -87.0f : x;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer, in the low bits
  const float shifted = x * 1.44269504f + kShift;
  const float n = shifted - kShift;
  const float r = (x - n * 0.693145751953125f) - n * 1.42860677e-6f;
  float sum = 1.0f / 5040.0f;
  sum = sum * r + 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  return sum * from_bits((to_bits(shifted) + 127u) << 23);
}

static inline float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }
static inline float tanh_of(float x) { return 1.0f - 2.0f / (1.0f + exp_of(2.0f * x)); }

}  // namespace fastadv
