// Compiled once per instruction set, see sign_step.cpp. Uniform numbers from Philox4x32-10.
#include "common/philox.h"

#include "cpu/kernels.h"
#include "cpu/random_walk.h"

namespace fastadv::cpu::FASTADV_ISA {

void philox_task(const PhiloxArgs& args, int64_t task) {
  walk<PlainWords>(args.key, args.layout, task, [&](const uint32_t* words, const Run& run) {
    float* __restrict out = args.out + run.offset;
    for (int64_t i = 0; i < run.count; ++i) out[i] = uniform_from(words[i]);
  });
}

}  // namespace fastadv::cpu::FASTADV_ISA
