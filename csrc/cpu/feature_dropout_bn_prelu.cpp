// Compiled once per instruction set, see sign_step.cpp.
#include "common/feature_dropout_bn_prelu.h"

#include "cpu/kernels.h"
#include "cpu/mask_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

enum Pass { kForward, kFromInput, kFromResult };

// The parameters of the channel of element i of a run: run.channel, or run.channel + i where `each`.
template <class T, Pass kPass, bool kEach, class Kept>
inline void run_of(const FeatureDropoutBnPreluArgs& args, Kept kept, int64_t offset, int64_t count, int64_t channel) {
  const FeatureDropoutArgs& dropout = args.dropout;
  // out may be x or grad itself: each element is read before it is written, and none after.
  const T* x = static_cast<const T*>(dropout.x) + offset;
  const T* grad = kPass != kForward ? static_cast<const T*>(args.grad) + offset : nullptr;
  T* out = static_cast<T*>(dropout.out) + offset;
  const auto* __restrict each = kept.each;
  const float* __restrict scales = args.scale + channel;
  const float* __restrict shifts = args.shift + channel;
  const float* __restrict slopes = args.slope_each && args.slope_step ? args.slope_each + channel : nullptr;
  const float scale = scales[0];
  const float shift = shifts[0];
  const float slope = slopes ? slopes[0] : args.slope_each ? args.slope_each[0] : args.slope;
  const float ceiling = args.ceiling;
  const float factor = dropout.factor;
  FASTADV_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const float a = kEach ? scales[i] : scale;
    const float b = kEach ? shifts[i] : shift;
    const float s = kEach && slopes ? slopes[i] : slope;
    const bool stays = kept(each[i]);
    if constexpr (kPass == kForward) {
      from_float(affine_prelu(keep(stays, to_float(x[i]), factor), a, b, s, ceiling), out[i]);
    } else {
      const float given = to_float(grad[i]);
      const float made = kPass == kFromResult
                             ? affine_prelu_grad_of(to_float(x[i]), given, a, s, ceiling)
                             : affine_prelu_grad(keep(stays, to_float(x[i]), factor), given, a, b, s, ceiling);
      from_float(keep(stays, made, factor), out[i]);
    }
  }
}

template <class T, Pass kPass>
void fused(const FeatureDropoutBnPreluArgs& args, int64_t task) {
  const int64_t plane = args.dropout.layout.plane;
  mask_walk(
      args.dropout, task,
      [&](ByDraw kept, const Run& run) {
        int64_t channel = run.place / plane;
        for (int64_t i = 0; i < run.count; ++channel) {
          const int64_t end = (channel + 1) * plane - run.place;
          const int64_t stop = end < run.count ? end : run.count;
          run_of<T, kPass, false>(args, ByDraw{kept.each + i, kept.threshold}, run.offset + i, stop - i, channel);
          i = stop;
        }
      },
      [&](ByBit kept, const Run& run) { run_of<T, kPass, true>(args, kept, run.offset, run.count, run.place); });
}

template <class T>
void typed(const FeatureDropoutBnPreluArgs& args, int64_t task) {
  if (!args.grad) return fused<T, kForward>(args, task);
  if (args.from_result) return fused<T, kFromResult>(args, task);
  fused<T, kFromInput>(args, task);
}

}  // namespace

void feature_dropout_bn_prelu_task(const FeatureDropoutBnPreluArgs& args, int64_t task) {
  switch (args.dropout.type) {
    case kFloat32: return typed<float>(args, task);
    case kBFloat16: return typed<BFloat16>(args, task);
    default: return typed<Float16>(args, task);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
