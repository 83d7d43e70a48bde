// Compiled once per instruction set, see sign_step.cpp.
#include <type_traits>

#include "common/feature_dropout_bn_prelu.h"

#include "cpu/kernels.h"
#include "cpu/mask_pairs.h"
#include "cpu/mask_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

enum Pass { kForward, kFromInput, kFromResult, kLinear, kLinearGrad };

constexpr bool is_backward(Pass pass) { return pass != kForward && pass != kLinear; }

// Whether the mask applies to x.
constexpr bool masks_x(Pass pass) { return pass == kForward || pass == kFromInput || pass == kLinear; }

// The parameters of a channel, or of a register of them.
template <class V>
struct Channel {
  V scale;
  V shift;
  V slope;
};

// What becomes of x, or of the gradient `given`, but for the mask and its factor, which are applied to x where masks_x,
// and to a derivative. A linear pass is what the others come to without activation and ceiling.
template <Pass kPass, class V>
inline V made_of(V x, V given, Channel<V> of, bool relu, V ceiling) {
  if constexpr (kPass == kForward) {
    return affine_prelu(x, of.scale, of.shift, of.slope, relu, ceiling);
  } else if constexpr (kPass == kLinear) {
    return of.scale * x + of.shift;
  } else if constexpr (kPass == kLinearGrad) {
    return given * of.scale;
  } else if constexpr (kPass == kFromResult) {
    return affine_prelu_grad_of(x, given, of.scale, of.slope, relu, ceiling);
  } else {
    return affine_prelu_grad(x, given, of.scale, of.shift, of.slope, relu, ceiling);
  }
}

// The shifts of the elements from `offset` on, or of the channels from `channel` on.
inline const float* shift_of(const FeatureDropoutBnPreluArgs& args, int64_t offset, int64_t channel) {
  const BatchLayout& layout = args.dropout.layout;
  return args.shift + (args.untied ? offset % (layout.channels * layout.plane) : channel);
}

// The parameters of the elements of a run, in their order, or kSorted by parity where two elements are one word.
template <bool kSorted>
struct Parameters {
  alignas(kVectorBytes) float scale[kTileChannels];
  alignas(kVectorBytes) float shift[kTileChannels];
  alignas(kVectorBytes) float slope[kTileChannels];
  int64_t first = -1;  // channel
  int64_t many = 0;

  void read(const FeatureDropoutBnPreluArgs& args, const Run& run) {
    if (args.untied) put(shift_of(args, run.offset, run.place), run.count, 0, shift);
    if (run.place == first && run.count <= many) return;
    first = run.place;
    many = run.count;
    const int64_t channels = args.dropout.layout.channels;
    const bool each_slope = args.slope_each != nullptr && args.slope_step != 0;
    if (!each_slope)
      for (float& one : slope) one = args.slope_each == nullptr ? args.slope : args.slope_each[0];
    for (int64_t at = 0; at < many; at += channels) {  // a pixel
      const int64_t count = many - at < channels ? many - at : channels;
      put(args.scale + first, count, at, scale);
      if (!args.untied) put(args.shift + first, count, at, shift);
      if (each_slope) put(args.slope_each + first, count, at, slope);
    }
  }

  // The numbers of `count` elements from element `at` of the run on.
  static void put(const float* __restrict from, int64_t count, int64_t at, float* __restrict to) {
    if (!kSorted) {
      for (int64_t i = 0; i < count; ++i) to[at + i] = from[i];
      return;
    }
    const int64_t even = at % 2, odd = 1 - even;  // the first of each
    for (int64_t k = 0; 2 * k < count - even; ++k) to[(at + even) / 2 + k] = from[even + 2 * k];
    for (int64_t k = 0; 2 * k < count - odd; ++k) to[kOdd + (at + odd) / 2 + k] = from[odd + 2 * k];
  }
};

// `of` points to the parameters of the first element: kEach, the others' follow; else they are all alike, but for an
// untied shift.
template <class T, Pass kPass, bool kEach, class Kept>
inline void run_of(const FeatureDropoutBnPreluArgs& args, Kept kept, int64_t offset, int64_t count,
                   Channel<const float*> of) {
  const FeatureDropoutArgs& dropout = args.dropout;
  // out may be x or grad itself: each element is read before it is written, and none after.
  const T* x = static_cast<const T*>(dropout.x) + offset;
  const T* grad = static_cast<const T*>(is_backward(kPass) ? args.grad : dropout.x) + offset;
  T* out = static_cast<T*>(dropout.out) + offset;
  const float* __restrict scales = of.scale;
  const float* __restrict shifts = of.shift;
  const float* __restrict slopes = of.slope;
  const Channel<float> one = {scales[0], shifts[0], slopes[0]};
  const float ceiling = args.ceiling;
  const float factor = dropout.factor;
  const bool each_shift = kEach || args.untied;
  // A loop for each: with the question inside, it would not be vectorised.
  const auto walk = [&](auto relu) {
    FASTADV_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
      const Channel<float> own = {kEach ? scales[i] : one.scale, each_shift ? shifts[i] : one.shift,
                                  kEach ? slopes[i] : one.slope};
      const bool stays = kept[i];
      const float value = masks_x(kPass) ? keep(stays, to_float(x[i]), factor) : to_float(x[i]);
      const float made = made_of<kPass>(value, to_float(grad[i]), own, relu, ceiling);
      from_float(is_backward(kPass) ? keep(stays, made, factor) : made, out[i]);
    }
  };
  if (kPass != kLinear && kPass != kLinearGrad && is_relu(args)) walk(std::true_type{});
  else walk(std::false_type{});
}

// kRescaled: whether there is a factor but 1.
template <class T, Pass kPass, bool kRescaled>
void fused(const FeatureDropoutBnPreluArgs& args, int64_t task) {
  const int64_t plane = args.dropout.layout.plane;
  const auto contiguous = [&](auto kept, const Run& run) {
    int64_t channel = run.place / plane;
    for (int64_t i = 0; i < run.count; ++channel) {
      const int64_t end = (channel + 1) * plane - run.place;
      const int64_t stop = end < run.count ? end : run.count;
      const float* slope = args.slope_each == nullptr ? &args.slope : args.slope_each + args.slope_step * channel;
      run_of<T, kPass, false>(args, kept.from(i), run.offset + i, stop - i,
                              {args.scale + channel, shift_of(args, run.offset + i, channel), slope});
      i = stop;
    }
  };
  Parameters<kInPairs<T>> parameters;
  if constexpr (kInPairs<T>) {
    const T* x = static_cast<const T*>(args.dropout.x);
    const T* grad = static_cast<const T*>(is_backward(kPass) ? args.grad : args.dropout.x);
    T* out = static_cast<T*>(args.dropout.out);
    const bool relu = is_relu(args);
    const float ceiling = args.ceiling;
    const float factor = args.dropout.factor;
    mask_walk<uint16_t>(args.dropout, task, contiguous, [&](auto kept, const Run& run) {
      parameters.read(args, run);
      const float* __restrict scale = parameters.scale;
      const float* __restrict shift = parameters.shift;
      const float* __restrict slope = parameters.slope;
      walk_pairs<masks_x(kPass), is_backward(kPass)>(
          run.count, kept, x + run.offset, grad + run.offset, out + run.offset,
          [=](int64_t place, auto value, auto given) {
            using V = decltype(value);
            const Channel<V> of = {read<V>(scale + place), read<V>(shift + place), read<V>(slope + place)};
            const auto scaled = [=](bool masked, V whole) { return kRescaled && masked ? whole * factor : whole; };
            return scaled(is_backward(kPass), made_of<kPass>(scaled(masks_x(kPass), value), given, of, relu, V{} + ceiling));
          });
    });
  } else {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
    mask_walk<Bits>(args.dropout, task, contiguous, [&](auto kept, const Run& run) {
      parameters.read(args, run);
      run_of<T, kPass, true>(args, kept, run.offset, run.count,
                             {parameters.scale, parameters.shift, parameters.slope});
    });
  }
}

template <class T, bool kRescaled>
void typed(const FeatureDropoutBnPreluArgs& args, int64_t task) {
  const bool linear = args.slope_each == nullptr && args.slope == 1.0f && args.ceiling != args.ceiling;
  if (!args.grad) return linear ? fused<T, kLinear, kRescaled>(args, task) : fused<T, kForward, kRescaled>(args, task);
  if (linear) return fused<T, kLinearGrad, kRescaled>(args, task);
  if (args.from_result) return fused<T, kFromResult, kRescaled>(args, task);
  fused<T, kFromInput, kRescaled>(args, task);
}

}  // namespace

void feature_dropout_bn_prelu_task(const FeatureDropoutBnPreluArgs& args, int64_t task) {
  switch (args.dropout.type) {
    case kFloat32: return typed<float, true>(args, task);
    case kBFloat16:
      return args.dropout.factor == 1.0f ? typed<BFloat16, false>(args, task) : typed<BFloat16, true>(args, task);
    default: return typed<Float16, true>(args, task);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
