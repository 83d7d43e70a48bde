// Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the counter-based generator, and what
// a batch of images draws from it.
#pragma once

#include <cmath>

#include "common/types.h"

namespace fastadv {

// Where the numbers of a batch come from. Seed and ticks may lie in memory, so that a captured graph sees new ones.
struct PhiloxKey {
  const int64_t* ids;        // (images,)
  const int64_t* seed_at;    // null: `seed`
  const int64_t* tick_each;  // null: `tick`
  int64_t seed;
  int64_t tick;
  int64_t tick_step;  // 1: a tick for each image; 0: one for all
  int64_t layer;
};

// The words of the counter and the key that are the same for a whole image.
struct PhiloxStream {
  uint32_t k0, k1, second, id_lo, id_hi;
};

struct PhiloxBlock {
  uint32_t c0, c1, c2, c3;
};

// Numbers that become noise take the ten rounds that its authors recommend. A mask takes seven, the fewest that they
// call Crush-resistant (their table 2): of its draws only the side of the threshold is seen.
constexpr int kNumberRounds = 10;
constexpr int kMaskRounds = 7;

constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;

static FASTADV_HD PhiloxStream stream_of(const PhiloxKey& key, int64_t image) {
  const uint64_t seed = static_cast<uint64_t>(key.seed_at ? *key.seed_at : key.seed);
  const uint64_t tick = static_cast<uint64_t>(key.tick_each ? key.tick_each[image * key.tick_step] : key.tick);
  const uint64_t id = static_cast<uint64_t>(key.ids[image]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>((static_cast<uint64_t>(key.layer) << 20) + tick), static_cast<uint32_t>(id),
          static_cast<uint32_t>(id >> 32)};
}

// Words 4 * block .. 4 * block + 3 of an image.
template <int kRounds>
static FASTADV_HD PhiloxBlock philox(const PhiloxStream& stream, uint32_t block) {
  PhiloxBlock c = {block, stream.second, stream.id_lo, stream.id_hi};
  uint32_t k0 = stream.k0;
  uint32_t k1 = stream.k1;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c.c0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * c.c2;
    const PhiloxBlock next = {static_cast<uint32_t>(p1 >> 32) ^ c.c1 ^ k0, static_cast<uint32_t>(p1),
                              static_cast<uint32_t>(p0 >> 32) ^ c.c3 ^ k1, static_cast<uint32_t>(p0)};
    c = next;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return c;
}

// 24 bits: every value is a multiple of 2^-24 in [0, 1).
static FASTADV_HD float uniform_from(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 5.9604644775390625e-8f;
}

// Sizes of a batch whose elements are numbered in (C, H, W) order, and its order in memory.
struct BatchLayout {
  int64_t images;
  int64_t channels;
  int64_t plane;  // H * W
  int channels_last;
  Partition cut;  // of an image's elements, of its pixels, or of what a kernel says
};

struct PhiloxArgs {
  float* out;
  PhiloxKey key;
  BatchLayout layout;
};

}  // namespace fastadv
