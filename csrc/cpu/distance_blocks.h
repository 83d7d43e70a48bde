// The distances of some features to some centroids, for every operation that reads them. Compiled once per instruction
// set, see sign_step.cpp.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/centroid_distances.h"
#include "cpu/float_parts.h"
#include "cpu/sums.h"
#include "cpu/unroll.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int64_t kGroup = 4;    // centroids that a feature block is measured against while both are in the cache
constexpr int64_t kRows = 32;    // features that stay in the cache while the centroids of a task pass by

// How many features and centroids have their sums in registers at once.
#if defined(__AVX512F__)
constexpr int64_t kFeatures = 4;
constexpr int64_t kCentroids = 4;
#elif defined(__AVX2__)
constexpr int64_t kFeatures = 2;
constexpr int64_t kCentroids = 2;
#else
constexpr int64_t kFeatures = 1;
constexpr int64_t kCentroids = 2;
#endif
constexpr int64_t kParts = kLanes / kPart;

// add_square for a register.
inline Part add_squares(Part sum, Part difference) {
#if defined(__AVX512F__)
  return (Part)_mm512_fmadd_ps((__m512)difference, (__m512)difference, (__m512)sum);
#elif defined(__AVX2__)
  return (Part)_mm256_fmadd_ps((__m256)difference, (__m256)difference, (__m256)sum);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  for (int64_t i = 0; i < kPart; ++i) sum[i] = add_square(sum[i], difference[i]);
  return sum;
#else
  return sum + difference * difference;
#endif
}

// Adds the two sums of sixteen lanes to total[0] and total[1], in the order of fold().
#if defined(__x86_64__)
inline __m128 four_lanes(const Part* sum) {
#if defined(__AVX512F__)
  const __m256 eight = _mm512_maskz_extractf32x8_ps(0xff, (__m512)sum[0], 0) +
                       _mm512_maskz_extractf32x8_ps(0xff, (__m512)sum[0], 1);
  return _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
#elif defined(__AVX2__)
  const __m256 eight = (__m256)(sum[0] + sum[1]);
  return _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
#else
  return (__m128)((sum[0] + sum[2]) + (sum[1] + sum[3]));
#endif
}

inline void add_folded(const Part* first, const Part* second, double* total) {
  const __m128 a = four_lanes(first);
  const __m128 b = four_lanes(second);
  const __m128 two = _mm_unpacklo_ps(a, b) + _mm_unpackhi_ps(a, b);  // both halves of a and b, alternating
  _mm_storeu_pd(total, _mm_loadu_pd(total) + _mm_cvtps_pd(two + _mm_movehl_ps(two, two)));
}
#else
inline void add_folded(const Part* first, const Part* second, double* total) {
  float lane[2][kLanes];
  for (int64_t part = 0; part < kParts; ++part) {
    *reinterpret_cast<LoosePart*>(lane[0] + part * kPart) = first[part];
    *reinterpret_cast<LoosePart*>(lane[1] + part * kPart) = second[part];
  }
  for (int k = 0; k < 2; ++k) total[k] += static_cast<double>(fold(lane[k]));
}
#endif

struct Group {
  const float* row[kGroup];
  float scale[kGroup];
};

// The sums of kF features and kC centroids, and where their next channels are.
template <int64_t kF, int64_t kC>
struct Block {
  const float* feature[kF];
  const float* centroid[kC];
  float feature_scale[kF];
  float centroid_scale[kC];
  Part sum[kF][kC][kParts];
};

// Adds the squared differences of channels i to i + 15.
template <bool kScaled, int64_t kF, int64_t kC>
inline void add_channels(Block<kF, kC>& block, int64_t i) {
  FASTADV_UNROLL
  for (int64_t part = 0; part < kParts; ++part) {
    Part f[kF];
    FASTADV_UNROLL
    for (int64_t n = 0; n < kF; ++n) {
      f[n] = *reinterpret_cast<const LoosePart*>(block.feature[n] + i + part * kPart);
      if (kScaled) f[n] = f[n] * block.feature_scale[n];
    }
    FASTADV_UNROLL
    for (int64_t k = 0; k < kC; ++k) {
      Part c = *reinterpret_cast<const LoosePart*>(block.centroid[k] + i + part * kPart);
      if (kScaled) c = c * block.centroid_scale[k];
      FASTADV_UNROLL
      for (int64_t n = 0; n < kF; ++n) block.sum[n][k][part] = add_squares(block.sum[n][k][part], f[n] - c);
    }
  }
}

// Adds the squared differences of `length` channels from `begin` on of kF features and kC centroids to `total`.
// Bit r of `fetch`: fetch row r of the next group meanwhile, which lies `ahead` behind this one.
template <bool kScaled, int64_t kF, int64_t kC>
void measure_block(const DistanceLayer& layer, const float* f_scales, const Group& group, int64_t first, int64_t row,
                   int64_t begin, int64_t length, int fetch, double (*total)[kGroup]) {
  Block<kF, kC> block;
  FASTADV_UNROLL
  for (int64_t n = 0; n < kF; ++n) {
    block.feature[n] = layer.features + (first + n) * layer.feature_stride + begin;
    block.feature_scale[n] = kScaled ? f_scales[first + n] : 1.0f;
    FASTADV_UNROLL
    for (int64_t k = 0; k < kC; ++k)
      for (int64_t part = 0; part < kParts; ++part) block.sum[n][k][part] = Part{};
  }
  FASTADV_UNROLL
  for (int64_t k = 0; k < kC; ++k) {
    block.centroid[k] = group.row[row + k] + begin;
    block.centroid_scale[k] = group.scale[row + k];
  }
  const int64_t ahead = kGroup * layer.centroid_stride;
  const int64_t whole = length / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    FASTADV_UNROLL
    for (int64_t k = 0; k < kC; ++k)
      if (fetch >> k & 1) __builtin_prefetch(block.centroid[k] + i + ahead, 0, 2);
    add_channels<kScaled>(block, i);
  }
  if (whole < length) {  // zeros behind the last channel add nothing
    float padded[kF + kC][kLanes] = {};
    for (int64_t i = whole; i < length; ++i) {
      for (int64_t n = 0; n < kF; ++n) padded[n][i - whole] = block.feature[n][i];
      for (int64_t k = 0; k < kC; ++k) padded[kF + k][i - whole] = block.centroid[k][i];
    }
    for (int64_t n = 0; n < kF; ++n) block.feature[n] = padded[n];
    for (int64_t k = 0; k < kC; ++k) block.centroid[k] = padded[kF + k];
    add_channels<kScaled>(block, 0);
  }
  FASTADV_UNROLL
  for (int64_t n = 0; n < kF; ++n) {
    FASTADV_UNROLL
    for (int64_t k = 0; k < kC; k += 2) add_folded(block.sum[n][k], block.sum[n][k + 1], total[n] + row + k);
  }
}

// Which of kCentroids rows call `call` of `calls` fetches: each is fetched once, and as few at a time as may be, since
// the processor waits when too many are on their way.
inline int rows_to_fetch(int64_t call, int64_t calls) {
  const int64_t turns = smaller(calls, kCentroids);
  if (call >= turns) return 0;
  const int64_t begin = call * kCentroids / turns;
  const int64_t end = (call + 1) * kCentroids / turns;
  return (1 << end) - (1 << begin);
}

// Features [first, first + count) and a group: a block of channels at a time, so that the group's stays in the cache.
template <bool kCosine>
void measure_group(const DistanceLayer& layer, const float* f_scales, const Group& group, int64_t first, int64_t count,
                   double (*squares)[kGroup]) {
  const int64_t calls = count / kFeatures + count % kFeatures;
  for (int64_t n = 0; n < count; ++n)
    for (int64_t k = 0; k < kGroup; ++k) squares[n][k] = 0.0;
  for (int64_t begin = 0; begin < layer.channels; begin += kSumBlock) {
    const int64_t length = smaller(layer.channels - begin, kSumBlock);
    for (int64_t row = 0; row < kGroup; row += kCentroids) {
      int64_t n = 0;
      int call = 0;
      for (; n + kFeatures <= count; n += kFeatures)
        measure_block<kCosine, kFeatures, kCentroids>(layer, f_scales, group, first + n, row, begin, length,
                                                      rows_to_fetch(call++, calls), squares + n);
      for (; n < count; ++n)
        measure_block<kCosine, 1, kCentroids>(layer, f_scales, group, first + n, row, begin, length,
                                              rows_to_fetch(call++, calls), squares + n);
    }
  }
}

// Where float32 has lost the digits of a norm, or of a squared difference.
template <bool kCosine>
inline bool lost(double squares, float f_scale, float c_scale) {
  return kCosine ? f_scale < 0.0f || c_scale < 0.0f : lost_digits(squares);
}

template <bool kCosine>
__attribute__((noinline, cold)) float wide_distance(const DistanceLayer& layer, const float* feature, float f_scale,
                                                    const float* centroid, float c_scale) {
  const int64_t channels = layer.channels;
  if (!kCosine) return finish_l2(wide_difference(feature, 1.0, centroid, 1.0, channels, 0, 1));
  const double f = wide_inverse_norm(feature, channels, f_scale);
  const double c = wide_inverse_norm(centroid, channels, c_scale);
  return finish_cosine(wide_difference(feature, f, centroid, c, channels, 0, 1), f_scale, c_scale);
}

// The group from centroid k on. A short one measures its last centroid again.
inline Group group_of(const DistanceLayer& layer, const float* c_scales, int64_t k, int64_t count) {
  Group group;
  for (int64_t i = 0; i < kGroup; ++i) {
    const int64_t at = k + smaller(i, count - 1);
    group.row[i] = layer.centroids + at * layer.centroid_stride;
    group.scale[i] = c_scales == nullptr ? 1.0f : c_scales[at];
  }
  return group;
}

// The distances of `rows` features from `first` on, at most kRows, to the first `count` centroids of a group, into
// `out`, whose rows are `stride` apart.
template <bool kCosine>
void measure_rows(const DistanceLayer& layer, const float* f_scales, const Group& group, int64_t first, int64_t rows,
                  int64_t count, float* out, int64_t stride) {
  double squares[kRows][kGroup];
  measure_group<kCosine>(layer, f_scales, group, first, rows, squares);
  for (int64_t n = 0; n < rows; ++n, out += stride) {
    const float f_scale = kCosine ? f_scales[first + n] : 1.0f;
    bool again = false;
    for (int64_t i = 0; i < kGroup; ++i) again |= lost<kCosine>(squares[n][i], f_scale, group.scale[i]);
    for (int64_t i = 0; i < count; ++i)
      out[i] = kCosine ? finish_cosine(squares[n][i], f_scale, group.scale[i]) : finish_l2(squares[n][i]);
    if (__builtin_expect(!again, 1)) continue;
    const float* feature = layer.features + (first + n) * layer.feature_stride;
    for (int64_t i = 0; i < count; ++i)
      if (lost<kCosine>(squares[n][i], f_scale, group.scale[i]))
        out[i] = wide_distance<kCosine>(layer, feature, f_scale, group.row[i], group.scale[i]);
  }
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
