// feature_dropout_bn_prelu: min(prelu(scale * (x * mask) + shift), ceiling), and its derivative with respect to x.
// Compiled without fused multiply-add, so that every backend gives the same bits.
#pragma once

#include "common/feature_dropout.h"

namespace fastadv {

struct FeatureDropoutBnPreluArgs {
  FeatureDropoutArgs dropout;  // x: of a derivative `from_result`, what the forward pass made
  const void* grad;   // of the type and layout of x; null: forward
  const float* scale;  // (channels,)
  const float* shift;  // (channels,)
  const float* slope_each;  // (channels,) or (1,); null: `slope`
  float slope;
  int64_t slope_step;  // 1: a slope for each channel; 0: one for all
  float ceiling;       // NaN: none, since nothing is greater
  int from_result;
};

static FASTADV_HD float prelu(float value, float slope) { return value > 0.0f ? value : slope * value; }

static FASTADV_HD float affine_prelu(float value, float scale, float shift, float slope, float ceiling) {
  const float made = prelu(scale * value + shift, slope);
  return made > ceiling ? ceiling : made;
}

// The derivative of the activation times `grad`, where `inner` has the sign of what it saw and `made` is its result.
static FASTADV_HD float prelu_grad(float inner, float made, float grad, float slope, float ceiling) {
  const float passed = inner > 0.0f ? grad : slope * grad;
  return made >= ceiling ? 0.0f : passed;
}

// `value` is what the mask has left of x. The mask of the result is the caller's.
static FASTADV_HD float affine_prelu_grad(float value, float grad, float scale, float shift, float slope,
                                          float ceiling) {
  const float inner = scale * value + shift;
  return prelu_grad(inner, prelu(inner, slope), grad, slope, ceiling) * scale;
}

// Likewise from the result, whose sign is that of what the activation saw where no slope is negative.
static FASTADV_HD float affine_prelu_grad_of(float result, float grad, float scale, float slope, float ceiling) {
  return prelu_grad(result, result, grad, slope, ceiling) * scale;
}

}  // namespace fastadv
