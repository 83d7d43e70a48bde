#include "common/feature_dropout_bn_prelu.h"

#include "cuda/launch.h"
#include "cuda/mask_walk.cuh"

namespace fastadv::cuda {
namespace {

enum Pass { kForward, kFromInput, kFromResult };

template <class T, Pass kPass>
struct FusedRow {
  const T* x;
  const T* grad;
  T* out;
  const float* scale;
  const float* shift;
  const float* slope_each;
  float slope;
  int64_t slope_step;
  float ceiling;
  float factor;
  int64_t plane;

  template <int kWidth, bool kVector, bool kChannelsLast>
  __device__ __forceinline__ void apply(const MaskRun& run) const {
    auto pack = load_run<T, kWidth, kVector>(x + run.offset, run.count);
    Pack<T, kWidth> given;
    if constexpr (kPass != kForward) given = load_run<T, kWidth, kVector>(grad + run.offset, run.count);
    int64_t channel = run.place;
    if constexpr (!kChannelsLast) channel = static_cast<uint32_t>(run.place) / static_cast<uint32_t>(plane);
    int64_t left = kChannelsLast ? 1 : plane - (run.place - channel * plane);  // elements of the channel
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (kVector || k < run.count) {
        const float a = scale[channel];
        const float b = shift[channel];
        const float s = slope_each ? slope_each[channel * slope_step] : slope;
        const bool stays = run.kept >> k & 1u;
        const float value = to_float(pack.item[k]);
        if constexpr (kPass == kForward) {
          from_float(affine_prelu(keep(stays, value, factor), a, b, s, ceiling), pack.item[k]);
        } else {
          const float grad_of = to_float(given.item[k]);
          const float made = kPass == kFromResult
                                 ? affine_prelu_grad_of(value, grad_of, a, s, ceiling)
                                 : affine_prelu_grad(keep(stays, value, factor), grad_of, a, b, s, ceiling);
          from_float(keep(stays, made, factor), pack.item[k]);
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

template <class T, int kPack, Pass kPass>
int fused(const FeatureDropoutBnPreluArgs& args, cudaStream_t stream) {
  const FeatureDropoutArgs& dropout = args.dropout;
  FusedRow<T, kPass> row;
  row.x = static_cast<const T*>(dropout.x);
  row.grad = static_cast<const T*>(args.grad);
  row.out = static_cast<T*>(dropout.out);
  row.scale = args.scale;
  row.shift = args.shift;
  row.slope_each = args.slope_each;
  row.slope = args.slope;
  row.slope_step = args.slope_step;
  row.ceiling = args.ceiling;
  row.factor = dropout.factor;
  row.plane = dropout.layout.plane;
  const bool wide = aligned(dropout.x) && aligned(dropout.out) && aligned(args.grad);
  return walk_masked<kPack>(row, dropout, wide, stream);
}

template <class T, int kPack>
int typed(const FeatureDropoutBnPreluArgs& args, cudaStream_t stream) {
  if (!args.grad) return fused<T, kPack, kForward>(args, stream);
  if (args.from_result) return fused<T, kPack, kFromResult>(args, stream);
  return fused<T, kPack, kFromInput>(args, stream);
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
