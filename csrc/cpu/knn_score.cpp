// Compiled once per instruction set, see sign_step.cpp. The score of a predicted label among the nearest neighbours.
#include "common/knn_score.h"

#include <cfloat>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "cpu/kernels.h"
#include "cpu/sums.h"
#include "cpu/unroll.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kPart = 8;  // numbers of 64 bits in a register
#elif defined(__AVX2__)
constexpr int kPart = 4;
#else
constexpr int kPart = 2;
#endif
constexpr int kParts = kLanes / kPart;
typedef double Doubles __attribute__((vector_size(kPart * 8)));
typedef int64_t Longs __attribute__((vector_size(kPart * 8)));
typedef int64_t LooseLongs __attribute__((vector_size(kPart * 8), aligned(8), may_alias));
typedef float LooseFloats __attribute__((vector_size(kPart * 4), aligned(4), may_alias));

struct Row {
  const float* distances;
  const int64_t* labels;
  int64_t predicted;
  int64_t neighbours;
};

// Sixteen sums of all weights and of those with the predicted label: the same on every instruction set.
struct Shares {
  Doubles all[kParts] = {};
  Doubles same[kParts] = {};

  void add(const Row& row, int64_t i, int part, Doubles weight) {
    const Longs labels = *reinterpret_cast<const LooseLongs*>(row.labels + i);
    all[part] += weight;
#if defined(__AVX512F__)
    const __mmask8 hits = _mm512_cmpeq_epi64_mask((__m512i)labels, _mm512_set1_epi64(row.predicted));
    same[part] = (Doubles)_mm512_mask_add_pd((__m512d)same[part], hits, (__m512d)same[part], (__m512d)weight);
#else
    same[part] += (Doubles)((Longs)weight & (labels == row.predicted));
#endif
  }
  void add_one(const Row& row, int64_t i, int64_t lane, double weight) {
    all[lane / kPart][lane % kPart] += weight;
    same[lane / kPart][lane % kPart] += row.labels[i] == row.predicted ? weight : 0.0;
  }
  static double total(const Doubles* sums) {
    double lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = sums[lane / kPart][lane % kPart];
    return fold(lanes);
  }
  float score() const { return static_cast<float>(total(same) / total(all)); }
};

Doubles widened(LooseFloats values) {
#if defined(__AVX512F__)  // GCC 12 converts in halves
  return (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)values);
#else
  return __builtin_convertvector(values, Doubles);
#endif
}

// The weights of kPart neighbours at distances above zero. 1 / d^2 begins with a division in float32, which takes half
// the time of one in float64; its square has 23 bits, and a step of Newton makes 45 of them. Where 1 / d overflows, or
// d is infinite, the weight is no number.
template <int kWeighting>
Doubles weights(const Row& row, int64_t i) {
  if (kWeighting == kUniform) return Doubles{} + 1.0;
  if (kWeighting == kRank) {
    Doubles rank;
    for (int k = 0; k < kPart; ++k) rank[k] = k + 1;
    return 1.0 / (rank + static_cast<double>(i));
  }
  const LooseFloats distances = *reinterpret_cast<const LooseFloats*>(row.distances + i);
  const Doubles wide = widened(distances);
  const Doubles guess = widened(1.0f / distances);
  const Doubles square = guess * guess;
  return square * (2.0 - wide * wide * square);
}

template <int kWeighting>
Shares weighed(const Row& row) {
  Shares shares;
  int64_t i = 0;
  for (; i + kLanes <= row.neighbours; i += kLanes) {
    FASTADV_UNROLL
    for (int part = 0; part < kParts; ++part)
      shares.add(row, i + part * kPart, part, weights<kWeighting>(row, i + part * kPart));
  }
  const int64_t whole = i;
  for (int part = 0; i + kPart <= row.neighbours; i += kPart, ++part)
    shares.add(row, i, part, weights<kWeighting>(row, i));
  for (; i < row.neighbours; ++i)
    shares.add_one(row, i, i - whole, neighbour_weight(kWeighting, i, row.distances[i], false));
  return shares;
}

float score_of_zeros(const Row& row) {
  bool zero = false;
  for (int64_t i = 0; i < row.neighbours; ++i) zero |= row.distances[i] == 0.0f;
  Shares shares;
  for (int64_t i = 0; i < row.neighbours; ++i)
    shares.add_one(row, i, i % kLanes, neighbour_weight(kInverseSquare, i, row.distances[i], zero));
  return shares.score();
}

// Distances of zero, tiny and infinite ones and NaN make a sum that is no positive number; they are few, and their rows
// start again.
float score_inverse_square(const Row& row) {
  const Shares shares = weighed<kInverseSquare>(row);
  const double total = Shares::total(shares.all);
  return total > 0.0 && total <= DBL_MAX ? shares.score() : score_of_zeros(row);
}

}  // namespace

void knn_score_task(const KnnScoreArgs& args, int64_t index) {
  const Row row = {args.distances + index * args.distance_stride, args.labels + index * args.label_stride,
                   args.predicted[index], args.neighbours};
  switch (args.weighting) {
    case kUniform: args.out[index] = weighed<kUniform>(row).score(); return;
    case kRank: args.out[index] = weighed<kRank>(row).score(); return;
    default: args.out[index] = score_inverse_square(row);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
