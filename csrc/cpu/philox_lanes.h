// Philox blocks side by side in vector registers, one in each 64-bit lane. The two products of a round need the low
// half of a lane only and give 64 bits, so nothing has to be masked or moved between the rounds: twice as fast as
// what a compiler makes of the scalar function.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/philox.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kBlocks = kVectorBytes / 8;  // in one register

typedef uint64_t Wide __attribute__((vector_size(kVectorBytes), may_alias));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes), may_alias));

// Product of the low halves of the lanes; the even 64-bit lanes of two vectors, alternating; the odd ones. (A mask of
// ones changes nothing; GCC 12 warns of an uninitialised value inside the forms without.)
#if defined(__AVX512F__)
inline Wide product(Wide a, Wide b) { return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b); }
inline Wide even(Wide a, Wide b) { return (Wide)_mm512_maskz_unpacklo_epi64(0xff, (__m512i)a, (__m512i)b); }
inline Wide odd(Wide a, Wide b) { return (Wide)_mm512_maskz_unpackhi_epi64(0xff, (__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
inline Wide product(Wide a, Wide b) { return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
inline Wide even(Wide a, Wide b) { return (Wide)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b); }
inline Wide odd(Wide a, Wide b) { return (Wide)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b); }
#elif defined(__SSE2__)
inline Wide product(Wide a, Wide b) { return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)b); }
inline Wide even(Wide a, Wide b) { return (Wide)_mm_unpacklo_epi64((__m128i)a, (__m128i)b); }
inline Wide odd(Wide a, Wide b) { return (Wide)_mm_unpackhi_epi64((__m128i)a, (__m128i)b); }
#else
inline Wide product(Wide a, Wide b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
inline Wide even(Wide a, Wide b) { return Wide{a[0], b[0]}; }
inline Wide odd(Wide a, Wide b) { return Wide{a[1], b[1]}; }
#endif

inline Wide all(uint32_t value) { return Wide{} + value; }

// The words of `kBlocks` blocks, in the low halves of the lanes; the high halves hold whatever.
struct WideBlock {
  Wide c0, c1, c2, c3;
};

inline WideBlock philox_wide(const PhiloxStream& stream, Wide blocks) {
  WideBlock c = {blocks, all(stream.second), all(stream.id_lo), all(stream.id_hi)};
  uint32_t k0 = stream.k0;
  uint32_t k1 = stream.k1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const Wide p0 = product(c.c0, all(kPhiloxM0));
    const Wide p1 = product(c.c2, all(kPhiloxM1));
    c = {(p1 >> 32) ^ c.c1 ^ all(k0), p1, (p0 >> 32) ^ c.c3 ^ all(k1), p0};
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return c;
}

inline Wide packed(Wide low, Wide high) { return (low & 0xffffffffu) | (high << 32); }

// `count` words in order, from word 4 * block on. Rounds up: `out` has room for a multiple of 4 * kBlocks words.
inline void words_in_order(const PhiloxStream& stream, uint32_t block, int64_t count, uint32_t* out) {
  Wide lanes{};  // which block a lane makes: such that taking even and odd lanes leaves them in order
  for (int lane = 0; lane < kBlocks; ++lane) lanes[lane] = static_cast<uint64_t>(lane % 2 * (kBlocks / 2) + lane / 2);
  for (int64_t i = 0; i < count; i += 4 * kBlocks) {
    const WideBlock made = philox_wide(stream, lanes + (block + static_cast<uint32_t>(i / 4)));
    const Wide first = packed(made.c0, made.c1);
    const Wide second = packed(made.c2, made.c3);
    *reinterpret_cast<Wide*>(out + i) = even(first, second);
    *reinterpret_cast<Wide*>(out + i + 2 * kBlocks) = odd(first, second);
  }
}

// Words 0 .. 3 of 2 * kBlocks blocks, each in a vector of its own.
struct WordPlanes {
  Words plane[4];
};

inline WordPlanes word_planes(const PhiloxStream& stream, Words blocks) {
  const Wide both = (Wide)blocks;
  const WideBlock a = philox_wide(stream, both & 0xffffffffu);
  const WideBlock b = philox_wide(stream, both >> 32);
  return {{(Words)packed(a.c0, b.c0), (Words)packed(a.c1, b.c1), (Words)packed(a.c2, b.c2), (Words)packed(a.c3, b.c3)}};
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
