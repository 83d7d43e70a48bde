// add_noise_: x <- clip(x + scale * noise). The arithmetic, once, for C++ and CUDA. No mathematical library: sums,
// products and square roots only, which every processor rounds alike, so that all compiled backends give the same bits.
#pragma once

#include "common/philox.h"
#include "common/sign_step.h"

namespace fastadv {

enum Noise : int { kUniformNoise = 0, kGaussianNoise = 1 };

struct AddNoiseArgs {
  float* x;
  const float* origin;      // what the noise is added to; may be x
  const float* scale_each;  // (images,); null: `scale`
  float scale;
  float lo;
  float hi;
  int kind;
  PhiloxKey key;
  BatchLayout layout;
};

// In [-1, 1), exact.
static FASTADV_HD float uniform_noise(uint32_t word) { return 2.0f * uniform_from(word) - 1.0f; }

// -ln(n * 2^-24) for n in [1, 2^24], within 2 units in the last place.
static FASTADV_HD float minus_log(uint32_t n) {
  const uint32_t bits = to_bits(static_cast<float>(static_cast<int32_t>(n))) - 0x3f3504f3u;  // of sqrt(1/2)
  const float exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 24);
  const float f = from_bits((bits & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  float sum = -0.07622111588716507f;
  sum = sum * f + 0.12904690206050873f;
  sum = sum * f - 0.13242974877357483f;
  sum = sum * f + 0.14181779325008392f;
  sum = sum * f - 0.16609077155590057f;
  sum = sum * f + 0.20001976191997528f;
  sum = sum * f - 0.25001582503318787f;
  sum = sum * f + 0.33333325386047363f;
  sum = sum * f - 0.49999988079071045f;
  return exponent * -0.69314718246459961f - (f * f * sum + f);
}

// Two standard normal numbers from two words (Box and Muller 1958).
static FASTADV_HD void normal_pair(uint32_t first, uint32_t second, float& a, float& b) {
  const float radius = sqrtf(2.0f * minus_log((first >> 8) + 1u));
  const uint32_t turn = second >> 8;  // in 2^-24 of a turn
  const uint32_t quarter = (turn + (1u << 21)) >> 22;
  const float y = static_cast<float>(static_cast<int32_t>(turn) - static_cast<int32_t>(quarter << 22)) *
                  3.7450703e-7f;  // within an eighth of a turn of the nearest quarter, in radians
  const float z = y * y;
  const float sine = y + y * z * (-0.16666655242443085f + z * (0.008332177996635437f + z * -0.0001951729936990887f));
  const float cosine = 1.0f + z * (-0.5f + z * (0.04166662320494652f +
                                                z * (-0.0013886763481423259f + z * 2.4390450562350452e-05f)));
  const bool swapped = (quarter & 1u) != 0;
  const float across = swapped ? sine : cosine;
  const float along = swapped ? cosine : sine;
  a = radius * (((quarter + 1u) & 2u) != 0 ? -across : across);
  b = radius * ((quarter & 2u) != 0 ? -along : along);
}

static FASTADV_HD float noised(float base, float scale, float noise, float lo, float hi) {
  return clip(base + scale * noise, lo, hi);
}

}  // namespace fastadv
