// Compiled once per instruction set, see sign_step.cpp.
#include "common/feature_dropout.h"

#include "cpu/kernels.h"
#include "cpu/mask_pairs.h"
#include "cpu/mask_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

// Bits: an integer as wide as T, an element or, where nothing is multiplied, the integer itself.
template <class T, class Bits, class Make>
void drop(const FeatureDropoutArgs& args, int64_t task, Make make) {
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.out);  // may be x itself
  const auto row = [=](auto kept, const Run& run) {
    const T* from = x + run.offset;
    T* to = out + run.offset;
    FASTADV_INDEPENDENT
    for (int64_t i = 0; i < run.count; ++i) make(kept[i], from[i], to[i]);
  };
  mask_walk<Bits>(args, task, row, row);
}

template <class T, class Bits>
void rescale(const FeatureDropoutArgs& args, int64_t task) {
  const float factor = args.factor;
  drop<T, Bits>(args, task, [=](bool kept, T from, T& to) { from_float(keep(kept, to_float(from), factor), to); });
}

template <class Bits>
void select(const FeatureDropoutArgs& args, int64_t task) {
  drop<Bits, Bits>(args, task, [](bool kept, Bits from, Bits& to) { to = kept ? from : Bits{}; });
}

}  // namespace

void feature_dropout_task(const FeatureDropoutArgs& args, int64_t task) {
  if (args.factor == 1.0f) return args.type == kFloat32 ? select<uint32_t>(args, task) : select<uint16_t>(args, task);
  switch (args.type) {
    case kFloat32: return rescale<float, uint32_t>(args, task);
    case kBFloat16: return rescale<BFloat16, uint16_t>(args, task);
    default: return rescale<Float16, uint16_t>(args, task);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
