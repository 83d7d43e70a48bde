// Whether every number of a batch of images is one that a pixel may have.
#pragma once

#include <cstdint>

namespace fastadv {

constexpr int64_t kWithinPart = 1 << 16;  // numbers of a task

struct AllWithinArgs {
  const float* values;
  int64_t size;
  float low;
  float high;
  uint8_t* without;  // of each task: whether a number of its part is out of [low, high], or NaN
};

}  // namespace fastadv
