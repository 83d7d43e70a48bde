#include "common/feature_dropout.h"

#include "cuda/launch.h"
#include "cuda/mask_walk.cuh"

namespace fastadv::cuda {
namespace {

template <class T>
struct DropoutRow {
  const T* x;
  T* out;
  float factor;

  template <int kWidth, bool kVector, bool kChannelsLast>
  __device__ __forceinline__ void apply(const MaskRun& run) const {
    auto pack = load_run<T, kWidth, kVector>(x + run.offset, run.count);
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      from_float(keep(run.kept >> k & 1u, to_float(pack.item[k]), factor), pack.item[k]);
    store_run<T, kWidth, kVector>(out + run.offset, pack, run.count);
  }
};

template <class T, int kPack>
int drop(const FeatureDropoutArgs& args, cudaStream_t stream) {
  const DropoutRow<T> row = {static_cast<const T*>(args.x), static_cast<T*>(args.out), args.factor};
  return walk_masked<kPack>(row, args, aligned(args.x) && aligned(args.out), stream);
}

}  // namespace

int feature_dropout(const FeatureDropoutArgs& args, void* stream) {
  auto* on = static_cast<cudaStream_t>(stream);
  switch (args.type) {
    case kFloat32: return drop<float, 4>(args, on);
    case kBFloat16: return drop<BFloat16, 8>(args, on);
    default: return drop<Float16, 8>(args, on);
  }
}

}  // namespace fastadv::cuda
