// What the C++ and the CUDA kernels share: element types, conversions and the split of an image into chunks.
// Free functions are `static`: the same header is compiled for several instruction sets, and the linker must not
// pick the AVX-512 copy of an inline function for a baseline caller.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTADV_HD __host__ __device__ __forceinline__
#else
#define FASTADV_HD inline
#endif

namespace fastadv {

// Codes of an element type, as Python passes them.
enum GradType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

static inline int64_t bytes_of(int type) { return type == kFloat32 ? 4 : 2; }

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

static FASTADV_HD float from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

static FASTADV_HD uint32_t to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

static FASTADV_HD float to_float(float value) { return value; }

static FASTADV_HD float to_float(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

// Exact. The exponent is rebiased by one multiplication, which also normalises subnormals; infinities and NaN are
// put back by a select, so the whole of it vectorises.
static FASTADV_HD float to_float(Float16 value) {
  const uint32_t sign = (static_cast<uint32_t>(value.bits) & 0x8000u) << 16;
  const uint32_t magnitude = (static_cast<uint32_t>(value.bits) & 0x7fffu) << 13;
  const uint32_t scaled = to_bits(from_bits(magnitude) * from_bits(0x77800000u));  // 2^112
  const uint32_t bits = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : scaled;
  return from_bits(bits | sign);
}

// Rounds to nearest, ties to even; a NaN stays one. (Overloads, since a specialised template is not `static`.)
static FASTADV_HD void from_float(float value, float& out) { out = value; }

static FASTADV_HD void from_float(float value, BFloat16& out) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

// Below 2^-14 the result is a multiple of 2^-24, the last place of a float at 0.5: adding 0.5 rounds to it.
static FASTADV_HD void from_float(float value, Float16& out) {
  const uint32_t sign = (to_bits(value) >> 16) & 0x8000u;
  const uint32_t size = to_bits(value) & 0x7fffffffu;
  const uint32_t normal = ((size + 0xfffu + ((size >> 13) & 1u)) >> 13) - 0x1c000u;
  const uint32_t tiny = to_bits(from_bits(size) + 0.5f) - 0x3f000000u;
  uint32_t bits = size < 0x38800000u ? tiny : normal;
  bits = size >= 0x477ff000u ? 0x7c00u : bits;  // 65520 and more
  bits = size > 0x7f800000u ? 0x7e00u : bits;
  out.bits = static_cast<uint16_t>(bits | sign);
}

// False for NaN and for both infinities.
static FASTADV_HD bool is_finite(float value) { return (to_bits(value) & 0x7fffffffu) < 0x7f800000u; }

static FASTADV_HD float sign_of(float value) {
  return static_cast<float>(value > 0.0f) - static_cast<float>(value < 0.0f);
}

// An image of `size` elements is cut into `chunks` chunks of `chunk` elements (the last one may be shorter).
struct Partition {
  int64_t chunk;
  int64_t chunks;
};

constexpr int64_t kMaxChunks = 256;  // a block of 256 threads adds up one image's partial sums

// The cut depends on the size only, never on the number of threads, so that sums are reproducible.
static inline Partition partition(int64_t size, int64_t target) {
  int64_t chunks = (size + target - 1) / target;
  if (chunks > kMaxChunks) chunks = kMaxChunks;
  if (chunks < 1) chunks = 1;
  int64_t chunk = (size + chunks - 1) / chunks;
  chunk = (chunk + 15) / 16 * 16;  // keeps every chunk on a 16-byte boundary for every element type
  if (chunk < 16) chunk = 16;
  chunks = (size + chunk - 1) / chunk;
  return {chunk, chunks < 1 ? 1 : chunks};
}

}  // namespace fastadv
