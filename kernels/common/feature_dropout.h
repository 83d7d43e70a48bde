// feature_dropout: x * mask, the mask generated from the counter of each element. The arithmetic, for C++ and CUDA.
#pragma once

#include "common/philox.h"

namespace fastadv {

struct FeatureDropoutArgs {
  const void* x;
  void* out;  // laid out like x
  PhiloxKey key;
  uint32_t threshold;  // a word below it drops its element
  float factor;        // of what is kept
  int type;            // of the elements of x and out
  BatchLayout layout;
};

// A select, not a product: what is dropped is +0, also where it was not finite.
static FASTADV_HD float keep(uint32_t word, uint32_t threshold, float value, float factor) {
  return word >= threshold ? value * factor : 0.0f;
}

}  // namespace fastadv
