// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the counter-based generator.
#pragma once

#include "common/types.h"

namespace fastadv {

struct PhiloxArgs {
  float* out;              // (images, size)
  const int64_t* ids;      // (images,)
  const int64_t* stream_each;  // (images,) or null: layer * 2^20 + tick
  int64_t stream;
  uint64_t seed;
  int64_t images;
  int64_t size;
  Partition cut;
};

struct PhiloxBlock {
  uint32_t c0, c1, c2, c3;
};

static FASTADV_HD PhiloxBlock philox(PhiloxBlock c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c.c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c.c2;
    const PhiloxBlock next = {static_cast<uint32_t>(p1 >> 32) ^ c.c1 ^ k0, static_cast<uint32_t>(p1),
                              static_cast<uint32_t>(p0 >> 32) ^ c.c3 ^ k1, static_cast<uint32_t>(p0)};
    c = next;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// 24 bits: every value is a multiple of 2^-24 in [0, 1).
static FASTADV_HD float uniform_from(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 5.9604644775390625e-8f;
}

}  // namespace fastadv
