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

// Channels [first, first + count): each parameter on its own, and sorted by parity where two elements are one word.
struct Parameters {
  alignas(kVectorBytes) float scale[kTileChannels];
  alignas(kVectorBytes) float shift[kTileChannels];
  alignas(kVectorBytes) float slope[kTileChannels];
  int64_t first = -1;

  void read(const FeatureDropoutBnPreluArgs& args, int64_t channel, int64_t count) {
    if (channel == first) return;
    first = channel;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t to = i % 2 * kOdd + i / 2;
      scale[to] = args.scale[channel + i];
      shift[to] = args.shift[channel + i];
      slope[to] = args.slope_each == nullptr ? args.slope : args.slope_each[args.slope_step * (channel + i)];
    }
  }
};

// The parameters of the channel of element i of a run: run.channel, or run.channel + i where `each`.
template <class T, Pass kPass, bool kEach, class Kept>
inline void run_of(const FeatureDropoutBnPreluArgs& args, Kept kept, int64_t offset, int64_t count, int64_t channel) {
  const FeatureDropoutArgs& dropout = args.dropout;
  // out may be x or grad itself: each element is read before it is written, and none after.
  const T* x = static_cast<const T*>(dropout.x) + offset;
  const T* grad = static_cast<const T*>(is_backward(kPass) ? args.grad : dropout.x) + offset;
  T* out = static_cast<T*>(dropout.out) + offset;
  const auto* __restrict each = kept.each;
  const float* __restrict scales = args.scale + channel;
  const float* __restrict shifts = args.shift + channel;
  const float* __restrict slopes = args.slope_each && args.slope_step ? args.slope_each + channel : nullptr;
  const Channel<float> one = {scales[0], shifts[0],
                              slopes ? slopes[0] : args.slope_each ? args.slope_each[0] : args.slope};
  const float ceiling = args.ceiling;
  const float factor = dropout.factor;
  // A loop for each: with the question inside, it would not be vectorised.
  const auto walk = [&](auto relu) {
    FASTADV_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
      const Channel<float> of = kEach ? Channel<float>{scales[i], shifts[i], slopes ? slopes[i] : one.slope} : one;
      const bool stays = kept(each[i]);
      const float value = masks_x(kPass) ? keep(stays, to_float(x[i]), factor) : to_float(x[i]);
      const float made = made_of<kPass>(value, to_float(grad[i]), of, relu, ceiling);
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
  const auto contiguous = [&](ByDraw kept, const Run& run) {
    int64_t channel = run.place / plane;
    for (int64_t i = 0; i < run.count; ++channel) {
      const int64_t end = (channel + 1) * plane - run.place;
      const int64_t stop = end < run.count ? end : run.count;
      run_of<T, kPass, false>(args, ByDraw{kept.each + i, kept.threshold}, run.offset + i, stop - i, channel);
      i = stop;
    }
  };
  if constexpr (kInPairs<T>) {
    Parameters parameters;
    const T* x = static_cast<const T*>(args.dropout.x);
    const T* grad = static_cast<const T*>(is_backward(kPass) ? args.grad : args.dropout.x);
    T* out = static_cast<T*>(args.dropout.out);
    const bool relu = is_relu(args);
    const float ceiling = args.ceiling;
    const float factor = args.dropout.factor;
    mask_walk<uint16_t>(args.dropout, task, contiguous, [&](Halved kept, const Run& run) {
      parameters.read(args, run.place, run.count);
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
    mask_walk<Bits>(args.dropout, task, contiguous, [&](ByBit<Bits> kept, const Run& run) {
      run_of<T, kPass, true>(args, kept, run.offset, run.count, run.place);
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
