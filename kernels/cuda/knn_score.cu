#include "common/knn_score.h"

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {
namespace {

// One warp for one row.
__global__ void __launch_bounds__(kThreads) knn_score_kernel(const KnnScoreArgs args) {
  constexpr int64_t kWarps = kThreads / 32;
  const int64_t lane = threadIdx.x % 32;
  for (int64_t row = blockIdx.x * kWarps + threadIdx.x / 32; row < args.rows; row += gridDim.x * kWarps) {
    const float* distances = args.distances + row * args.distance_stride;
    const int64_t* labels = args.labels + row * args.label_stride;
    const int64_t predicted = args.predicted[row];
    bool zero = false;
    if (args.weighting == kInverseSquare) {
      for (int64_t i = lane; i < args.neighbours; i += 32) zero |= distances[i] == 0.0f;
      zero = __any_sync(0xffffffffu, zero) != 0;
    }
    double all = 0.0;
    double same = 0.0;
    // unrolled, the float64 divisions side by side spill registers
#pragma unroll 1
    for (int64_t i = lane; i < args.neighbours; i += 32) {
      const double weight = neighbour_weight(args.weighting, i, distances[i], zero);
      all += weight;
      same += labels[i] == predicted ? weight : 0.0;
    }
    all = warp_sum(all);
    same = warp_sum(same);
    if (lane == 0) args.out[row] = static_cast<float>(same / all);
  }
}

}  // namespace

int knn_score(const KnnScoreArgs& args, void* stream) {
  const auto grid = grid_for((args.rows + kThreads / 32 - 1) / (kThreads / 32));
  knn_score_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
