// Device helpers shared by the kernels: 16-byte packs, block sums in a fixed order, the tasks of a block.
#pragma once

#include <cuda_runtime.h>

#include "common/types.h"

namespace fastadv::cuda {

constexpr int kThreads = 256;

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  T item[kWidth];
};

template <class T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(from);
}

template <class T, int kWidth>
__device__ __forceinline__ void store(T* to, const Pack<T, kWidth>& pack) {
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// Whole packs of 16 bytes, or one element after the other as far as there are.
template <class T, int kWidth, bool kVector>
__device__ __forceinline__ Pack<T, kWidth> load_run(const T* from, int count) {
  if constexpr (kVector) {
    return load<T, kWidth>(from);
  } else {
    Pack<T, kWidth> pack = {};
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      if (k < count) pack.item[k] = from[k];
    return pack;
  }
}

template <class T, int kWidth, bool kVector>
__device__ __forceinline__ void store_run(T* to, const Pack<T, kWidth>& pack, int count) {
  if constexpr (kVector) {
    store<T, kWidth>(to, pack);
  } else {
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      if (k < count) to[k] = pack.item[k];
  }
}

// One task is one chunk of one image.
struct BlockSpan {
  int64_t image;
  int64_t offset;
  int64_t length;
};

__device__ __forceinline__ BlockSpan block_span(int64_t task, int64_t size, const Partition& cut) {
  const int64_t image = task / cut.chunks;
  const int64_t begin = (task - image * cut.chunks) * cut.chunk;
  const int64_t left = size - begin;
  return {image, image * size + begin, left < cut.chunk ? left : cut.chunk};
}

// The sum over the warp, in an order that never changes; every thread gets it.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sum over the block, likewise. `shared` holds 8 doubles.
__device__ __forceinline__ double block_sum(double value, double* shared) {
  value = warp_sum(value);
  __syncthreads();  // the previous use of `shared` is over
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0.0;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += shared[warp];
  return total;
}

// Counts go to the image's row of `stats` through integer atomics: the order does not matter.
__device__ __forceinline__ void add_counts(int64_t bad, int64_t zero, int64_t* row) {
  for (int step = 16; step > 0; step >>= 1) {
    bad += __shfl_xor_sync(0xffffffffu, bad, step);
    zero += __shfl_xor_sync(0xffffffffu, zero, step);
  }
  if (threadIdx.x % 32 != 0) return;
  auto* counters = reinterpret_cast<unsigned long long*>(row);
  if (bad != 0) atomicAdd(counters, static_cast<unsigned long long>(bad));
  if (zero != 0) atomicAdd(counters + 1, static_cast<unsigned long long>(zero));
}

inline bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// Blocks of a launch; a kernel strides over the tasks that are left.
inline unsigned grid_for(int64_t tasks) {
  constexpr int64_t most = 1 << 20;
  return static_cast<unsigned>(tasks < most ? tasks : most);
}

// Calls `launch.run<G, width>()` with the gradient's type and the number of elements in 16 bytes of it, or 1.
template <class Launch>
void by_type(int grad_type, bool wide, Launch launch) {
  switch (grad_type) {
    case kFloat32: return wide ? launch.template run<float, 4>() : launch.template run<float, 1>();
    case kBFloat16: return wide ? launch.template run<BFloat16, 8>() : launch.template run<BFloat16, 1>();
    default: return wide ? launch.template run<Float16, 8>() : launch.template run<Float16, 1>();
  }
}

}  // namespace fastadv::cuda
