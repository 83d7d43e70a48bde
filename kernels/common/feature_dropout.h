// feature_dropout: x * mask, the mask generated from the counter of each element. The arithmetic, for C++ and CUDA.
#pragma once

#include "common/philox.h"

namespace fastadv {

struct FeatureDropoutArgs {
  const void* x;
  void* out;  // laid out like x
  PhiloxKey key;
  uint32_t threshold;  // a draw below it drops its element; below 2^16. 0: nothing is dropped, and the key not read
  float factor;        // of what is kept
  int type;            // of the elements of x and out
  BatchLayout layout;
};

// Draws of 16 bits, sixteen from a block. With its bytes b[0] .. b[15], the lowest of a word first, draw k has the
// upper byte b[k] and the lower byte b[k ^ 1] ^ b[((k ^ 1) + 4) % 16]. Any two draws of a block are independent: the lower
// byte decides where the upper one is the threshold's, one time in 256.
constexpr int kDraws = 16;

// Draws 1 and 3 of the four of a word, as its halves; draws 0 and 2 where both words are swapped. (Of words or of
// vectors of them.)
template <class W>
static FASTADV_HD W two_draws(W word, W next) {
  return word ^ (next & 0x00ff00ffu);
}

// The bytes of each half in the other order.
template <class W>
static FASTADV_HD W swapped(W word) {
  return (word << 8 & 0xff00ff00u) | (word >> 8 & 0x00ff00ffu);
}

// Which of the four elements of a word are kept: bit k for element k.
static FASTADV_HD uint32_t kept_of_word(uint32_t word, uint32_t next, uint32_t threshold) {
  const uint32_t odd = two_draws(word, next);
  const uint32_t even = two_draws(swapped(word), swapped(next));
  const uint32_t first = (even & 0xffffu) >= threshold, second = (odd & 0xffffu) >= threshold;
  const uint32_t third = even >> 16 >= threshold, fourth = odd >> 16 >= threshold;
  return first | second << 1 | third << 2 | fourth << 3;
}

// The same for the lower or the upper eight of a block, and for all sixteen.
static FASTADV_HD uint32_t kept_of_half(const PhiloxBlock& block, bool upper, uint32_t threshold) {
  const uint32_t middle = upper ? block.c3 : block.c1;
  return kept_of_word(upper ? block.c2 : block.c0, middle, threshold) |
         kept_of_word(middle, upper ? block.c0 : block.c2, threshold) << 4;
}

static FASTADV_HD uint32_t kept_of_block(const PhiloxBlock& block, uint32_t threshold) {
  return kept_of_half(block, false, threshold) | kept_of_half(block, true, threshold) << kDraws / 2;
}

// A select, not a product: what is dropped is +0, also where it was not finite. (Of numbers or of vectors of them.)
template <class Kept, class V>
static FASTADV_HD V keep(Kept kept, V value, V factor) {
  return kept ? value * factor : V{};
}

}  // namespace fastadv
