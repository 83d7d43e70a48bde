// Compiled once per instruction set, see sign_step.cpp. The score of a predicted label among the nearest neighbours.
#include "common/knn_score.h"

#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

template <int kWeighting>
float score_of(const KnnScoreArgs& args, int64_t row) {
  const float* __restrict distances = args.distances + row * args.distance_stride;
  const int64_t* __restrict labels = args.labels + row * args.label_stride;
  const int64_t predicted = args.predicted[row];
  bool zero = false;
  if (kWeighting == kInverseSquare)
    for (int64_t i = 0; i < args.neighbours; ++i) zero |= distances[i] == 0.0f;
  double all[kLanes] = {};
  double same[kLanes] = {};
  const auto add = [&](int64_t i, int64_t k) {
    const double weight = neighbour_weight(kWeighting, i, distances[i], zero);
    all[k] += weight;
    same[k] += labels[i] == predicted ? weight : 0.0;
  };
  const int64_t whole = args.neighbours / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int k = 0; k < kLanes; ++k) add(i + k, k);
  for (int64_t i = whole; i < args.neighbours; ++i) add(i, i - whole);
  return static_cast<float>(fold(same) / fold(all));
}

}  // namespace

void knn_score_task(const KnnScoreArgs& args, int64_t row) {
  switch (args.weighting) {
    case kUniform: args.out[row] = score_of<kUniform>(args, row); return;
    case kRank: args.out[row] = score_of<kRank>(args, row); return;
    default: args.out[row] = score_of<kInverseSquare>(args, row);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
