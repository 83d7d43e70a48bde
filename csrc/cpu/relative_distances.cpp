// Compiled once per instruction set, see sign_step.cpp. Distances relative to a class: reduced a block at a time.
#include "common/relative_distances.h"

#include "cpu/distance_blocks.h"
#include "cpu/kernels.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int64_t kBlock = kPartClasses;      // classes whose distances lie in the cache
constexpr int64_t kElements = 1 << 15;        // of centroids that stay in the cache while all features pass by
constexpr float kMost = __builtin_inff();

// What is seen of `count` distances, those to the classes from `first` on; behind them there is room for kBlock. Lanes,
// folded in pairs: the order of the sum depends on `count` alone.
Seen seen_in(float* __restrict found, int64_t count, int64_t first, float own, bool choose) {
  double sum[kLanes] = {};
  float least[kLanes];
  float second[kLanes];
  int32_t nearer[kLanes] = {};
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) sum[lane] += static_cast<double>(found[i + lane]);
  for (int64_t i = whole; i < count; ++i) sum[i - whole] += static_cast<double>(found[i]);
  for (int64_t i = count; i < kBlock; ++i) found[i] = kMost;
  for (int64_t lane = 0; lane < kLanes; ++lane) least[lane] = second[lane] = kMost;
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = found[i + lane];
      const float upper = value < least[lane] ? least[lane] : value;
      least[lane] = value < least[lane] ? value : least[lane];
      second[lane] = upper < second[lane] ? upper : second[lane];
      nearer[lane] += value < own;
    }
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) {
      const float a = least[lane];
      const float b = least[lane + half];
      const float upper = b < a ? a : b;
      const float lower = second[lane + half] < second[lane] ? second[lane + half] : second[lane];
      least[lane] = b < a ? b : a;
      second[lane] = upper < lower ? upper : lower;
      nearer[lane] += nearer[lane + half];
    }
  }
  int64_t place = nearer[0];
  if (choose) {
    int64_t at = 0;
    while (at + 1 < count && found[at] != least[0]) ++at;
    place = first + at;
  }
  return {fold(sum), static_cast<double>(least[0]), static_cast<double>(second[0]), static_cast<double>(place)};
}

template <bool kCosine>
void see_parts(const RelativeArgs& args, int64_t task) {
  const DistanceArgs& all = args.distances;
  const int index = layer_of(all, task);
  const DistanceLayer& layer = all.layer[index];
  const float* c_scales = kCosine ? centroid_scales(all, index) : nullptr;
  const float* f_scales = kCosine ? feature_scales(all, index) : nullptr;
  const int64_t step = kElements / layer.channels / kBlock * kBlock;
  const int64_t begin = (task - layer.first_task) * layer.tile;
  for (int64_t part = begin; part < smaller(args.parts, begin + layer.tile); ++part) {
    Seen* seen = seen_of(args, index, part);
    for (int64_t n = 0; n < all.images; ++n) seen[n] = nothing_seen();
    const int64_t end = smaller(all.centroids, (part + 1) * args.part);
    for (int64_t from = part * args.part; from < end;) {
      const int64_t until = smaller(end, from + (step < kBlock ? kBlock : step));
      for (int64_t first = 0; first < all.images; first += kRows) {
        const int64_t rows = smaller(all.images - first, kRows);
        for (int64_t k = from; k < until; k += kBlock) {
          const int64_t count = smaller(until - k, kBlock);
          float found[kRows][kBlock];
          for (int64_t i = 0; i < count; i += kGroup) {
            const int64_t some = smaller(count - i, kGroup);
            measure_rows<kCosine>(layer, f_scales, group_of(layer, c_scales, k + i, some), first, rows, some,
                                  found[0] + i, kBlock);
          }
          for (int64_t n = 0; n < rows; ++n) {
            const float own = args.choose ? kMost : *reading_of(args, first + n, index);
            seen[first + n] = merged(seen[first + n], seen_in(found[n], count, k, own, args.choose), args.choose);
          }
        }
      }
      from = until;
    }
  }
}

template <bool kCosine>
void measure_own(const RelativeArgs& args, int64_t image) {
  const DistanceArgs& all = args.distances;
  for (int index = 0; index < all.layers; ++index) {
    const float* c_scales = kCosine ? centroid_scales(all, index) : nullptr;
    const float* f_scales = kCosine ? feature_scales(all, index) : nullptr;
    measure_rows<kCosine>(all.layer[index], f_scales, group_of(all.layer[index], c_scales, args.own[image], 1), image,
                          1, 1, reading_of(args, image, index), kReading);
  }
}

}  // namespace

void relative_own_task(const RelativeArgs& args, int64_t image) {
  if (args.distances.metric == kMetricCosine) return measure_own<true>(args, image);
  measure_own<false>(args, image);
}

void relative_distances_task(const RelativeArgs& args, int64_t task) {
  if (args.distances.metric == kMetricCosine) return see_parts<true>(args, task);
  see_parts<false>(args, task);
}

void relative_finish_task(const RelativeArgs& args, int64_t image) {
  for (int index = 0; index < args.distances.layers; ++index) {
    Seen seen = nothing_seen();
    for (int64_t part = 0; part < args.parts; ++part)
      seen = merged(seen, seen_of(args, index, part)[image], args.choose);
    finish_reading(args, image, index, seen);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
