// The seven arguments that stand for a random stream, see fastadv/ops/random_key.py.
#pragma once

#include "common/philox.h"
#include "pointers.h"

namespace fastadv {

inline PhiloxKey key_of(Address ids, Address seed_at, int64_t seed, Address tick_each, int64_t tick, int64_t tick_step,
                        int64_t layer) {
  return {pointer<const int64_t>(ids), pointer<const int64_t>(seed_at), pointer<const int64_t>(tick_each), seed, tick,
          tick_step, layer};
}

}  // namespace fastadv
