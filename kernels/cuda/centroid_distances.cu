#include "cuda/distance_tiles.cuh"
#include "cuda/launch.h"

namespace fastadv::cuda {
namespace {

// One warp for one vector: 1 / norm.
__global__ void __launch_bounds__(kThreads) scales_kernel(const __grid_constant__ DistanceArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t task = blockIdx.x; task < args.tasks; task += gridDim.x) {
    const int index = layer_of(args, task);
    const DistanceLayer& layer = args.layer[index];
    const int64_t at = (task - layer.first_task) * layer.tile + warp;
    if (at >= args.centroids + args.images) continue;
    const float* vector = scaled_vector(args, layer, at);
    float squares = 0.0f;
    for (int64_t i = lane; i < layer.channels; i += 32) squares += square(vector[i]);
    squares = warp_sum(squares);
    float scale = inverse_norm(squares);
    if (scale < 0.0f && warp_sum(wide_squares(vector, layer.channels, lane, 32)) == 0.0) scale = 0.0f;
    if (lane == 0) centroid_scales(args, index)[at] = scale;
  }
}

// A task is kRows features by kCentroids centroids of one layer, of which a warp has kColumns.
template <bool kCosine, int kWidth>
__global__ void __launch_bounds__(kThreads, 3) distances_kernel(const __grid_constant__ DistanceArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row_tiles = parts(args.images, kRows);
  for (int64_t task = blockIdx.x; task < args.tasks; task += gridDim.x) {
    const int index = layer_of(args, task);
    const int64_t local = task - args.layer[index].first_task;
    const int64_t tile = local / row_tiles;
    const int64_t n0 = (local - tile * row_tiles) * kRows;
    const int64_t k0 = tile * kCentroids + int64_t{warp} * kColumns;
    if (k0 >= args.centroids) continue;
    few_distances<kCosine, kWidth, kRows, kColumns>(args, index, n0, k0, lane, InResult{});
  }
}

template <bool kCosine>
__global__ void __launch_bounds__(kTileThreads, 1) tile_kernel(const __grid_constant__ DistanceArgs args) {
  const int64_t row_tiles = parts(args.images, kTile);
  const int64_t task = args.tasks - 1 - blockIdx.x;  // the last layers, mostly those with the most channels, begin
  const int index = layer_of(args, task);
  const int64_t local = task - args.layer[index].first_task;
  const int64_t tile = local / row_tiles;
  const int64_t n0 = (local - tile * row_tiles) * kTile;
  tile_distances<kCosine>(args, index, n0, tile * kTile, InResult{});
}

template <bool kCosine>
int measure(DistanceArgs args, cudaStream_t queue) {
  const bool wide = wide_rows(args);
  const bool tiled = wide && args.images > kFew && args.centroids > kFew;
  const auto grid = plan(args, tiled ? kTile : kCentroids, [&](const DistanceLayer& layer) {
    return parts(args.centroids, layer.tile) * parts(args.images, tiled ? kTile : kRows);
  });
  if (tiled) {
    const auto kernel = tile_kernel<kCosine>;
    const cudaError_t room = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kTileMemory);
    if (room != cudaSuccess) return room;
    kernel<<<static_cast<unsigned>(args.tasks), kTileThreads, kTileMemory, queue>>>(args);  // no more than 2^31 fit
  } else if (wide) {
    distances_kernel<kCosine, 4><<<grid, kThreads, 0, queue>>>(args);
  } else {
    distances_kernel<kCosine, 1><<<grid, kThreads, 0, queue>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace

void scale_vectors(DistanceArgs args, cudaStream_t queue) {
  const auto grid = plan(args, kWarps, [&](const DistanceLayer& layer) {
    return parts(args.centroids + args.images, layer.tile);
  });
  scales_kernel<<<grid, kThreads, 0, queue>>>(args);
}

int centroid_distances(const DistanceArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (args.metric != kMetricCosine) return measure<false>(args, queue);
  scale_vectors(args, queue);
  return measure<true>(args, queue);
}

}  // namespace fastadv::cuda
