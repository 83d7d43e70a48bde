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
    same[part] += (Doubles)((Longs)weight & (labels == row.predicted));
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

// What neighbour i's weight is the inverse of; `zero` is false.
template <int kWeighting>
Doubles divisors(const Row& row, int64_t i) {
  if (kWeighting == kRank) {
    Doubles rank;
    for (int k = 0; k < kPart; ++k) rank[k] = k + 1;
    return rank + static_cast<double>(i);
  }
#if defined(__AVX512F__)  // GCC 12 converts in halves
  const Doubles wide = (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(row.distances + i));
#else
  const Doubles wide = __builtin_convertvector(*reinterpret_cast<const LooseFloats*>(row.distances + i), Doubles);
#endif
  return wide * wide;
}

// Divisions in float64 are what takes time, so two weights share one: 1/a = b / (ab). Neither two ranks nor two squares
// of float32 numbers overflow or underflow when they are multiplied.
template <int kWeighting>
Shares weighed(const Row& row) {
  Shares shares;
  const int64_t whole = row.neighbours / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    FASTADV_UNROLL
    for (int part = 0; part < kParts / 2; ++part) {
      const int64_t first = i + part * kPart;
      const int64_t second = first + kLanes / 2;
      if (kWeighting == kUniform) {
        shares.add(row, first, part, Doubles{} + 1.0);
        shares.add(row, second, part + kParts / 2, Doubles{} + 1.0);
      } else {
        const Doubles a = divisors<kWeighting>(row, first);
        const Doubles b = divisors<kWeighting>(row, second);
        const Doubles inverse = 1.0 / (a * b);
        shares.add(row, first, part, b * inverse);
        shares.add(row, second, part + kParts / 2, a * inverse);
      }
    }
  }
  int64_t i = whole;
  for (int part = 0; i + kPart <= row.neighbours; i += kPart, ++part)
    shares.add(row, i, part, kWeighting == kUniform ? Doubles{} + 1.0 : 1.0 / divisors<kWeighting>(row, i));
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

// Distances of zero, infinite ones and NaN make a sum that is not finite; they are few, and their rows start again.
float score_inverse_square(const Row& row) {
  const Shares shares = weighed<kInverseSquare>(row);
  return Shares::total(shares.all) <= DBL_MAX ? shares.score() : score_of_zeros(row);
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
