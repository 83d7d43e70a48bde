// feature_dropout_bn_prelu: prelu(scale * (x * mask) + shift), and its derivative with respect to x.
// Compiled without fused multiply-add, so that every backend gives the same bits.
#pragma once

#include "common/feature_dropout.h"

namespace fastadv {

struct FeatureDropoutBnPreluArgs {
  FeatureDropoutArgs dropout;
  const void* grad;   // of the type and layout of x; null: forward
  const float* scale;  // (channels,)
  const float* shift;  // (channels,)
  const float* slope_each;  // (channels,) or (1,); null: `slope`
  float slope;
  int64_t slope_step;  // 1: a slope for each channel; 0: one for all
};

static FASTADV_HD float affine_prelu(float value, float scale, float shift, float slope) {
  const float made = scale * value + shift;
  return made > 0.0f ? made : slope * made;
}

// `value` is what the mask has left of x. The mask of the result is the caller's.
static FASTADV_HD float affine_prelu_grad(float value, float grad, float scale, float shift, float slope) {
  return (scale * value + shift > 0.0f ? grad : slope * grad) * scale;
}

}  // namespace fastadv
