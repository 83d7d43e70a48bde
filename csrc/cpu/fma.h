// a * b + c, rounded once, on every instruction set: the same bits. Where the processor has no such instruction, slow.
#pragma once

#if defined(__FMA__)
#include <immintrin.h>
#endif

#include "cpu/float_parts.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

inline Part fma(Part a, Part b, Part c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  Part made;
  for (int64_t i = 0; i < kPart; ++i) made[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return made;
#endif
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
