// Sums in an order that no instruction set and no number of threads changes: sixteen lanes over a short block, folded
// in pairs; blocks are added up in float64.
#pragma once

#include <cstdint>

namespace fastadv::cpu {

constexpr int kLanes = 16;
constexpr int64_t kSumBlock = 512;  // at most 32 float32 additions in a row

static inline float fold(const float* lane) {
  float eight[8];
  float four[4];
  for (int i = 0; i < 8; ++i) eight[i] = lane[i] + lane[i + 8];
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

static inline double fold(const double* lane) {
  double eight[8];
  double four[4];
  for (int i = 0; i < 8; ++i) eight[i] = lane[i] + lane[i + 8];
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace fastadv::cpu
