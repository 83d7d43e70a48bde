// Elements of bfloat16, two at a time: as the halves of a word they need neither be spread over two registers nor
// packed again, which takes as long as the arithmetic.
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

using Halved = ByBit<uint16_t>;

// Where the parameters of even channels begin, and those of odd ones.
constexpr int64_t kOdd = kTileChannels / 2;

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

// kept_halves: what is dropped is 0. rounded: from_float, of the lower and the upper half of every word.
#if defined(__AVX512F__)
typedef __mmask32 KeptHalves;

inline KeptHalves kept_halves(Halved kept, int64_t i) {
  return _mm512_test_epi16_mask(_mm512_loadu_si512(kept.each + i), _mm512_set1_epi16(static_cast<int16_t>(kept.bit)));
}

inline Words masked(KeptHalves kept, Words words) { return (Words)_mm512_maskz_mov_epi16(kept, (__m512i)words); }

inline Words rounded(Part low, Part high) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const auto select = [=](Words a, Words b) {  // the upper halves of a, the lower ones of b
    return _mm512_ternarylogic_epi32(upper, (__m512i)a, (__m512i)b, 0xca);
  };
  const __m512i made = select((Words)high, (Words)low >> 16);
  const __m512i rest = select((Words)high << 16, (Words)low);
  // Up where the rest is over one half, or at one half and what would be left is odd.
  const __m512i odd = _mm512_and_si512(made, _mm512_set1_epi16(1));
  const __mmask32 up = _mm512_cmpgt_epu16_mask(_mm512_adds_epu16(rest, odd), _mm512_set1_epi16(INT16_MIN));
  const __m512i next = _mm512_mask_add_epi16(made, up, made, _mm512_set1_epi16(1));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)low, (__m512)high, _CMP_UNORD_Q);
  if (__builtin_expect(nan == 0, 1)) return (Words)next;
  const auto quiet = [](Part value, Words words, Words bit) {
    const __mmask16 its = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
    return (Words)_mm512_mask_mov_epi32((__m512i)words, its, (__m512i)bit);
  };
  const Words fixed_low = quiet(low, (Words)next & 0xffffu, Words{} + 0x7fc0u);
  return fixed_low | quiet(high, (Words)next & 0xffff0000u, Words{} + 0x7fc00000u);
}

#else
typedef Halves KeptHalves;
typedef uint16_t LooseHalves __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));

inline KeptHalves kept_halves(Halved kept, int64_t i) {
  return (KeptHalves)((*reinterpret_cast<const LooseHalves*>(kept.each + i) & kept.bit) != 0);
}

inline Words masked(KeptHalves kept, Words words) { return words & (Words)kept; }

inline Words rounded(Part low, Part high) {
  const auto up = [](Part value) {
    const Words bits = (Words)value;
    return value == value ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x400000u;
  };
  return up(low) >> 16 | (up(high) & 0xffff0000u);
}
#endif

inline All kept_halves(All kept, int64_t) { return kept; }

inline Words masked(All, Words words) { return words; }

// out = make(place, x, grad) for the channels of a pixel, a register or one channel at a time, with what is dropped set
// to 0 in x (kBefore) and in what is made (kAfter). `place` is where the parameters of the channels are.
template <bool kBefore, bool kAfter, class Kept, class Make>
inline void walk_pairs(int64_t count, Kept kept, const BFloat16* x, const BFloat16* grad, BFloat16* out, Make make) {
  int64_t i = 0;
  for (; 2 * (i + kPart) <= count; i += kPart) {
    const auto stays = kept_halves(kept, 2 * i);
    Words value = *reinterpret_cast<const LooseWords*>(x + 2 * i);
    const Words given = *reinterpret_cast<const LooseWords*>(grad + 2 * i);
    if constexpr (kBefore) value = masked(stays, value);
    const Part low = make(i, (Part)(value << 16), (Part)(given << 16));
    const Part high = make(kOdd + i, (Part)(value & 0xffff0000u), (Part)(given & 0xffff0000u));
    Words made = rounded(low, high);
    if constexpr (kAfter) made = masked(stays, made);
    *reinterpret_cast<LooseWords*>(out + 2 * i) = made;
  }
  for (int64_t channel = 2 * i; channel < count; ++channel) {
    const bool stays = kept[channel];
    const float value = kBefore && !stays ? 0.0f : to_float(x[channel]);
    const float made = make(channel % 2 * kOdd + channel / 2, value, to_float(grad[channel]));
    from_float(kAfter && !stays ? 0.0f : made, out[channel]);
  }
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
