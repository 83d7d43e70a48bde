// feature_dropout_bn_prelu: min(prelu(scale * (x * mask) + shift), ceiling), and its derivative with respect to x.
// Compiled without fused multiply-add, so that every backend gives the same bits.
#pragma once

#include "common/feature_dropout.h"

namespace fastadv {

struct FeatureDropoutBnPreluArgs {
  FeatureDropoutArgs dropout;  // x: of a derivative `from_result`, what the forward pass made
  const void* grad;   // of the type and layout of x; null: forward
  const float* scale;  // (channels,)
  const float* shift;  // (channels,), or `untied` an image laid out like those of x
  const float* slope_each;  // (channels,) or (1,); null: `slope`
  float slope;
  int64_t slope_step;  // 1: a slope for each channel; 0: one for all
  float ceiling;       // NaN: none, since nothing is greater
  int from_result;
  int untied;
};

// One slope of 0 for all: a select as torch's ReLU, which makes 0 of what is not above it, of minus infinity too. PReLU
// multiplies.
static FASTADV_HD bool is_relu(const FeatureDropoutBnPreluArgs& args) {
  return args.slope_each == nullptr && args.slope == 0.0f;
}

// V: a number, or a vector of them.
template <class V>
static FASTADV_HD V prelu(V value, V slope, bool relu) {
  if (relu) return value <= V{} ? V{} : value;  // a NaN stays one
  return value > V{} ? value : slope * value;
}

template <class V>
static FASTADV_HD V affine_prelu(V value, V scale, V shift, V slope, bool relu, V ceiling) {
  const V made = prelu(scale * value + shift, slope, relu);
  return made > ceiling ? ceiling : made;
}

// The derivative of the activation times `grad`, where `inner` has the sign of what it saw and `made` is its result.
template <class V>
static FASTADV_HD V prelu_grad(V inner, V made, V grad, V slope, bool relu, V ceiling) {
  V passed;
  if (relu) passed = inner <= V{} ? V{} : grad;
  else passed = inner > V{} ? grad : slope * grad;
  return made >= ceiling ? V{} : passed;
}

// `value` is what the mask has left of x. The mask of the result is the caller's.
template <class V>
static FASTADV_HD V affine_prelu_grad(V value, V grad, V scale, V shift, V slope, bool relu, V ceiling) {
  const V inner = scale * value + shift;
  return prelu_grad(inner, prelu(inner, slope, relu), grad, slope, relu, ceiling) * scale;
}

// Likewise from the result, whose sign is that of what the activation saw where no slope is negative.
template <class V>
static FASTADV_HD V affine_prelu_grad_of(V result, V grad, V scale, V slope, bool relu, V ceiling) {
  return prelu_grad(result, result, grad, slope, relu, ceiling) * scale;
}

}  // namespace fastadv
