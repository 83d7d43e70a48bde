#include "common/add_noise.h"

#include "cuda/launch.h"
#include "cuda/random_walk.cuh"

namespace fastadv::cuda {
namespace {

template <bool kGaussian>
struct NoiseRow {
  float* x;
  const float* origin;  // may be x: a thread reads its elements before it writes them
  const float* scale_each;
  float scale;
  float lo;
  float hi;

  static __device__ __forceinline__ void pair(uint32_t& first, uint32_t& second) {
    if constexpr (kGaussian) {
      float a, b;
      normal_pair(first, second, a, b);
      first = to_bits(a);
      second = to_bits(b);
    }
  }

  template <int kWidth, bool kVector>
  __device__ __forceinline__ Pack<float, kWidth> read(const Run<kWidth>& run) const {
    return load_run<float, kWidth, kVector>(origin + run.offset, run.count);
  }

  template <int kWidth, bool kVector>
  __device__ __forceinline__ void apply(const Run<kWidth>& run, Pack<float, kWidth> pack) const {
    const float amount = scale_each ? scale_each[run.image] : scale;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float noise = kGaussian ? from_bits(run.words[k]) : uniform_noise(run.words[k]);
      pack.item[k] = noised(pack.item[k], amount, noise, lo, hi);
    }
    store_run<float, kWidth, kVector>(x + run.offset, pack, run.count);
  }
};

template <bool kGaussian>
int add(const AddNoiseArgs& args, cudaStream_t stream) {
  const NoiseRow<kGaussian> row = {args.x, args.origin, args.scale_each, args.scale, args.lo, args.hi};
  return walk<4>(row, args.key, args.layout, aligned(args.x) && aligned(args.origin), stream);
}

}  // namespace

int add_noise(const AddNoiseArgs& args, void* stream) {
  auto* on = static_cast<cudaStream_t>(stream);
  return args.kind == kGaussianNoise ? add<true>(args, on) : add<false>(args, on);
}

}  // namespace fastadv::cuda
