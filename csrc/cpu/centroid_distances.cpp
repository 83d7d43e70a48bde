// Compiled once per instruction set, see sign_step.cpp. Distances to centroids and their derivative.
#include "common/centroid_distances.h"

#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int64_t kGroup = 4;    // centroids measured at a time: the feature is loaded once for all of them
constexpr int64_t kRows = 32;    // features that stay in the cache while the centroids of a task pass by
constexpr int64_t kWidth = 128;  // channels of the derivative made at a time
constexpr int64_t kTerms = 64;   // centroids whose sum stays in float32

struct Group {
  const float* row[kGroup];
  float scale[kGroup];
};

// Adds the squared differences of `length` channels of f and of four centroids from channel `begin` on. One array of
// lanes each: an array of arrays would not stay in registers. `ahead`: how far the centroids of the next group are,
// which kFetch fetches meanwhile.
template <bool kScaled, bool kFetch>
void add_squares(const float* __restrict x, float f_scale, const Group& group, int64_t begin, int64_t length,
                 int64_t ahead, double* total) {
  const float s0 = group.scale[0], s1 = group.scale[1], s2 = group.scale[2], s3 = group.scale[3];
  const int64_t whole = length / kLanes * kLanes;
  const float* __restrict c0 = group.row[0] + begin;
  const float* __restrict c1 = group.row[1] + begin;
  const float* __restrict c2 = group.row[2] + begin;
  const float* __restrict c3 = group.row[3] + begin;
  float lane0[kLanes] = {}, lane1[kLanes] = {}, lane2[kLanes] = {}, lane3[kLanes] = {};
  const auto add = [&](int64_t i, int64_t k) {
    const float v = kScaled ? x[i] * f_scale : x[i];
    lane0[k] = add_square(lane0[k], v - (kScaled ? c0[i] * s0 : c0[i]));
    lane1[k] = add_square(lane1[k], v - (kScaled ? c1[i] * s1 : c1[i]));
    lane2[k] = add_square(lane2[k], v - (kScaled ? c2[i] * s2 : c2[i]));
    lane3[k] = add_square(lane3[k], v - (kScaled ? c3[i] * s3 : c3[i]));
  };
  for (int64_t i = 0; i < whole; i += kLanes) {
    if (kFetch) {
      __builtin_prefetch(c0 + i + ahead, 0, 2);
      __builtin_prefetch(c1 + i + ahead, 0, 2);
      __builtin_prefetch(c2 + i + ahead, 0, 2);
      __builtin_prefetch(c3 + i + ahead, 0, 2);
    }
    for (int k = 0; k < kLanes; ++k) add(i + k, k);
  }
  for (int64_t i = whole; i < length; ++i) add(i, i - whole);
  total[0] += static_cast<double>(fold(lane0));
  total[1] += static_cast<double>(fold(lane1));
  total[2] += static_cast<double>(fold(lane2));
  total[3] += static_cast<double>(fold(lane3));
}

// Features [first, first + count) and a group: a block of channels at a time, so that the group's stays in the cache.
template <bool kCosine>
void measure_group(const DistanceLayer& layer, const float* f_scales, const Group& group, int64_t first, int64_t count,
                   double (*squares)[kGroup]) {
  const int64_t ahead = kGroup * layer.centroid_stride;
  for (int64_t n = 0; n < count; ++n)
    for (int64_t k = 0; k < kGroup; ++k) squares[n][k] = 0.0;
  for (int64_t begin = 0; begin < layer.channels; begin += kSumBlock) {
    const int64_t length = smaller(layer.channels - begin, kSumBlock);
    for (int64_t n = 0; n < count; ++n) {
      const float* block = layer.features + (first + n) * layer.feature_stride + begin;
      const float scale = kCosine ? f_scales[first + n] : 1.0f;
      if (n == 0) add_squares<kCosine, true>(block, scale, group, begin, length, ahead, squares[n]);
      else add_squares<kCosine, false>(block, scale, group, begin, length, ahead, squares[n]);
    }
  }
}

template <bool kCosine>
void distances_of(const DistanceArgs& args, int64_t task) {
  const int index = layer_of(args, task);
  const DistanceLayer& layer = args.layer[index];
  const int64_t first = (task - layer.first_task) * layer.tile;
  const int64_t last = smaller(args.centroids, first + layer.tile);
  const float* c_scales = kCosine ? centroid_scales(args, index) : nullptr;
  const float* f_scales = kCosine ? feature_scales(args, index) : nullptr;
  for (int64_t rows = 0; rows < args.images; rows += kRows) {
    const int64_t row_count = smaller(args.images - rows, kRows);
    for (int64_t k = first; k < last; k += kGroup) {
      const int64_t count = smaller(kGroup, last - k);
      Group group;
      for (int64_t i = 0; i < kGroup; ++i) {
        const int64_t at = k + smaller(i, count - 1);  // a short group measures its last centroid again
        group.row[i] = layer.centroids + at * layer.centroid_stride;
        group.scale[i] = kCosine ? c_scales[at] : 1.0f;
      }
      double squares[kRows][kGroup];
      measure_group<kCosine>(layer, f_scales, group, rows, row_count, squares);
      for (int64_t n = 0; n < row_count; ++n) {
        float* out = args.out + distance_row(args, rows + n, index) + k;
        for (int64_t i = 0; i < count; ++i)
          out[i] = kCosine ? finish_cosine(squares[n][i], f_scales[rows + n], group.scale[i])
                           : finish_l2(squares[n][i]);
      }
    }
  }
}

float squared_norm(const float* __restrict vector, int64_t channels) {
  double total = 0.0;
  for (int64_t begin = 0; begin < channels; begin += kSumBlock) {
    const int64_t length = smaller(channels - begin, kSumBlock);
    const int64_t whole = length / kLanes * kLanes;
    const float* __restrict block = vector + begin;
    float lane[kLanes] = {};
    for (int64_t i = 0; i < whole; i += kLanes)
      for (int k = 0; k < kLanes; ++k) lane[k] += square(block[i + k]);
    for (int64_t i = whole; i < length; ++i) lane[i - whole] += square(block[i]);
    total += static_cast<double>(fold(lane));
  }
  return static_cast<float>(total);
}

// Channels [first, first + width) of the derivative for every image: sum_k w_k (f - c_k).
template <bool kCosine>
void gradient_span(const DistanceArgs& args, int index, int64_t first, int64_t width) {
  const DistanceLayer& layer = args.layer[index];
  const float* c_scales = kCosine ? centroid_scales(args, index) : nullptr;
  for (int64_t n = 0; n < args.images; ++n) {
    const float f_scale = kCosine ? feature_scales(args, index)[n] : 1.0f;
    const float* __restrict grad = args.grad + distance_row(args, n, index);
    const float* __restrict distances = args.distances + distance_row(args, n, index);
    const float* __restrict feature = layer.features + n * layer.feature_stride + first;
    float unit[kWidth] = {};
    for (int64_t i = 0; i < width; ++i) unit[i] = kCosine ? feature[i] * f_scale : feature[i];
    double total[kWidth] = {};
    double weighted = 0.0;
    for (int64_t begin = 0; begin < args.centroids; begin += kTerms) {
      const int64_t end = smaller(args.centroids, begin + kTerms);
      float sum[kWidth] = {};
      for (int64_t k = begin; k < end; ++k) {
        const float c_scale = kCosine ? c_scales[k] : 1.0f;
        const float weight = kCosine ? weight_cosine(grad[k], c_scale) : weight_l2(grad[k], distances[k]);
        if (kCosine) weighted += static_cast<double>(weight) * static_cast<double>(distances[k]);
        const float* __restrict centroid = layer.centroids + k * layer.centroid_stride + first;
        for (int64_t i = 0; i < width; ++i)
          sum[i] += weight * (unit[i] - (kCosine ? centroid[i] * c_scale : centroid[i]));
      }
      for (int64_t i = 0; i < width; ++i) total[i] += static_cast<double>(sum[i]);
    }
    float* __restrict out = args.out + n * args.row + layer.column + first;
    for (int64_t i = 0; i < width; ++i)
      out[i] = kCosine ? finish_gradient_cosine(total[i], weighted, unit[i], f_scale) : static_cast<float>(total[i]);
  }
}

}  // namespace

void centroid_scales_task(const DistanceArgs& args, int64_t task) {
  const int index = layer_of(args, task);
  const DistanceLayer& layer = args.layer[index];
  const int64_t first = (task - layer.first_task) * layer.tile;
  const int64_t last = smaller(args.centroids + args.images, first + layer.tile);
  float* scales = centroid_scales(args, index);
  for (int64_t i = first; i < last; ++i)
    scales[i] = inverse_norm(squared_norm(scaled_vector(args, layer, i), layer.channels));
}

void centroid_distances_task(const DistanceArgs& args, int64_t task) {
  if (args.metric == kMetricCosine) return distances_of<true>(args, task);
  distances_of<false>(args, task);
}

void centroid_gradient_task(const DistanceArgs& args, int64_t task) {
  const int index = layer_of(args, task);
  const DistanceLayer& layer = args.layer[index];
  const int64_t first = (task - layer.first_task) * layer.tile;
  const int64_t last = smaller(layer.channels, first + layer.tile);
  for (int64_t begin = first; begin < last; begin += kWidth) {
    const int64_t width = smaller(kWidth, last - begin);
    if (args.metric == kMetricCosine) gradient_span<true>(args, index, begin, width);
    else gradient_span<false>(args, index, begin, width);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
