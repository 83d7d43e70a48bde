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

  struct Nothing {};

  template <int kWidth, bool kVector>
  __device__ __forceinline__ Pack<T, kWidth> read(int64_t offset, int64_t, int count) const {
    return load_run<T, kWidth, kVector>(x + offset, count);
  }

  template <int kWidth>
  __device__ __forceinline__ Nothing channels(int64_t) const {
    return {};
  }

  template <int kWidth, bool kVector>
  __device__ __forceinline__ void along(const MaskRun& run, Pack<T, kWidth> pack) const {
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      from_float(keep(run.kept >> k & 1u, to_float(pack.item[k]), factor), pack.item[k]);
    store_run<T, kWidth, kVector>(out + run.offset, pack, run.count);
  }

  template <int kWidth>
  __device__ __forceinline__ void across(const MaskRun& run, const Pack<T, kWidth>& pack, Nothing) const {
    along<kWidth, true>(run, pack);
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
