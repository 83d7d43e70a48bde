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
__device__ __forceinline__ void see_part(const RelativeArgs& args, int64_t task) {
  constexpr int kImages = kTiled ? kTile : kRows;                  // of a block
  constexpr int kEach = kTiled ? kTile / (kTileThreads / 32) : 1;  // of a warp, when distances are read
  __shared__ float found[kImages][kTile + 1];
  __shared__ float own[kImages];
  // What each lane has seen: its own, in shared memory because the sums of distances need the registers.
  __shared__ double sum[kImages][32];
  __shared__ float least[kImages][32];
  __shared__ float second[kImages][32];
  __shared__ int place[kImages][32];
  // Where the block is, there for the same reason.
  __shared__ volatile int index, part, n0, end;
  const DistanceArgs& all = args.distances;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) {
    const int own_index = layer_of(all, task);
    const int64_t row_tiles = parts(all.images, kImages);
    const int64_t local = task - all.layer[own_index].first_task;
    index = own_index;
    part = static_cast<int>(local / row_tiles);
    n0 = static_cast<int>(local % row_tiles) * kImages;
    const int64_t last = (local / row_tiles + 1) * args.part;
    end = static_cast<int>(last < all.centroids ? last : all.centroids);
  }
  __syncthreads();
  const auto mine = [&](int row) { return row < kImages && n0 + row < all.images; };
#pragma unroll 1
  for (int row = warp * kEach; row < (warp + 1) * kEach; ++row) {
    if (!mine(row)) continue;
    sum[row][lane] = 0.0;
    least[row][lane] = second[row][lane] = from_bits(0x7f800000u);
    place[row][lane] = 0;
    if (args.choose) continue;
    const int64_t k = args.own[n0 + row];
    if (k >= 0 && k < all.centroids) {
      few_distances<kCosine, kWidth, 1, 1>(all, index, n0 + row, k, lane, InShared<1>{own + row});
    } else if (lane == 0) {
      own[row] = from_bits(0x7fc00000u);
    }
    if (part == 0 && lane == 0) *reading_of(args, n0 + row, index) = own[row];
  }
#pragma unroll 1
  for (int first = part * static_cast<int>(args.part); first < end; first += kTile) {
    if constexpr (kTiled) {
      tile_distances<kCosine>(all, index, n0, first, InTile<kTile + 1>{{found[0]}, &index, &n0});
    } else {
#pragma unroll 1
      for (int column = warp * kColumns; column < kTile && first + column < end; column += kCentroids)
        few_distances<kCosine, kWidth, kRows, kColumns>(all, index, n0, first + column, lane,
                                                        InShared<kTile + 1>{found[0] + column});
    }
    __syncthreads();  // the distances, and before them those to the own classes, are written
#pragma unroll 1
    for (int row = warp * kEach; row < (warp + 1) * kEach; ++row) {
      if (!mine(row) || first + lane >= end) continue;
      const float value = found[row][lane];
      const float before = least[row][lane];
      const bool lower = value < before;
      const float other = lower ? before : value;
      if (lower) least[row][lane] = value;
      if (other < second[row][lane]) second[row][lane] = other;
      sum[row][lane] += static_cast<double>(value);
      if (!args.choose) place[row][lane] += value < own[row];
      else if (lower) place[row][lane] = first + lane;
    }
    __syncthreads();  // the distances have been read
  }
#pragma unroll 1
  for (int row = warp * kEach; row < (warp + 1) * kEach; ++row) {
    if (!mine(row)) continue;
    const Seen seen = {sum[row][lane], static_cast<double>(least[row][lane]), static_cast<double>(second[row][lane]),
                       static_cast<double>(place[row][lane])};
    const Seen together = seen_by_warp(seen, args.choose);
    if (lane == 0) seen_of(args, index, part)[n0 + row] = together;
  }
  __syncthreads();  // where the block is has been read
}

template <bool kCosine, int kWidth>
__global__ void __launch_bounds__(kThreads, 2) relative_kernel(const __grid_constant__ RelativeArgs args) {
  for (int64_t task = blockIdx.x; task < args.distances.tasks; task += gridDim.x)
    see_part<kCosine, false, kWidth>(args, task);
}

template <bool kCosine>
__global__ void __launch_bounds__(kTileThreads, 1) relative_tile_kernel(const __grid_constant__ RelativeArgs args) {
  see_part<kCosine, true, 4>(args, args.distances.tasks - 1 - blockIdx.x);  // the last layers have the most channels
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
    const auto kernel = relative_tile_kernel<kCosine>;
    const cudaError_t room = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kTileMemory);
    if (room != cudaSuccess) return room;
    kernel<<<static_cast<unsigned>(all.tasks), kTileThreads, kTileMemory, queue>>>(args);
  } else if (wide) {
    relative_kernel<kCosine, 4><<<grid, kThreads, 0, queue>>>(args);
  } else {
    relative_kernel<kCosine, 1><<<grid, kThreads, 0, queue>>>(args);
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
