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
  float* scales;           // cosine: (all_layers, centroids + images), 1 / norm of every vector, 0 for a zero vector
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

// A vector whose squared norm is below the smallest normal float32 counts as zero: it has no direction.
static FASTADV_HD float inverse_norm(float squares) {
  return squares < 1.17549435e-38f ? 0.0f : 1.0f / sqrtf(squares);
}

// L2: the root of the squared difference. Cosine: 1 - cos(f, c) = |f/|f| - c/|c||^2 / 2; 1 where a vector is zero.
static FASTADV_HD float finish_l2(double squares) { return static_cast<float>(sqrt(squares)); }
static FASTADV_HD float finish_cosine(double squares, float f_scale, float c_scale) {
  return f_scale == 0.0f || c_scale == 0.0f ? 1.0f : static_cast<float>(0.5 * squares);
}

// What multiplies the difference of feature and centroid in the derivative.
static FASTADV_HD float weight_l2(float grad, float distance) { return distance == 0.0f ? 0.0f : grad / distance; }
static FASTADV_HD float weight_cosine(float grad, float c_scale) { return c_scale == 0.0f ? 0.0f : grad; }

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
