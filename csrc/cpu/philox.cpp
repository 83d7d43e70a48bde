// Compiled once per instruction set, see sign_step.cpp. Uniform numbers from Philox4x32-10.
#include "common/philox.h"

#include "cpu/kernels.h"
#include "cpu/span.h"

namespace fastadv::cpu::FASTADV_ISA {

void philox_task(const PhiloxArgs& args, int64_t task) {
  constexpr int kWide = 16;  // blocks made at a time, so that the rounds vectorise
  const Span span = span_of(task, args.size, args.cut);
  const uint32_t k0 = static_cast<uint32_t>(args.seed);
  const uint32_t k1 = static_cast<uint32_t>(args.seed >> 32);
  const uint64_t id = static_cast<uint64_t>(args.ids[span.image]);
  const uint32_t stream = static_cast<uint32_t>(args.stream_each ? args.stream_each[span.image] : args.stream);
  const uint32_t id_lo = static_cast<uint32_t>(id);
  const uint32_t id_hi = static_cast<uint32_t>(id >> 32);
  float* __restrict out = args.out + span.offset;
  const int64_t first = span.chunk * args.cut.chunk;  // a multiple of 16, so chunks start on a whole block
  for (int64_t done = 0; done < span.length; done += 4 * kWide) {
    const uint32_t counter = static_cast<uint32_t>((first + done) / 4);
    float values[4 * kWide];
    for (int block = 0; block < kWide; ++block) {
      const PhiloxBlock words = philox({counter + static_cast<uint32_t>(block), stream, id_lo, id_hi}, k0, k1);
      values[4 * block] = uniform_from(words.c0);
      values[4 * block + 1] = uniform_from(words.c1);
      values[4 * block + 2] = uniform_from(words.c2);
      values[4 * block + 3] = uniform_from(words.c3);
    }
    const int64_t left = span.length - done;
    const int64_t count = left < 4 * kWide ? left : 4 * kWide;
    for (int64_t i = 0; i < count; ++i) out[done + i] = values[i];
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
