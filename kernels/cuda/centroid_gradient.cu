// The derivative of distances to centroids: the product of the weights (images, centroids) and the differences
// (centroids, channels). Centroids whose weight is zero for all images of a task are passed over: in an attack on a
// gallery nearly all.
#include "cuda/distances.cuh"
#include "cuda/launch.h"

namespace fastadv::cuda {
namespace {

constexpr int kImages = kWarps;  // of a task, whose end is a warp's for each
constexpr int kChannels = 64;    // of a task: two of a lane
constexpr int kTerms = 32;       // centroids at a time, whose sum is a number of its own: the weights of one a lane

// The derivative of one channel of a lane, by the cosine.
__device__ __forceinline__ float wide_gradient(const DistanceArgs& args, int index, int64_t n, int64_t channel,
                                               int lane) {
  const DistanceLayer& layer = args.layer[index];
  const float* feature = layer.features + n * layer.feature_stride;
  const float* grad = args.grad + distance_row(args, n, index);
  const float* distances = args.distances + distance_row(args, n, index);
  const double f_scale = wide_inverse_norm(feature, layer.channels, feature_scales(args, index)[n], lane);
  const double unit = static_cast<double>(feature[channel]) * f_scale;
  double total = 0.0;
  double weighted = 0.0;
#pragma unroll 1
  for (int64_t k = 0; k < args.centroids; ++k) {
    const float* centroid = layer.centroids + k * layer.centroid_stride;
    const float given = centroid_scales(args, index)[k];
    const double weight = static_cast<double>(weight_cosine(grad[k], given));
    const double c_scale = wide_inverse_norm(centroid, layer.channels, given, lane);
    weighted += weight * static_cast<double>(distances[k]);
    total += weight * (unit - static_cast<double>(centroid[channel]) * c_scale);
  }
  return static_cast<float>((total - weighted * unit) * f_scale);
}

// Every warp takes each eighth group of centroids. An image's sums do not depend on the other images of its task.
template <bool kCosine>
__global__ void __launch_bounds__(kThreads, 2) gradient_kernel(const __grid_constant__ DistanceArgs args) {
  __shared__ Pack<float, kImages> weights[kWarps][kTerms];
  __shared__ float sums[kWarps][kImages][kChannels];
  __shared__ float shares[kWarps][kImages];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row_tiles = parts(args.images, kImages);
  for (int64_t task = blockIdx.x; task < args.tasks; task += gridDim.x) {
    const int index = layer_of(args, task);
    const DistanceLayer& layer = args.layer[index];
    const int64_t local = task - layer.first_task;
    const int64_t tile = local / row_tiles;
    const int64_t n0 = (local - tile * row_tiles) * kImages;
    const int64_t rows = args.images - n0 < kImages ? args.images - n0 : kImages;
    const float* f_scales = kCosine ? feature_scales(args, index) : nullptr;
    const float* c_scales = kCosine ? centroid_scales(args, index) : nullptr;
    int64_t channel[2];
    float unit[kImages][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      channel[i] = tile * kChannels + 32 * i + lane;
      if (channel[i] >= layer.channels) channel[i] = layer.channels - 1;  // not written
#pragma unroll
      for (int r = 0; r < kImages; ++r) {
        const int64_t n = r < rows ? n0 + r : n0;  // likewise
        unit[r][i] = layer.features[n * layer.feature_stride + channel[i]] * (kCosine ? f_scales[n] : 1.0f);
      }
    }
    float total[kImages][2] = {};
    [[maybe_unused]] float share[kImages] = {};  // cosine: sum_k w_k d_k
    [[maybe_unused]] bool odd = false;
    for (int64_t begin = int64_t{warp} * kTerms; begin < args.centroids; begin += kWarps * kTerms) {
      const int64_t k = begin + lane;
      const bool inside = k < args.centroids;
      const float scale = kCosine && inside ? c_scales[k] : 1.0f;
      bool needed = scale != scale;  // a centroid that is no number makes no number of the derivative
      [[maybe_unused]] bool far = false;
      Pack<float, kImages> own = {};
#pragma unroll
      for (int r = 0; r < kImages; ++r) {
        if (!inside || r >= rows) continue;
        const int64_t at = distance_row(args, n0 + r, index) + k;
        const float grad = args.grad[at];
        const float distance = args.distances[at];
        if constexpr (kCosine) {
          own.item[r] = weight_cosine(grad, scale);
          share[r] += own.item[r] * distance;
        } else if (extreme(distance)) {
          far = true;
        } else {
          own.item[r] = weight_l2(grad, distance);
        }
        needed |= own.item[r] != 0.0f;
      }
      odd |= scale < 0.0f;
      weights[warp][lane] = own;
      unsigned left = __ballot_sync(kAll, needed);
      __syncwarp();  // the weights are written
      float sum[kImages][2] = {};
      const auto add = [&](int j) {
        const float* centroid = layer.centroids + (begin + j) * layer.centroid_stride;
        const float along = kCosine ? __shfl_sync(kAll, scale, j) : 1.0f;
        const float first = centroid[channel[0]] * along;
        const float second = centroid[channel[1]] * along;
        const Pack<float, kImages> weight = weights[warp][j];
#pragma unroll
        for (int r = 0; r < kImages; ++r) {
          sum[r][0] = __fmaf_rn(weight.item[r], unit[r][0] - first, sum[r][0]);
          sum[r][1] = __fmaf_rn(weight.item[r], unit[r][1] - second, sum[r][1]);
        }
      };
      if (left == kAll) {
#pragma unroll 4
        for (int j = 0; j < kTerms; ++j) add(j);
      } else {
        for (; left != 0; left &= left - 1) add(__ffs(static_cast<int>(left)) - 1);
      }
#pragma unroll
      for (int r = 0; r < kImages; ++r) {
        total[r][0] += sum[r][0];
        total[r][1] += sum[r][1];
      }
      if constexpr (!kCosine) {
#pragma unroll 1
        for (left = __ballot_sync(kAll, far); left != 0; left &= left - 1) {
          const int64_t other = begin + __ffs(static_cast<int>(left)) - 1;
          const float* centroid = layer.centroids + other * layer.centroid_stride;
#pragma unroll
          for (int r = 0; r < kImages; ++r) {
            const int64_t at = distance_row(args, r < rows ? n0 + r : n0, index) + other;
            const float distance = args.distances[at];
            if (r >= rows || !extreme(distance)) continue;
#pragma unroll
            for (int i = 0; i < 2; ++i)
              total[r][i] += args.grad[at] * ((unit[r][i] - centroid[channel[i]]) / distance);
          }
        }
      }
      __syncwarp();  // the weights have been read
    }
    // The sums of the task before have been read.
    if constexpr (kCosine) odd = __syncthreads_or(odd);
    else __syncthreads();
#pragma unroll
    for (int r = 0; r < kImages; ++r) {
      sums[warp][r][lane] = total[r][0];
      sums[warp][r][lane + 32] = total[r][1];
      if constexpr (kCosine) share[r] = warp_sum(share[r]);
      if (lane == 0) shares[warp][r] = share[r];
    }
    __syncthreads();
    if (warp >= rows) continue;
    const int64_t n = n0 + warp;
    const float f_scale = kCosine ? f_scales[n] : 1.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      double sum = 0.0;
      double all_shares = 0.0;
      for (int w = 0; w < kWarps; ++w) {
        sum += static_cast<double>(sums[w][warp][lane + 32 * i]);
        all_shares += static_cast<double>(shares[w][warp]);
      }
      float made = static_cast<float>(sum);
      if constexpr (kCosine) {
        const float own = layer.features[n * layer.feature_stride + channel[i]] * f_scale;
        made = odd || f_scale < 0.0f ? wide_gradient(args, index, n, channel[i], lane)
                                     : finish_gradient_cosine(sum, all_shares, own, f_scale);
      }
      const int64_t place = tile * kChannels + 32 * i + lane;
      if (place < layer.channels) args.out[n * args.row + layer.column + place] = made;
    }
  }
}

}  // namespace

int centroid_gradient(const DistanceArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (args.metric == kMetricCosine) scale_vectors(args, queue);
  DistanceArgs own = args;
  const auto grid = plan(own, kChannels, [&](const DistanceLayer& layer) {
    return parts(own.images, kImages) * parts(layer.channels, layer.tile);
  });
  if (args.metric == kMetricCosine) gradient_kernel<true><<<grid, kThreads, 0, queue>>>(own);
  else gradient_kernel<false><<<grid, kThreads, 0, queue>>>(own);
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
