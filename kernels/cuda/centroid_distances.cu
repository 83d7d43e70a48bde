#include "common/centroid_distances.h"

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kRows = 4;                      // features of a task
constexpr int kColumns = 2;                   // centroids of a warp
constexpr int kCentroids = kColumns * kWarps;  // of a task
constexpr int kChannels = 32;                 // of a task of the derivative

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

// What follows is for vectors whose squares float32 cannot add up: a warp makes them again in double.
__device__ __forceinline__ double wide_inverse_norm(const float* vector, int64_t channels, float scale, int lane) {
  return scale < 0.0f ? wide_inverse(warp_sum(wide_squares(vector, channels, lane, 32))) : static_cast<double>(scale);
}

// Of the distances of a warp those that are marked. Behind the loops of the kernel, whose registers it may have.
template <bool kCosine>
__device__ __forceinline__ void measure_again(const DistanceArgs& args, int index, int64_t n0, int64_t k0, int lane) {
  const DistanceLayer& layer = args.layer[index];
#pragma unroll 1
  for (int pair = 0; pair < kRows * kColumns; ++pair) {
    const int64_t n = n0 + pair / kColumns;
    const int64_t k = k0 + pair % kColumns;
    if (n >= args.images || k >= args.centroids) continue;
    float* out = args.out + distance_row(args, n, index) + k;
    if (*out != kMeasureAgain) continue;
    const float* feature = layer.features + n * layer.feature_stride;
    const float* centroid = layer.centroids + k * layer.centroid_stride;
    float f_scale = 1.0f;
    float c_scale = 1.0f;
    double f = 1.0;
    double c = 1.0;
    if constexpr (kCosine) {
      f_scale = feature_scales(args, index)[n];
      c_scale = centroid_scales(args, index)[k];
      f = wide_inverse_norm(feature, layer.channels, f_scale, lane);
      c = wide_inverse_norm(centroid, layer.channels, c_scale, lane);
    }
    const double squares = warp_sum(wide_difference(feature, f, centroid, c, layer.channels, lane, 32));
    __syncwarp();  // all of the warp have read the mark
    if (lane == 0) *out = kCosine ? finish_cosine(squares, f_scale, c_scale) : finish_l2(squares);
  }
}

// The derivative of one channel of a lane, by the cosine.
__device__ __forceinline__ float wide_gradient(const DistanceArgs& args, int index, int64_t n, int64_t channel, int lane) {
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

// A task is kRows features by kCentroids centroids of one layer; a warp has kColumns of the centroids. Rows and
// centroids past the end repeat the last one and are not written.
template <bool kCosine, int kWidth>
__global__ void __launch_bounds__(kThreads, 3) distances_kernel(const __grid_constant__ DistanceArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t row_tiles = parts(args.images, kRows);
  for (int64_t task = blockIdx.x; task < args.tasks; task += gridDim.x) {
    const int index = layer_of(args, task);
    const DistanceLayer& layer = args.layer[index];
    const int64_t local = task - layer.first_task;
    const int64_t tile = local / row_tiles;
    const int64_t n0 = (local - tile * row_tiles) * kRows;
    const int64_t k0 = tile * layer.tile + int64_t{warp} * kColumns;
    if (k0 >= args.centroids) continue;
    const float* feature[kRows];
    const float* centroid[kColumns];
    [[maybe_unused]] float f_scale[kRows];
    [[maybe_unused]] float c_scale[kColumns];
    float sum[kRows][kColumns] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t n = n0 + r < args.images ? n0 + r : args.images - 1;
      feature[r] = layer.features + n * layer.feature_stride;
      if constexpr (kCosine) f_scale[r] = feature_scales(args, index)[n];
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t k = k0 + c < args.centroids ? k0 + c : args.centroids - 1;
      centroid[c] = layer.centroids + k * layer.centroid_stride;
      if constexpr (kCosine) c_scale[c] = centroid_scales(args, index)[k];
    }
#pragma unroll 1
    for (int64_t i = int64_t{lane} * kWidth; i < layer.channels; i += 32 * kWidth) {
      Pack<float, kWidth> c[kColumns];
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        c[k] = load<float, kWidth>(centroid[k] + i);
        if constexpr (kCosine)
          for (int j = 0; j < kWidth; ++j) c[k].item[j] *= c_scale[k];
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        auto f = load<float, kWidth>(feature[r] + i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          if constexpr (kCosine) f.item[j] *= f_scale[r];
#pragma unroll
          for (int k = 0; k < kColumns; ++k) sum[r][k] = add_square(sum[r][k], f.item[j] - c[k].item[j]);
        }
      }
    }
    bool odd = false;  // the same for all of the warp
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float squares = warp_sum(sum[r][c]);
        if (n0 + r >= args.images || k0 + c >= args.centroids) continue;
        bool lost;
        if constexpr (kCosine) lost = f_scale[r] < 0.0f || c_scale[c] < 0.0f;
        else lost = lost_digits(static_cast<double>(squares));
        odd |= lost;
        if (lane != 0) continue;
        float* out = args.out + distance_row(args, n0 + r, index) + k0 + c;
        if (lost) *out = kMeasureAgain;
        else if constexpr (kCosine) *out = finish_cosine(static_cast<double>(squares), f_scale[r], c_scale[c]);
        else *out = sqrtf(squares);
      }
    }
    if (odd) {
      __syncwarp();  // the marks are written
      measure_again<kCosine>(args, index, n0, k0, lane);
    }
  }
}

// A task is kChannels channels of one feature; every warp takes each eighth centroid.
template <bool kCosine>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ DistanceArgs args) {
  __shared__ float sums[kWarps][32];
  __shared__ float weights[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t task = blockIdx.x; task < args.tasks; task += gridDim.x) {
    const int index = layer_of(args, task);
    const DistanceLayer& layer = args.layer[index];
    const int64_t local = task - layer.first_task;
    const int64_t tile = local / args.images;
    const int64_t n = local - tile * args.images;
    const int64_t channel = tile * layer.tile + lane;
    const bool inside = channel < layer.channels;
    const float* grad = args.grad + distance_row(args, n, index);
    const float* distances = args.distances + distance_row(args, n, index);
    const float f_scale = kCosine ? feature_scales(args, index)[n] : 1.0f;
    const float* c_scales = kCosine ? centroid_scales(args, index) : nullptr;
    const float* centroid = layer.centroids + (inside ? channel : 0);
    const float feature = inside ? layer.features[n * layer.feature_stride + channel] : 0.0f;
    const float unit = kCosine ? feature * f_scale : feature;
    float sum = 0.0f;
    float weighted = 0.0f;
    [[maybe_unused]] bool odd = kCosine && f_scale < 0.0f;
    for (int64_t k = warp; k < args.centroids; k += kWarps) {
      const float value = centroid[k * layer.centroid_stride];
      if constexpr (kCosine) {
        odd |= c_scales[k] < 0.0f;
        const float weight = weight_cosine(grad[k], c_scales[k]);
        sum += weight * (unit - value * c_scales[k]);
        weighted += weight * distances[k];
      } else {
        const float apart = unit - value;
        const bool far = extreme(distances[k]);
        sum += weight_l2(far ? apart : grad[k], distances[k]) * (far ? grad[k] : apart);
      }
    }
    // The sums of the task before have been read.
    if constexpr (kCosine) odd = __syncthreads_or(odd);
    else __syncthreads();
    sums[warp][lane] = sum;
    if (lane == 0) weights[warp] = weighted;
    __syncthreads();
    if (warp != 0) continue;
    if constexpr (kCosine) {
      if (odd) {
        const float made = wide_gradient(args, index, n, inside ? channel : 0, lane);
        if (inside) args.out[n * args.row + layer.column + channel] = made;
        continue;
      }
    }
    if (!inside) continue;
    double total = 0.0;
    double share = 0.0;
    for (int i = 0; i < kWarps; ++i) {
      total += static_cast<double>(sums[i][lane]);
      share += static_cast<double>(weights[i]);
    }
    args.out[n * args.row + layer.column + channel] =
        kCosine ? finish_gradient_cosine(total, share, unit, f_scale) : static_cast<float>(total);
  }
}

bool wide_rows(const DistanceArgs& args) {
  for (int i = 0; i < args.layers; ++i) {
    const DistanceLayer& layer = args.layer[i];
    if (!aligned(layer.features) || !aligned(layer.centroids)) return false;
    if (layer.channels % 4 != 0 || layer.feature_stride % 4 != 0 || layer.centroid_stride % 4 != 0) return false;
  }
  return true;
}

template <class TasksOf>
unsigned plan(DistanceArgs& args, int64_t tile, TasksOf tasks_of) {
  for (int i = 0; i < args.layers; ++i) args.layer[i].tile = tile;
  number_tasks(args, tasks_of);
  return grid_for(args.tasks);
}

void scale(DistanceArgs args, cudaStream_t queue) {
  const auto grid = plan(args, kWarps, [&](const DistanceLayer& layer) {
    return parts(args.centroids + args.images, layer.tile);
  });
  scales_kernel<<<grid, kThreads, 0, queue>>>(args);
}

template <bool kCosine>
void measure(DistanceArgs args, cudaStream_t queue) {
  const auto grid = plan(args, kCentroids, [&](const DistanceLayer& layer) {
    return parts(args.centroids, layer.tile) * parts(args.images, kRows);
  });
  if (wide_rows(args)) distances_kernel<kCosine, 4><<<grid, kThreads, 0, queue>>>(args);
  else distances_kernel<kCosine, 1><<<grid, kThreads, 0, queue>>>(args);
}

}  // namespace

int centroid_distances(const DistanceArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (args.metric == kMetricCosine) {
    scale(args, queue);
    measure<true>(args, queue);
  } else {
    measure<false>(args, queue);
  }
  return cudaGetLastError();
}

int centroid_gradient(const DistanceArgs& args, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (args.metric == kMetricCosine) scale(args, queue);
  DistanceArgs own = args;
  const auto grid =
      plan(own, kChannels, [&](const DistanceLayer& layer) { return own.images * parts(layer.channels, layer.tile); });
  if (args.metric == kMetricCosine) gradient_kernel<true><<<grid, kThreads, 0, queue>>>(own);
  else gradient_kernel<false><<<grid, kThreads, 0, queue>>>(own);
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
