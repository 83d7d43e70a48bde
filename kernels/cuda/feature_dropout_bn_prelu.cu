#include "common/feature_dropout_bn_prelu.h"

#include "cuda/launch.h"
#include "cuda/mask_walk.cuh"

namespace fastadv::cuda {
namespace {

enum Pass { kForward, kFromInput, kFromResult };

// kUntied: a shift for each element of an image.
template <class T, Pass kPass, bool kUntied>
struct FusedRow {
  const T* x;
  const T* grad;
  T* out;
  const float* scale;
  const float* shift;
  const float* slope_each;
  float slope;
  int64_t slope_step;
  bool relu;
  float ceiling;
  float factor;
  int64_t plane;

  template <int kWidth>
  struct Packs {
    Pack<T, kWidth> x;
    Pack<T, kPass == kForward ? 1 : kWidth> grad;
    Pack<float, kUntied ? kWidth : 1> shift;
  };

  struct Channel {
    float scale;
    float shift;
    float slope;
  };

  template <int kWidth>
  struct Channels {
    Channel item[kWidth];
  };

  __device__ __forceinline__ Channel of(int64_t channel) const {
    return {scale[channel], kUntied ? 0.0f : shift[channel], slope_each ? slope_each[channel * slope_step] : slope};
  }

  template <int kWidth, bool kVector>
  __device__ __forceinline__ Packs<kWidth> read(int64_t offset, int64_t inside, int count) const {
    Packs<kWidth> packs;
    packs.x = load_run<T, kWidth, kVector>(x + offset, count);
    if constexpr (kPass != kForward) packs.grad = load_run<T, kWidth, kVector>(grad + offset, count);
    if constexpr (kUntied) packs.shift = load_run<float, kWidth, kVector>(shift + inside, count);
    return packs;
  }

  template <int kWidth>
  __device__ __forceinline__ Channels<kWidth> channels(int64_t channel) const {
    Channels<kWidth> held;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) held.item[k] = of(channel + k);
    return held;
  }

  template <int kWidth>
  __device__ __forceinline__ void work(Packs<kWidth>& packs, int k, bool stays, Channel c) const {
    const float value = to_float(packs.x.item[k]);
    if constexpr (kUntied) c.shift = packs.shift.item[k];
    if constexpr (kPass == kForward) {
      from_float(affine_prelu(keep(stays, value, factor), c.scale, c.shift, c.slope, relu, ceiling), packs.x.item[k]);
    } else {
      const float grad_of = to_float(packs.grad.item[k]);
      const float made =
          kPass == kFromResult
              ? affine_prelu_grad_of(value, grad_of, c.scale, c.slope, relu, ceiling)
              : affine_prelu_grad(keep(stays, value, factor), grad_of, c.scale, c.shift, c.slope, relu, ceiling);
      from_float(keep(stays, made, factor), packs.x.item[k]);
    }
  }

  template <int kWidth, bool kVector>
  __device__ __forceinline__ void along(const MaskRun& run, Packs<kWidth> packs) const {
    int64_t channel = static_cast<uint32_t>(run.place) / static_cast<uint32_t>(plane);
    const int64_t left = plane - (run.place - channel * plane);  // elements of the channel
    if (left >= kWidth) {
      const Channel only = of(channel);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) work(packs, k, run.kept >> k & 1u, only);
    } else {
      int64_t still = left;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        if (kVector || k < run.count) work(packs, k, run.kept >> k & 1u, of(channel));
        if (--still == 0) {
          ++channel;
          still = plane;
        }
      }
    }
    store_run<T, kWidth, kVector>(out + run.offset, packs.x, run.count);
  }

  template <int kWidth>
  __device__ __forceinline__ void across(const MaskRun& run, Packs<kWidth> packs, const Channels<kWidth>& held) const {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) work(packs, k, run.kept >> k & 1u, held.item[k]);
    store<T, kWidth>(out + run.offset, packs.x);
  }
};

template <class T, int kPack, Pass kPass, bool kUntied = false>
int fused(const FeatureDropoutBnPreluArgs& args, cudaStream_t stream) {
  const FeatureDropoutArgs& dropout = args.dropout;
  FusedRow<T, kPass, kUntied> row;
  row.x = static_cast<const T*>(dropout.x);
  row.grad = static_cast<const T*>(args.grad);
  row.out = static_cast<T*>(dropout.out);
  row.scale = args.scale;
  row.shift = args.shift;
  row.slope_each = args.slope_each;
  row.slope = args.slope;
  row.slope_step = args.slope_step;
  row.relu = is_relu(args);
  row.ceiling = args.ceiling;
  row.factor = dropout.factor;
  row.plane = dropout.layout.plane;
  const bool wide =
      aligned(dropout.x) && aligned(dropout.out) && aligned(args.grad) && (!kUntied || aligned(args.shift));
  return walk_masked<kPack>(row, dropout, wide, stream);
}

template <class T, int kPack>
int typed(const FeatureDropoutBnPreluArgs& args, cudaStream_t stream) {
  if (args.grad && args.from_result) return fused<T, kPack, kFromResult>(args, stream);
  if (args.untied)
    return args.grad ? fused<T, kPack, kFromInput, true>(args, stream) : fused<T, kPack, kForward, true>(args, stream);
  return args.grad ? fused<T, kPack, kFromInput>(args, stream) : fused<T, kPack, kForward>(args, stream);
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
