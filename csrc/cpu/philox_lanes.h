// Philox blocks side by side in vector registers, one in each 64-bit lane. The two products of a round need the low
// half of a lane only and give 64 bits, so nothing has to be masked or moved between the rounds: twice as fast as
// what a compiler makes of the scalar function.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/philox.h"
#include "cpu/unroll.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kChains = 4;  // registers of blocks made side by side
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kChains = 2;
#else
constexpr int kVectorBytes = 16;
constexpr int kChains = 2;
#endif
constexpr int kBlocks = kVectorBytes / 8;  // in one register

typedef uint64_t Wide __attribute__((vector_size(kVectorBytes), may_alias));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes), may_alias));

// Product of the low halves of the lanes; the even 64-bit lanes of two vectors, alternating; the odd ones; the low
// halves of two vectors as one. (A mask of ones changes nothing; GCC 12 warns of an uninitialised value inside the
// forms without.)
#if defined(__AVX512F__)
inline Wide product(Wide a, Wide b) { return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b); }
inline Wide even(Wide a, Wide b) { return (Wide)_mm512_maskz_unpacklo_epi64(0xff, (__m512i)a, (__m512i)b); }
inline Wide odd(Wide a, Wide b) { return (Wide)_mm512_maskz_unpackhi_epi64(0xff, (__m512i)a, (__m512i)b); }
inline Wide packed(Wide low, Wide high) {
  return (Wide)_mm512_mask_shuffle_epi32((__m512i)low, 0xaaaa, (__m512i)high, _MM_PERM_CCAA);
}
#elif defined(__AVX2__)
inline Wide product(Wide a, Wide b) { return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
inline Wide even(Wide a, Wide b) { return (Wide)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b); }
inline Wide odd(Wide a, Wide b) { return (Wide)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b); }
inline Wide packed(Wide low, Wide high) {
  return (Wide)_mm256_blend_epi32((__m256i)low, _mm256_shuffle_epi32((__m256i)high, 0xa0), 0xaa);
}
#elif defined(__SSE2__)
inline Wide product(Wide a, Wide b) { return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)b); }
inline Wide even(Wide a, Wide b) { return (Wide)_mm_unpacklo_epi64((__m128i)a, (__m128i)b); }
inline Wide odd(Wide a, Wide b) { return (Wide)_mm_unpackhi_epi64((__m128i)a, (__m128i)b); }
inline Wide packed(Wide low, Wide high) { return (low & 0xffffffffu) | (high << 32); }
#else
inline Wide product(Wide a, Wide b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
inline Wide even(Wide a, Wide b) { return Wide{a[0], b[0]}; }
inline Wide odd(Wide a, Wide b) { return Wide{a[1], b[1]}; }
inline Wide packed(Wide low, Wide high) { return (low & 0xffffffffu) | (high << 32); }
#endif

inline Wide all(uint32_t value) { return Wide{} + value; }

// A stream in every lane. Only the number of the block differs between lanes, so the first two rounds know half of
// their words beforehand: they are constants here, with the keys already in them.
template <int kRounds>
struct WideStream {
  Wide first, second0, second2, second3;
  Wide k0[kRounds], k1[kRounds];  // of rounds 2 and later
};

template <int kRounds>
inline WideStream<kRounds> widened(const PhiloxStream& stream) {
  WideStream<kRounds> wide;
  const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * stream.id_lo;
  const uint32_t c0 = static_cast<uint32_t>(p1 >> 32) ^ stream.second ^ stream.k0;
  const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c0;
  wide.first = all(stream.id_hi ^ stream.k1);
  wide.second0 = all(static_cast<uint32_t>(p1) ^ (stream.k0 + kPhiloxW0));
  wide.second2 = all(static_cast<uint32_t>(p0 >> 32) ^ (stream.k1 + kPhiloxW1));
  wide.second3 = all(static_cast<uint32_t>(p0));
  for (uint32_t round = 2; round < kRounds; ++round) {
    wide.k0[round] = all(stream.k0 + round * kPhiloxW0);
    wide.k1[round] = all(stream.k1 + round * kPhiloxW1);
  }
  return wide;
}

// The words of `kBlocks` blocks, in the low halves of the lanes; the high halves hold whatever.
struct WideBlock {
  Wide c0, c1, c2, c3;
};

// Blocks `number[k]`, side by side: a round is a chain of dependent instructions, and the processor sees too few of
// another one by itself.
template <int kCount, int kRounds>
inline void philox_wide(const WideStream<kRounds>& stream, const Wide* number, WideBlock* c) {
  const Wide m0 = all(kPhiloxM0);
  const Wide m1 = all(kPhiloxM1);
  FASTADV_UNROLL
  for (int k = 0; k < kCount; ++k) {
    const Wide p0 = product(number[k], m0);
    const Wide p1 = product((p0 >> 32) ^ stream.first, m1);
    c[k] = {(p1 >> 32) ^ stream.second0, p1, p0 ^ stream.second2, stream.second3};
  }
  FASTADV_UNROLL
  for (int round = 2; round < kRounds; ++round) {
    FASTADV_UNROLL
    for (int k = 0; k < kCount; ++k) {
      const Wide p0 = product(c[k].c0, m0);
      const Wide p1 = product(c[k].c2, m1);
      c[k] = {(p1 >> 32) ^ c[k].c1 ^ stream.k0[round], p1, (p0 >> 32) ^ c[k].c3 ^ stream.k1[round], p0};
    }
  }
}

// `count` words in order, from word 4 * block on. Rounds up: `out` has room for a multiple of kTogether words.
constexpr int64_t kTogether = 4 * kBlocks * kChains;

template <int kRounds>
inline void words_in_order(const WideStream<kRounds>& stream, uint32_t block, int64_t count, uint32_t* out) {
  Wide lanes{};  // which block a lane makes: such that taking even and odd lanes leaves them in order
  for (int lane = 0; lane < kBlocks; ++lane) lanes[lane] = static_cast<uint64_t>(lane % 2 * (kBlocks / 2) + lane / 2);
  for (int64_t i = 0; i < count; i += kTogether) {
    Wide number[kChains];
    WideBlock made[kChains];
    FASTADV_UNROLL
    for (int k = 0; k < kChains; ++k) number[k] = lanes + (block + static_cast<uint32_t>(i / 4 + k * kBlocks));
    philox_wide<kChains>(stream, number, made);
    FASTADV_UNROLL
    for (int k = 0; k < kChains; ++k) {
      Wide* to = reinterpret_cast<Wide*>(out + i + k * 4 * kBlocks);
      const Wide first = packed(made[k].c0, made[k].c1);
      const Wide second = packed(made[k].c2, made[k].c3);
      to[0] = even(first, second);
      to[1] = odd(first, second);
    }
  }
}

// kVectors * 2 * kBlocks blocks, numbered by `blocks` and `group`: every other one in made[2k], the rest in made[2k + 1].
template <int kVectors, int kRounds>
inline void blocks_side_by_side(const WideStream<kRounds>& stream, const uint32_t* blocks, uint32_t group, WideBlock* made) {
  Wide number[2 * kVectors];
  FASTADV_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const Wide both = (Wide)(*reinterpret_cast<const Words*>(blocks + k * 2 * kBlocks) + group);
    number[2 * k] = both;  // a product looks at the low half only
    number[2 * k + 1] = both >> 32;
  }
  philox_wide<2 * kVectors>(stream, number, made);
}

// Their words 0 .. 3; word w goes to out[w * pitch + i].
template <int kVectors, int kRounds>
inline void word_planes(const WideStream<kRounds>& stream, const uint32_t* blocks, uint32_t group, uint32_t* out,
                        int64_t pitch) {
  WideBlock made[2 * kVectors];
  blocks_side_by_side<kVectors>(stream, blocks, group, made);
  FASTADV_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const WideBlock& a = made[2 * k];
    const WideBlock& b = made[2 * k + 1];
    uint32_t* to = out + k * 2 * kBlocks;
    *reinterpret_cast<Wide*>(to) = packed(a.c0, b.c0);
    *reinterpret_cast<Wide*>(to + pitch) = packed(a.c1, b.c1);
    *reinterpret_cast<Wide*>(to + 2 * pitch) = packed(a.c2, b.c2);
    *reinterpret_cast<Wide*>(to + 3 * pitch) = packed(a.c3, b.c3);
  }
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
