// The part of an image that one task works on, and the counting of odd gradient elements.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace fastadv::cpu {

struct Span {
  int64_t image;
  int64_t chunk;   // index of the chunk in its image
  int64_t offset;  // of the first element, from the start of the batch
  int64_t length;
};

static inline Span span_of(int64_t task, int64_t size, const Partition& cut) {
  const int64_t image = task / cut.chunks;
  const int64_t chunk = task % cut.chunks;
  const int64_t begin = chunk * cut.chunk;
  const int64_t left = size - begin;
  return {image, chunk, image * size + begin, left < cut.chunk ? left : cut.chunk};
}

// Loops count in 32 bits, which vectorises, over blocks short enough not to overflow.
constexpr int64_t kBlock = 1 << 14;

static inline int64_t block_end(int64_t begin, int64_t length) {
  return length - begin < kBlock ? length : begin + kBlock;
}

struct Counts {
  int64_t bad = 0;
  int64_t zero = 0;

  // Integer addition: the result does not depend on which chunk comes first.
  void add_to(int64_t* stats, int64_t image) const {
    if (stats == nullptr) return;
    if (bad != 0) __atomic_fetch_add(stats + 2 * image, bad, __ATOMIC_RELAXED);
    if (zero != 0) __atomic_fetch_add(stats + 2 * image + 1, zero, __ATOMIC_RELAXED);
  }
};

}  // namespace fastadv::cpu
