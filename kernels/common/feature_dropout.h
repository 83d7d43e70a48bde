// feature_dropout: x * mask, the mask generated from the counter of each element. The arithmetic, for C++ and CUDA.
#pragma once

#include "common/philox.h"

namespace fastadv {

struct FeatureDropoutArgs {
  const void* x;
  void* out;  // laid out like x
  PhiloxKey key;
  uint32_t threshold;  // a draw below it drops its element; below 2^16
  float factor;        // of what is kept
  int type;            // of the elements of x and out
  BatchLayout layout;
};

// Draws of 16 bits: eight from a block, the lower half of a word before the upper one.
constexpr int kDraws = 8;

// Which of the eight elements of a block are kept: bit k for element k.
static FASTADV_HD uint32_t kept_byte(const PhiloxBlock& block, uint32_t threshold) {
  const uint32_t word[] = {block.c0, block.c1, block.c2, block.c3};
  uint32_t kept = 0;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int k = 0; k < 4; ++k) {
    kept |= static_cast<uint32_t>((word[k] & 0xffffu) >= threshold) << 2 * k;
    kept |= static_cast<uint32_t>(word[k] >> 16 >= threshold) << (2 * k + 1);
  }
  return kept;
}

// A select, not a product: what is dropped is +0, also where it was not finite. (Of numbers or of vectors of them.)
template <class Kept, class V>
static FASTADV_HD V keep(Kept kept, V value, V factor) {
  return kept ? value * factor : V{};
}

}  // namespace fastadv
