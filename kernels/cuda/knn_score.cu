#include "common/knn_score.h"

#include <cmath>

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {
namespace {

constexpr int kAhead = 8;  // neighbours of a lane that are read before the first is weighed

// 1 / value for a value that is neither zero nor infinite, to the last bit but one: an estimate of 20 bits and two steps
// of Newton. A division of float64 takes three times as many instructions.
__device__ __forceinline__ double inverse(double value) {
  double guess;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(guess) : "d"(value));
  guess = fma(fma(-value, guess, 1.0), guess, guess);
  return fma(fma(-value, guess, 1.0), guess, guess);
}

// Of a neighbour at a distance above zero, as neighbour_weight().
template <int kWeighting>
__device__ __forceinline__ double weight_of(int64_t index, float distance) {
  if constexpr (kWeighting == kUniform) return 1.0;
  if constexpr (kWeighting == kRank) return inverse(static_cast<double>(index + 1));
  const double wide = static_cast<double>(distance);
  return distance == INFINITY ? 0.0 : inverse(wide * wide);
}

// One warp for one row, read once: neighbours at distance zero are counted beside the weights of the others.
template <int kWeighting>
__global__ void __launch_bounds__(kThreads, 4) knn_score_kernel(const KnnScoreArgs args) {
  constexpr int64_t kWarps = kThreads / 32;
  const int64_t lane = threadIdx.x % 32;
  for (int64_t row = blockIdx.x * kWarps + threadIdx.x / 32; row < args.rows; row += gridDim.x * kWarps) {
    const float* distances = args.distances + row * args.distance_stride;
    const int64_t* labels = args.labels + row * args.label_stride;
    const int64_t predicted = args.predicted[row];
    double all = 0.0;
    double same = 0.0;
    int zeros = 0;
    int same_zeros = 0;
    for (int64_t begin = lane; begin < args.neighbours; begin += 32 * kAhead) {
      float distance[kAhead];
      bool hit[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int64_t i = begin + 32 * k;
        const bool inside = i < args.neighbours;
        distance[k] = inside ? distances[i] : INFINITY;
        hit[k] = inside && labels[i] == predicted;
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int64_t i = begin + 32 * k;
        if (i >= args.neighbours) break;
        const bool zero = kWeighting == kInverseSquare && distance[k] == 0.0f;
        const double weight = zero ? 0.0 : weight_of<kWeighting>(i, distance[k]);
        all += weight;
        same += hit[k] ? weight : 0.0;
        zeros += zero;
        same_zeros += zero && hit[k];
      }
    }
    all = warp_sum(all);
    same = warp_sum(same);
    zeros = warp_sum(zeros);
    same_zeros = warp_sum(same_zeros);
    if (lane != 0) continue;
    if (zeros != 0) {  // they vote alone, all alike
      all = static_cast<double>(zeros);
      same = static_cast<double>(same_zeros);
    }
    args.out[row] = static_cast<float>(same / all);
  }
}

}  // namespace

int knn_score(const KnnScoreArgs& args, void* stream) {
  const auto grid = grid_for((args.rows + kThreads / 32 - 1) / (kThreads / 32));
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (args.weighting) {
    case kUniform: knn_score_kernel<kUniform><<<grid, kThreads, 0, queue>>>(args); break;
    case kRank: knn_score_kernel<kRank><<<grid, kThreads, 0, queue>>>(args); break;
    default: knn_score_kernel<kInverseSquare><<<grid, kThreads, 0, queue>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
