// Distances relative to a class: a block walks the classes of a part, and a lane keeps what it has seen of an image's
// distances to every 32nd of them. No distance leaves the chip.
#include "common/relative_distances.h"

#include "cuda/distance_tiles.cuh"
#include "cuda/launch.h"

namespace fastadv::cuda {
namespace {

__device__ __forceinline__ Seen seen_by_warp(Seen seen, bool choose) {
#pragma unroll 1
  for (int step = 16; step > 0; step >>= 1) {
    const Seen other = {__shfl_xor_sync(kAll, seen.sum, step), __shfl_xor_sync(kAll, seen.least, step),
                        __shfl_xor_sync(kAll, seen.second, step), __shfl_xor_sync(kAll, seen.place, step)};
    seen = merged(seen, other, choose);
  }
  return seen;
}

// kTiled: the distances of many images, in the tiles of tile_distances; else as few_distances makes them.
template <bool kCosine, bool kTiled, int kWidth>
__global__ void __launch_bounds__(kTiled ? kTileThreads : kThreads, kTiled ? 1 : 3)
    relative_kernel(const __grid_constant__ RelativeArgs args) {
  constexpr int kImages = kTiled ? kTile : kRows;                             // of a block
  constexpr int kEach = kTiled ? kTile / (kTileThreads / 32) : 1;             // of a warp, when distances are read
  __shared__ float found[kImages][kTile + 1];
  __shared__ float own[kImages];
  const DistanceArgs& all = args.distances;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row_tiles = parts(all.images, kImages);
  for (int64_t task = blockIdx.x; task < all.tasks; task += gridDim.x) {
    const int index = layer_of(all, task);
    const int64_t local = task - all.layer[index].first_task;
    const int64_t part = local / row_tiles;
    const int64_t n0 = (local - part * row_tiles) * kImages;
    const auto mine = [&](int each) { return warp * kEach + each < kImages && n0 + warp * kEach + each < all.images; };
#pragma unroll 1
    for (int each = 0; each < kEach && !args.choose; ++each) {
      if (!mine(each)) continue;
      const int row = warp * kEach + each;
      const int64_t k = args.own[n0 + row];
      if (k >= 0 && k < all.centroids) {
        few_distances<kCosine, kWidth, 1, 1>(all, index, n0 + row, k, lane, {own + row, 1});
      } else if (lane == 0) {
        own[row] = from_bits(0x7fc00000u);
      }
      if (part == 0 && lane == 0) *reading_of(args, n0 + row, index) = own[row];
    }
    double sum[kEach] = {};
    float least[kEach];
    float second[kEach];
    int place[kEach] = {};
#pragma unroll
    for (int each = 0; each < kEach; ++each) least[each] = second[each] = from_bits(0x7f800000u);
    const int64_t last = (part + 1) * args.part;
    const int64_t end = last < all.centroids ? last : all.centroids;
    for (int64_t k = part * args.part; k < end; k += kTile) {
      if constexpr (kTiled) {
        tile_distances<kCosine>(all, index, n0, k, {found[0], kTile + 1});
      } else {
#pragma unroll 1
        for (int column = warp * kColumns; column < kTile && k + column < end; column += kCentroids)
          few_distances<kCosine, kWidth, kRows, kColumns>(all, index, n0, k + column, lane,
                                                          {found[0] + column, kTile + 1});
      }
      __syncthreads();  // the distances, and before them those to the own classes, are written
#pragma unroll
      for (int each = 0; each < kEach; ++each) {
        if (!mine(each) || k + lane >= end) continue;
        const float value = found[warp * kEach + each][lane];
        const bool lower = value < least[each];
        const float other = lower ? least[each] : value;
        if (lower) least[each] = value;
        if (other < second[each]) second[each] = other;
        sum[each] += static_cast<double>(value);
        if (args.choose) {
          if (lower) place[each] = static_cast<int>(k) + lane;
        } else {
          place[each] += value < own[warp * kEach + each];
        }
      }
      __syncthreads();  // the distances have been read
    }
#pragma unroll
    for (int each = 0; each < kEach; ++each) {
      if (!mine(each)) continue;
      const Seen seen = {sum[each], static_cast<double>(least[each]), static_cast<double>(second[each]),
                         static_cast<double>(place[each])};
      const Seen together = seen_by_warp(seen, args.choose);
      if (lane == 0) seen_of(args, index, part)[n0 + warp * kEach + each] = together;
    }
  }
}

// One warp for an image and a layer.
__global__ void __launch_bounds__(kThreads) relative_finish_kernel(const __grid_constant__ RelativeArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t layers = args.distances.layers;
  const int64_t first = int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / 32;
  for (int64_t task = first; task < args.distances.images * layers; task += int64_t{gridDim.x} * kWarps) {
    const int64_t image = task / layers;
    const int index = static_cast<int>(task - image * layers);
    Seen seen = nothing_seen();
    for (int64_t part = lane; part < args.parts; part += 32)
      seen = merged(seen, seen_of(args, index, part)[image], args.choose);
    seen = seen_by_warp(seen, args.choose);
    if (lane == 0) finish_reading(args, image, index, seen);
  }
}

template <bool kCosine>
int read_parts(RelativeArgs args, cudaStream_t queue) {
  DistanceArgs& all = args.distances;
  const bool wide = wide_rows(all);
  const bool tiled = wide && all.images > kFew;
  const auto grid = plan(all, 1, [&](const DistanceLayer&) {
    return args.parts * parts(all.images, tiled ? kTile : kRows);
  });
  if (tiled) {
    const auto kernel = relative_kernel<kCosine, true, 4>;
    const cudaError_t room = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kTileMemory);
    if (room != cudaSuccess) return room;
    kernel<<<grid, kTileThreads, kTileMemory, queue>>>(args);
  } else if (wide) {
    const auto kernel = relative_kernel<kCosine, false, 4>;
    kernel<<<grid, kThreads, 0, queue>>>(args);
  } else {
    const auto kernel = relative_kernel<kCosine, false, 1>;
    kernel<<<grid, kThreads, 0, queue>>>(args);
  }
  relative_finish_kernel<<<grid_for(parts(all.images * all.layers, kWarps)), kThreads, 0, queue>>>(args);
  return cudaGetLastError();
}

}  // namespace

int relative_distances(const RelativeArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (args.distances.metric != kMetricCosine) return read_parts<false>(args, queue);
  scale_vectors(args.distances, queue);
  return read_parts<true>(args, queue);
}

}  // namespace fastadv::cuda
