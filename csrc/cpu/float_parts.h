// As many float32 as a register holds. Sixteen lanes, over which sums are made, are one of them or several.
#pragma once

#include <cstdint>

namespace fastadv::cpu::FASTADV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kPart = 16;
#elif defined(__AVX2__)
constexpr int64_t kPart = 8;
#else
constexpr int64_t kPart = 4;
#endif
typedef float Part __attribute__((vector_size(kPart * sizeof(float))));
typedef float LoosePart __attribute__((vector_size(kPart * sizeof(float)), aligned(sizeof(float)), may_alias));

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
