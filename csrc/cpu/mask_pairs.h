// Elements of 16 bits, two at a time: as the halves of a word they need neither be spread over two registers nor packed
// again, which for bfloat16 takes as long as the arithmetic.
#pragma once

#include "cpu/float_parts.h"
#include "cpu/mask_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

typedef uint32_t LooseWords __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));
static_assert(sizeof(Part) == kVectorBytes);

template <class T>
constexpr bool kInPairs = false;
template <>
constexpr bool kInPairs<BFloat16> = true;

// One number, or a register of them.
template <class V>
V read(const float* from);
template <>
inline float read<float>(const float* from) {
  return *from;
}
template <>
inline Part read<Part>(const float* from) {
  return *reinterpret_cast<const LoosePart*>(from);
}

// kept_lanes: which lanes of a register are kept, from the bytes of their channels. rounded_up: from_float, in the upper
// half of every word.
#if defined(__AVX512F__)
struct KeptLanes {
  __mmask16 lanes;
};

inline KeptLanes kept_lanes(const uint32_t* bytes, uint32_t bit) {
  return {_mm512_test_epi32_mask(*reinterpret_cast<const __m512i*>(bytes), _mm512_set1_epi32(static_cast<int>(bit)))};
}

using fastadv::keep;

inline Part keep(KeptLanes kept, Part value, Part factor) {
  return (Part)_mm512_maskz_mul_ps(kept.lanes, (__m512)value, (__m512)factor);
}

inline Words rounded_up(Part value) {
  constexpr int kQuietNaN = 0x22;  // what becomes of NaN, quiet and not; everything else stays
  const __m512i bits = (__m512i)value;
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i sum = (__m512i)((Words)bits + 0x7fffu);
  const __m512i rounded = _mm512_mask_add_epi32(sum, odd, sum, _mm512_set1_epi32(1));
  return (Words)_mm512_mask_fixupimm_ps((__m512)rounded, 0xffff, (__m512)value, _mm512_set1_epi32(kQuietNaN), 0);
}
#else
inline auto kept_lanes(const uint32_t* bytes, uint32_t bit) {
  return (*reinterpret_cast<const Words*>(bytes) & bit) != 0;
}

inline Words rounded_up(Part value) {
  const Words bits = (Words)value;
  const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return value == value ? rounded : bits | 0x400000u;
}
#endif

// out = make(place, kept, x, grad) for the channels of a pixel, a register or one channel at a time. `kept` is sorted by
// parity; `place` is where the parameters of the channels are, sorted likewise.
template <class Make>
inline void walk_pairs(int64_t count, ByBit kept, const BFloat16* x, const BFloat16* grad, BFloat16* out, Make make) {
  int64_t i = 0;
  for (; 2 * (i + kPart) <= count; i += kPart) {
    const Words value = *reinterpret_cast<const LooseWords*>(x + 2 * i);
    const Words given = *reinterpret_cast<const LooseWords*>(grad + 2 * i);
    const auto even = kept_lanes(kept.each + i, kept.bit);
    const auto odd = kept_lanes(kept.each + kOdd + i, kept.bit);
    const Part low = make(i, even, (Part)(value << 16), (Part)(given << 16));
    const Part high = make(kOdd + i, odd, (Part)(value & 0xffff0000u), (Part)(given & 0xffff0000u));
    *reinterpret_cast<LooseWords*>(out + 2 * i) = rounded_up(low) >> 16 | (rounded_up(high) & 0xffff0000u);
  }
  for (int64_t channel = 2 * i; channel < count; ++channel) {
    const int64_t place = channel % 2 * kOdd + channel / 2;
    from_float(make(place, kept(kept.each[place]), to_float(x[channel]), to_float(grad[channel])), out[channel]);
  }
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
