// centroid_distances: from every feature to every centroid of its layer, and the derivative. The arithmetic, once,
// for C++ and CUDA. Differences first: d(x, x) = 0, and no cancellation between large squares.
#pragma once

#include <cmath>

#include "common/layers.h"

namespace fastadv {

enum Metric : int { kMetricL2 = 0, kMetricCosine = 1 };

struct DistanceLayer {
  const float* features;   // (images, channels), rows feature_stride apart
  const float* centroids;  // (centroids, channels), rows centroid_stride apart
  int64_t channels;
  int64_t feature_stride;
  int64_t centroid_stride;
  int64_t column;  // where the layer begins in a row of all layers' channels
  int64_t tile;    // of one task: centroids, vectors or channels, as the pass wants it
  int64_t first_task;
};

struct DistanceArgs {
  DistanceLayer layer[kMaxLayers];
  float* out;              // forward: (images, all_layers, centroids); backward: (images, row)
  const float* grad;       // backward: (images, all_layers, centroids)
  const float* distances;  // backward: the same shape
  float* scales;           // cosine: (all_layers, centroids + images), 1 / norm of every vector, see inverse_norm
  int64_t images;
  int64_t centroids;
  int64_t row;
  int64_t first_layer;  // of this launch among all layers
  int64_t all_layers;
  int64_t tasks;
  int layers;
  int metric;
};

static FASTADV_HD float square(float value) { return value * value; }

// Fused where the hardware does it: half the work of the inner loop. A distance is not the same bits everywhere.
static FASTADV_HD float add_square(float sum, float difference) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(difference, difference, sum);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(difference, difference, sum);
#else
  return sum + difference * difference;
#endif
}

// Sums of float32 squares from here on have their digits, though squares below the smallest normal number may not. Those
// below it, and those that have overflowed, are made again in double, where no square of a float32 does either.
constexpr float kLeastSquares = 1e-28f;
constexpr float kMostSquares = 3.40282347e38f;

static FASTADV_HD bool lost_digits(double squares) {
  return static_cast<int>(squares < kLeastSquares) | static_cast<int>(squares > kMostSquares);
}

// 1 / norm of a vector; kMeasureAgain where its squares have lost digits; 0 of a zero vector, which has no direction (that
// the caller looks for); NaN where the vector holds one.
constexpr float kMeasureAgain = -1.0f;

static FASTADV_HD float inverse_norm(float squares) {
  return lost_digits(static_cast<double>(squares)) ? kMeasureAgain : 1.0f / sqrtf(squares);
}

// The same in double from exact squares. On a GPU, roots and quotients that round to nearest are calls, for which the
// kernel's own registers would be spilled: there a root of float32, of squares in the middle of its range, and a step of
// Newton.
static FASTADV_HD double wide_inverse(double squares) {
  if (squares == 0.0) return 0.0;
#if defined(__CUDA_ARCH__)
  constexpr double kUp = 79228162514264337593543950336.0;  // 2^96
  double scale = 1.0;
  if (squares < 1e-28) scale = kUp;
  if (squares > 1e28) scale = 1.0 / kUp;
  const double middle = squares * scale * scale;
  const double near = static_cast<double>(rsqrtf(static_cast<float>(middle)));
  return scale * (near * (1.5 - 0.5 * middle * near * near));
#else
  return 1.0 / sqrt(squares);
#endif
}

// What a thread of `step` adds to a squared norm, and to a squared difference of scaled vectors. Not unrolled on a GPU: the
// registers would be missing where it matters.
#if defined(__CUDA_ARCH__)
#define FASTADV_ROLLED _Pragma("unroll 1")
#else
#define FASTADV_ROLLED
#endif
static FASTADV_HD double wide_squares(const float* vector, int64_t channels, int64_t from, int64_t step) {
  double total = 0.0;
  FASTADV_ROLLED
  for (int64_t i = from; i < channels; i += step)
    total += static_cast<double>(vector[i]) * static_cast<double>(vector[i]);
  return total;
}

static FASTADV_HD double wide_difference(const float* f, double f_scale, const float* c, double c_scale,
                                         int64_t channels, int64_t from, int64_t step) {
  double total = 0.0;
  FASTADV_ROLLED
  for (int64_t i = from; i < channels; i += step) {
    const double apart = static_cast<double>(f[i]) * f_scale - static_cast<double>(c[i]) * c_scale;
    total += apart * apart;
  }
  return total;
}

// The same of a vector whose inverse norm in float32 is `scale`, or kMeasureAgain.
static FASTADV_HD double wide_inverse_norm(const float* vector, int64_t channels, float scale) {
  return scale < 0.0f ? wide_inverse(wide_squares(vector, channels, 0, 1)) : static_cast<double>(scale);
}

// L2: the root of the squared difference. Cosine: 1 - cos(f, c) = |f/|f| - c/|c||^2 / 2; 1 where a vector is zero.
static FASTADV_HD float finish_l2(double squares) { return static_cast<float>(sqrt(squares)); }
static FASTADV_HD float finish_cosine(double squares, float f_scale, float c_scale) {
  return f_scale == 0.0f || c_scale == 0.0f ? 1.0f : static_cast<float>(0.5 * squares);
}

// What multiplies the difference of feature and centroid in the derivative.
static FASTADV_HD float weight_l2(float grad, float distance) { return distance == 0.0f ? 0.0f : grad / distance; }
static FASTADV_HD float weight_cosine(float grad, float c_scale) { return c_scale == 0.0f ? 0.0f : grad; }

// Whether grad / distance may leave float32, so that the difference, which is no larger, is to be divided instead.
static FASTADV_HD bool extreme(float distance) {
  return (distance > 0.0f && distance < 1e-14f) || (distance > 1e14f);
}

// With u = f/|f|, v_k = c_k/|c_k|: the derivative of sum_k g_k d_k is (sum_k g_k (u - v_k) - u sum_k g_k d_k) / |f|.
static FASTADV_HD float finish_gradient_cosine(double sum, double weighted, float unit, float f_scale) {
  return static_cast<float>((sum - weighted * static_cast<double>(unit)) * static_cast<double>(f_scale));
}

static FASTADV_HD float* centroid_scales(const DistanceArgs& args, int layer) {
  return args.scales + (args.first_layer + layer) * (args.centroids + args.images);
}
static FASTADV_HD float* feature_scales(const DistanceArgs& args, int layer) {
  return centroid_scales(args, layer) + args.centroids;
}

// Row of one image and one layer in what is shaped (images, all_layers, centroids).
static FASTADV_HD int64_t distance_row(const DistanceArgs& args, int64_t image, int layer) {
  return (image * args.all_layers + args.first_layer + layer) * args.centroids;
}

// The vector that is scaled at `index` of a layer's scales: centroids first, then features.
static FASTADV_HD const float* scaled_vector(const DistanceArgs& args, const DistanceLayer& layer, int64_t index) {
  return index < args.centroids ? layer.centroids + index * layer.centroid_stride
                                : layer.features + (index - args.centroids) * layer.feature_stride;
}

}  // namespace fastadv
