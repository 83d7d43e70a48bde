#include "common/average_pool.h"

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int64_t kTogether = 32;  // channels of a task where they lie together: one for each lane

// values[first], values[first + step], ...: four of them are added in float32, the sums of four in float64.
template <class T>
__device__ __forceinline__ double strided_sum(const T* values, int64_t first, int64_t end, int64_t step,
                                              int64_t stride) {
  double sum = 0.0;
  int64_t i = first;
  for (; i + 3 * step < end; i += 4 * step) {
    const float a = to_float(values[i * stride]);
    const float b = to_float(values[(i + step) * stride]);
    const float c = to_float(values[(i + 2 * step) * stride]);
    const float d = to_float(values[(i + 3 * step) * stride]);
    sum += static_cast<double>((a + b) + (c + d));
  }
  for (; i < end; i += step) sum += static_cast<double>(to_float(values[i * stride]));
  return sum;
}

template <class T, int kWidth>
__device__ __forceinline__ double packed_sum(const T* values, int64_t size, int lane) {
  double sum = 0.0;
  for (int64_t i = int64_t{lane} * kWidth; i < size; i += 32 * kWidth) {
    const auto pack = load<T, kWidth>(values + i);
    float part = 0.0f;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) part += to_float(pack.item[k]);
    sum += static_cast<double>(part);
  }
  return sum;
}

// The same for kTogether channels side by side, kWidth to a lane, so that a warp reads kWidth positions at once: their
// sums, of which lane k gets channel k's. `map` begins on 16 bytes, and so does every position.
template <class T, int kWidth>
__device__ __forceinline__ double together_sum(const T* map, int lane, int warp, int64_t positions, int64_t stride) {
  constexpr int kLanes = static_cast<int>(kTogether) / kWidth;  // of one position
  constexpr int64_t kStep = int64_t{kWarps} * kWidth;
  const T* run = map + lane % kLanes * kWidth;
  double sum[kWidth] = {};
  int64_t i = warp * kWidth + lane / kLanes;
  constexpr int kTurns = 16 / kWidth;  // positions that are read before the first of them is added
  for (; i + (kTurns - 1) * kStep < positions; i += kTurns * kStep) {
    Pack<T, kWidth> packs[kTurns];
#pragma unroll
    for (int j = 0; j < kTurns; ++j) packs[j] = load<T, kWidth>(run + (i + j * kStep) * stride);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      float part = 0.0f;
#pragma unroll
      for (int j = 0; j < kTurns; ++j) part += to_float(packs[j].item[k]);
      sum[k] += static_cast<double>(part);
    }
  }
  for (; i < positions; i += kStep) {
    const auto pack = load<T, kWidth>(run + i * stride);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] += static_cast<double>(to_float(pack.item[k]));
  }
#pragma unroll
  for (int k = 0; k < kWidth; ++k)
    for (int step = kLanes; step < 32; step *= 2) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], step);
  double own = 0.0;  // of channel `lane`, which lane / kWidth holds at lane % kWidth
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    const double value = __shfl_sync(0xffffffffu, sum[k], lane / kWidth);
    own = lane % kWidth == k ? value : own;
  }
  return own;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) average_pool_kernel(const __grid_constant__ PoolArgs args) {
  __shared__ double shared[kWarps][32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t index = blockIdx.x; index < args.tasks; index += gridDim.x) {
    const PoolLayer& layer = args.layer[layer_of(args, index)];
    const PoolTask task = pool_task(layer, index);
    const T* map = static_cast<const T*>(layer.map) + task.image * layer.stride_n + task.first * layer.stride_c;
    float* out = args.out + task.image * args.row + layer.column + task.first;
    if (channels_together(layer)) {
      const bool inside = lane < task.count;
      const bool wide = task.count == kTogether && layer.stride_p % kWidth == 0 &&
                        reinterpret_cast<uintptr_t>(map) % 16 == 0;
      double sum = 0.0;
      if (wide) sum = together_sum<T, kWidth>(map, lane, warp, layer.positions, layer.stride_p);
      else if (inside) sum = strided_sum(map + lane, warp, layer.positions, kWarps, layer.stride_p);
      __syncthreads();  // the sums of the task before have been read
      shared[warp][lane] = sum;
      __syncthreads();
      if (warp != 0 || !inside) continue;
      double total = 0.0;
      for (int i = 0; i < kWarps; ++i) total += shared[i][lane];
      out[lane] = mean_of(total, layer.positions);
    } else if (warp < task.count) {
      const T* run = map + warp * layer.stride_c;
      const bool wide = layer.positions % kWidth == 0 && reinterpret_cast<uintptr_t>(run) % 16 == 0;
      const double sum = warp_sum(wide ? packed_sum<T, kWidth>(run, layer.positions, lane)
                                       : strided_sum(run, lane, layer.positions, 32, 1));
      if (lane == 0) out[warp] = mean_of(sum, layer.positions);
    }
  }
}

}  // namespace

int average_pool(PoolArgs args, void* stream) {
  for (int i = 0; i < args.layers; ++i) args.layer[i].tile = channels_together(args.layer[i]) ? kTogether : kWarps;
  number_tasks(args, [&](const PoolLayer& layer) { return args.images * parts(layer.channels, layer.tile); });
  const auto grid = grid_for(args.tasks);
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (args.type) {
    case kFloat32: average_pool_kernel<float, 4><<<grid, kThreads, 0, queue>>>(args); break;
    case kBFloat16: average_pool_kernel<BFloat16, 8><<<grid, kThreads, 0, queue>>>(args); break;
    default: average_pool_kernel<Float16, 8><<<grid, kThreads, 0, queue>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
