// knn_score: the weighted share of the nearest neighbours that carry the predicted label. Sums in float64.
#pragma once

#include "common/types.h"

namespace fastadv {

enum Weighting : int { kUniform = 0, kRank = 1, kInverseSquare = 2 };

struct KnnScoreArgs {
  const float* distances;    // (rows, neighbours), rows distance_stride apart
  const int64_t* labels;     // (rows, neighbours), rows label_stride apart
  const int64_t* predicted;  // (rows,)
  float* out;                // (rows,)
  int64_t rows;
  int64_t neighbours;
  int64_t distance_stride;
  int64_t label_stride;
  int weighting;
};

// `zero`: some neighbour of the row is at distance 0. Then those vote alone and alike, the limit of 1 / d^2.
// The square of no float32 overflows or vanishes in float64.
static FASTADV_HD double neighbour_weight(int weighting, int64_t index, float distance, bool zero) {
  if (weighting == kUniform) return 1.0;
  if (weighting == kRank) return 1.0 / static_cast<double>(index + 1);
  if (zero) return distance == 0.0f ? 1.0 : 0.0;
  const double wide = static_cast<double>(distance);
  return 1.0 / (wide * wide);
}

}  // namespace fastadv
