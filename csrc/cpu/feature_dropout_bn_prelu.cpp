// Compiled once per instruction set, see sign_step.cpp.
#include "common/feature_dropout_bn_prelu.h"

#include "cpu/kernels.h"
#include "cpu/random_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

// The parameters of the channel of element i of a run: run.channel, or run.channel + i where `each`.
template <class T, bool kBackward, bool kEach>
inline void run_of(const FeatureDropoutBnPreluArgs& args, const uint32_t* words, int64_t offset, int64_t count,
                   int64_t channel) {
  const FeatureDropoutArgs& dropout = args.dropout;
  const T* __restrict x = static_cast<const T*>(dropout.x) + offset;
  const T* __restrict grad = kBackward ? static_cast<const T*>(args.grad) + offset : nullptr;
  T* __restrict out = static_cast<T*>(dropout.out) + offset;
  const float* __restrict scales = args.scale + channel;
  const float* __restrict shifts = args.shift + channel;
  const float* __restrict slopes = args.slope_each && args.slope_step ? args.slope_each + channel : nullptr;
  const float scale = scales[0];
  const float shift = shifts[0];
  const float slope = slopes ? slopes[0] : args.slope_each ? args.slope_each[0] : args.slope;
  const uint32_t threshold = dropout.threshold;
  const float factor = dropout.factor;
  for (int64_t i = 0; i < count; ++i) {
    const float a = kEach ? scales[i] : scale;
    const float b = kEach ? shifts[i] : shift;
    const float s = kEach && slopes ? slopes[i] : slope;
    const float value = keep(words[i], threshold, to_float(x[i]), factor);
    if constexpr (kBackward) {
      const float made = affine_prelu_grad(value, to_float(grad[i]), a, b, s);
      from_float(keep(words[i], threshold, made, factor), out[i]);
    } else {
      from_float(affine_prelu(value, a, b, s), out[i]);
    }
  }
}

template <class T, bool kBackward>
void fused(const FeatureDropoutBnPreluArgs& args, int64_t task) {
  const FeatureDropoutArgs& dropout = args.dropout;
  const int64_t plane = dropout.layout.plane;
  walk<PlainWords>(
      dropout.key, dropout.layout, task,
      [&](const uint32_t* words, const Run& run) {
        int64_t channel = run.place / plane;
        for (int64_t i = 0; i < run.count; ++channel) {
          const int64_t end = (channel + 1) * plane - run.place;
          const int64_t stop = end < run.count ? end : run.count;
          run_of<T, kBackward, false>(args, words + i, run.offset + i, stop - i, channel);
          i = stop;
        }
      },
      [&](const uint32_t* words, const Run& run) {
        run_of<T, kBackward, true>(args, words, run.offset, run.count, run.place);
      });
}

template <class T>
void typed(const FeatureDropoutBnPreluArgs& args, int64_t task) {
  if (args.grad) return fused<T, true>(args, task);
  fused<T, false>(args, task);
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
