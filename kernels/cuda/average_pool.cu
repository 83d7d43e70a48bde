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
      __syncthreads();  // the sums of the task before have been read
      shared[warp][lane] =
          inside ? strided_sum(map + lane, warp, layer.positions, kWarps, layer.stride_p) : 0.0;
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
