// Compiled once per instruction set, see sign_step.cpp. Distances to centroids.
#include "cpu/distance_blocks.h"
#include "cpu/kernels.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

template <bool kCosine>
void distances_of(const DistanceArgs& args, int64_t task) {
  const int index = layer_of(args, task);
  const DistanceLayer& layer = args.layer[index];
  const int64_t first = (task - layer.first_task) * layer.tile;
  const int64_t last = smaller(args.centroids, first + layer.tile);
  const float* c_scales = kCosine ? centroid_scales(args, index) : nullptr;
  const float* f_scales = kCosine ? feature_scales(args, index) : nullptr;
  for (int64_t rows = 0; rows < args.images; rows += kRows) {
    for (int64_t k = first; k < last; k += kGroup) {
      const int64_t count = smaller(kGroup, last - k);
      measure_rows<kCosine>(layer, f_scales, group_of(layer, c_scales, k, count), rows,
                            smaller(args.images - rows, kRows), count, args.out + distance_row(args, rows, index) + k,
                            args.all_layers * args.centroids);
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

}  // namespace

void centroid_scales_task(const DistanceArgs& args, int64_t task) {
  const int index = layer_of(args, task);
  const DistanceLayer& layer = args.layer[index];
  const int64_t first = (task - layer.first_task) * layer.tile;
  const int64_t last = smaller(args.centroids + args.images, first + layer.tile);
  float* scales = centroid_scales(args, index);
  for (int64_t i = first; i < last; ++i) {
    const float* vector = scaled_vector(args, layer, i);
    scales[i] = inverse_norm(squared_norm(vector, layer.channels));
    if (scales[i] < 0.0f && wide_squares(vector, layer.channels, 0, 1) == 0.0) scales[i] = 0.0f;
  }
}

void centroid_distances_task(const DistanceArgs& args, int64_t task) {
  if (args.metric == kMetricCosine) return distances_of<true>(args, task);
  distances_of<false>(args, task);
}

}  // namespace fastadv::cpu::FASTADV_ISA
