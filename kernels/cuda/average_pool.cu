#include "common/average_pool.h"

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {
namespace {

constexpr int64_t kTogether = 32;  // channels of a task where they lie together: one for each lane
constexpr int kMostShares = 32;
constexpr int64_t kFewTasks = 1024;  // as many blocks of 8 warps run at once on a large device

// Into how many shares, each a warp's, the positions of a map are divided whose channels lie together. They depend on
// its size alone and are added up in their order: a mean has the same bits in any batch, whether a warp takes one share
// or several.
__host__ __device__ __forceinline__ int shares_of(int64_t positions) {
  return positions <= 512 ? 8 : positions <= 1024 ? 16 : kMostShares;
}

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

// The same for one share of kTogether channels side by side, kWidth to a lane, so that a warp reads kWidth positions at
// once: their sums, of which lane k gets channel k's. `map` begins on 16 bytes, and so does every position.
template <class T, int kWidth>
__device__ __forceinline__ double together_sum(const T* map, int lane, int share, int shares, int64_t positions,
                                               int64_t stride) {
  constexpr int kLanes = static_cast<int>(kTogether) / kWidth;  // of one position
  const int64_t step = int64_t{shares} * kWidth;
  const T* run = map + lane % kLanes * kWidth;
  double sum[kWidth] = {};
  int64_t i = share * kWidth + lane / kLanes;
  constexpr int kTurns = 16 / kWidth;  // positions that are read before the first of them is added
  for (; i + (kTurns - 1) * step < positions; i += kTurns * step) {
    Pack<T, kWidth> packs[kTurns];
#pragma unroll
    for (int j = 0; j < kTurns; ++j) packs[j] = load<T, kWidth>(run + (i + j * step) * stride);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      float part = 0.0f;
#pragma unroll
      for (int j = 0; j < kTurns; ++j) part += to_float(packs[j].item[k]);
      sum[k] += static_cast<double>(part);
    }
  }
  for (; i < positions; i += step) {
    const auto pack = load<T, kWidth>(run + i * stride);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] += static_cast<double>(to_float(pack.item[k]));
  }
#pragma unroll
  for (int k = 0; k < kWidth; ++k)
    for (int apart = kLanes; apart < 32; apart *= 2) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], apart);
  double own = 0.0;  // of channel `lane`, which lane / kWidth holds at lane % kWidth
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    const double value = __shfl_sync(0xffffffffu, sum[k], lane / kWidth);
    own = lane % kWidth == k ? value : own;
  }
  return own;
}

// A block of kWarps takes 32 channels whose positions its warps share, or, where their shares are fewer than kWarps,
// several times 32, a team of warps each; of a map whose positions lie together, a channel a warp.
template <class T, int kWidth, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) average_pool_kernel(const __grid_constant__ PoolArgs args) {
  __shared__ double shared[kMostShares][32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t index = blockIdx.x; index < args.tasks; index += gridDim.x) {
    const PoolLayer& layer = args.layer[layer_of(args, index)];
    const PoolTask task = pool_task(layer, index);
    const T* map = static_cast<const T*>(layer.map) + task.image * layer.stride_n + task.first * layer.stride_c;
    float* out = args.out + task.image * args.row + layer.column + task.first;
    if (channels_together(layer)) {
      const int shares = shares_of(layer.positions);
      const int team = warp / shares;
      const int64_t left = task.count - team * kTogether;
      const bool inside = lane < left;
      const T* own = map + team * kTogether;
      const bool wide = left >= kTogether && layer.stride_p % kWidth == 0 && reinterpret_cast<uintptr_t>(own) % 16 == 0;
      __syncthreads();  // the sums of the task before have been read
      for (int share = warp % shares; share < shares; share += kWarps) {
        double sum = 0.0;
        if (wide) sum = together_sum<T, kWidth>(own, lane, share, shares, layer.positions, layer.stride_p);
        else if (inside) sum = strided_sum(own + lane, share, layer.positions, shares, layer.stride_p);
        shared[team * shares + share][lane] = sum;
      }
      __syncthreads();
      if (warp % shares != 0 || !inside) continue;
      double total = 0.0;
      for (int i = 0; i < shares; ++i) total += shared[team * shares + i][lane];
      out[team * kTogether + lane] = mean_of(total, layer.positions);
    } else if (warp < task.count) {
      const T* run = map + warp * layer.stride_c;
      const bool wide = layer.positions % kWidth == 0 && reinterpret_cast<uintptr_t>(run) % 16 == 0;
      const double sum = warp_sum(wide ? packed_sum<T, kWidth>(run, layer.positions, lane)
                                       : strided_sum(run, lane, layer.positions, 32, 1));
      if (lane == 0) out[warp] = mean_of(sum, layer.positions);
    }
  }
}

template <int kWarps>
void number(PoolArgs& args) {
  for (int i = 0; i < args.layers; ++i) {
    PoolLayer& layer = args.layer[i];
    const int teams = kWarps / shares_of(layer.positions);
    layer.tile = channels_together(layer) ? kTogether * (teams > 1 ? teams : 1) : kWarps;
  }
  number_tasks(args, [&](const PoolLayer& layer) { return args.images * parts(layer.channels, layer.tile); });
}

template <int kWarps>
void launch(const PoolArgs& args, cudaStream_t queue) {
  const auto grid = grid_for(args.tasks);
  constexpr int kBlock = kWarps * 32;
  switch (args.type) {
    case kFloat32: average_pool_kernel<float, 4, kWarps><<<grid, kBlock, 0, queue>>>(args); break;
    case kBFloat16: average_pool_kernel<BFloat16, 8, kWarps><<<grid, kBlock, 0, queue>>>(args); break;
    default: average_pool_kernel<Float16, 8, kWarps><<<grid, kBlock, 0, queue>>>(args);
  }
}

}  // namespace

int average_pool(PoolArgs args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  number<8>(args);
  if (args.tasks <= kFewTasks) {  // of few images a large map would be the work of a few small blocks
    number<kMostShares>(args);
    launch<kMostShares>(args, queue);
  } else {
    launch<8>(args, queue);
  }
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
