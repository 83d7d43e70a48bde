#include "common/feature_dropout_bn_prelu.h"

#include "cuda/launch.h"
#include "cuda/random_walk.cuh"

namespace fastadv::cuda {
namespace {

template <class T, bool kBackward>
struct FusedRow : PlainWords {
  const T* x;
  const T* grad;
  T* out;
  const float* scale;
  const float* shift;
  const float* slope_each;
  float slope;
  int64_t slope_step;
  uint32_t threshold;
  float factor;
  int64_t plane;

  template <int kWidth, bool kVector, bool kChannelsLast>
  __device__ __forceinline__ void apply(const Run<kWidth>& run) const {
    auto pack = load_run<T, kWidth, kVector>(x + run.offset, run.count);
    Pack<T, kWidth> given;
    if constexpr (kBackward) given = load_run<T, kWidth, kVector>(grad + run.offset, run.count);
    int64_t channel = run.place;
    if constexpr (!kChannelsLast) channel = static_cast<uint32_t>(run.place) / static_cast<uint32_t>(plane);
    int64_t left = kChannelsLast ? 1 : plane - (run.place - channel * plane);  // elements of the channel
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (kVector || k < run.count) {
        const float a = scale[channel];
        const float b = shift[channel];
        const float s = slope_each ? slope_each[channel * slope_step] : slope;
        const float value = keep(run.words[k], threshold, to_float(pack.item[k]), factor);
        if constexpr (kBackward) {
          const float made = affine_prelu_grad(value, to_float(given.item[k]), a, b, s);
          from_float(keep(run.words[k], threshold, made, factor), pack.item[k]);
        } else {
          from_float(affine_prelu(value, a, b, s), pack.item[k]);
        }
      }
      if (--left == 0) {
        ++channel;
        left = kChannelsLast ? 1 : plane;
      }
    }
    store_run<T, kWidth, kVector>(out + run.offset, pack, run.count);
  }
};

template <class T, int kPack, bool kBackward>
int fused(const FeatureDropoutBnPreluArgs& args, cudaStream_t stream) {
  const FeatureDropoutArgs& dropout = args.dropout;
  FusedRow<T, kBackward> row;
  row.x = static_cast<const T*>(dropout.x);
  row.grad = static_cast<const T*>(args.grad);
  row.out = static_cast<T*>(dropout.out);
  row.scale = args.scale;
  row.shift = args.shift;
  row.slope_each = args.slope_each;
  row.slope = args.slope;
  row.slope_step = args.slope_step;
  row.threshold = dropout.threshold;
  row.factor = dropout.factor;
  row.plane = dropout.layout.plane;
  const bool wide = aligned(dropout.x) && aligned(dropout.out) && aligned(args.grad);
  return walk<kPack>(row, dropout.key, dropout.layout, wide, stream);
}

template <class T, int kPack>
int typed(const FeatureDropoutBnPreluArgs& args, cudaStream_t stream) {
  if (args.grad) return fused<T, kPack, true>(args, stream);
  return fused<T, kPack, false>(args, stream);
}

}  // namespace

int feature_dropout_bn_prelu(const FeatureDropoutBnPreluArgs& args, void* stream) {
  auto* on = static_cast<cudaStream_t>(stream);
  switch (args.dropout.type) {
    case kFloat32: return typed<float, 4>(args, on);
    case kBFloat16: return typed<BFloat16, 8>(args, on);
    default: return typed<Float16, 8>(args, on);
  }
}

}  // namespace fastadv::cuda
