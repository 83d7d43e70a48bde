// Compiled once per instruction set, see sign_step.cpp.
#include "common/feature_dropout.h"

#include "cpu/kernels.h"
#include "cpu/mask_pairs.h"
#include "cpu/mask_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

template <class T>
void drop(const FeatureDropoutArgs& args, int64_t task) {
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.out);  // may be x itself
  const float factor = args.factor;
  const auto row = [=](auto kept, const Run& run) {
    const T* from = x + run.offset;
    T* to = out + run.offset;
    const auto* __restrict each = kept.each;
    FASTADV_INDEPENDENT
    for (int64_t i = 0; i < run.count; ++i) from_float(keep(kept(each[i]), to_float(from[i]), factor), to[i]);
  };
  if constexpr (kInPairs<T>) {
    mask_walk<true>(args, task, row, [=](ByBit kept, const Run& run) {
      const T* from = x + run.offset;
      walk_pairs(run.count, kept, from, from, out + run.offset,
                 [=](int64_t, auto stays, auto value, auto) { return keep(stays, value, decltype(value){} + factor); });
    });
  } else {
    mask_walk<false>(args, task, row, row);
  }
}

}  // namespace

void feature_dropout_task(const FeatureDropoutArgs& args, int64_t task) {
  switch (args.type) {
    case kFloat32: return drop<float>(args, task);
    case kBFloat16: return drop<BFloat16>(args, task);
    default: return drop<Float16>(args, task);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
