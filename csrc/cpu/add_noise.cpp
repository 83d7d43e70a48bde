// Compiled once per instruction set, see sign_step.cpp.
#include "common/add_noise.h"

#include "cpu/kernels.h"
#include "cpu/random_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

struct NormalPairs {
  static constexpr bool kPlain = false;
  static void pair(uint32_t& first, uint32_t& second) {
    float a, b;
    normal_pair(first, second, a, b);
    first = to_bits(a);
    second = to_bits(b);
  }
};

template <class Pairs>
void add(const AddNoiseArgs& args, int64_t task) {
  walk<Pairs>(args.key, args.layout, task, [&](const uint32_t* words, const Run& run) {
    const float scale = args.scale_each ? args.scale_each[run.image] : args.scale;
    const float lo = args.lo;
    const float hi = args.hi;
    const auto value = [=](uint32_t word, float base) {
      return noised(base, scale, Pairs::kPlain ? uniform_noise(word) : from_bits(word), lo, hi);
    };
    float* __restrict x = args.x + run.offset;
    if (args.origin == args.x) {
      for (int64_t i = 0; i < run.count; ++i) x[i] = value(words[i], x[i]);
    } else {
      const float* __restrict origin = args.origin + run.offset;
      for (int64_t i = 0; i < run.count; ++i) x[i] = value(words[i], origin[i]);
    }
  });
}

}  // namespace

void add_noise_task(const AddNoiseArgs& args, int64_t task) {
  if (args.kind == kUniformNoise) return add<PlainWords>(args, task);
  add<NormalPairs>(args, task);
}

}  // namespace fastadv::cpu::FASTADV_ISA
