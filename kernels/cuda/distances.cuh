// What the kernels of the distances to centroids and of their derivative share.
#pragma once

#include "common/centroid_distances.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {

constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;  // lanes of a warp

// 1 / norm of every vector, into args.scales.
void scale_vectors(DistanceArgs args, cudaStream_t queue);

// What follows is for vectors whose squares float32 cannot add up: a warp makes them again in double.
__device__ __forceinline__ double wide_inverse_norm(const float* vector, int64_t channels, float scale, int lane) {
  return scale < 0.0f ? wide_inverse(warp_sum(wide_squares(vector, channels, lane, 32))) : static_cast<double>(scale);
}

// The blocks of a launch over layers cut into tiles.
template <class TasksOf>
unsigned plan(DistanceArgs& args, int64_t tile, TasksOf tasks_of) {
  for (int i = 0; i < args.layers; ++i) args.layer[i].tile = tile;
  number_tasks(args, tasks_of);
  return grid_for(args.tasks);
}

}  // namespace fastadv::cuda
