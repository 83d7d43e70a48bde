#include <pybind11/pybind11.h>

#include "common/philox.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/random_tasks.h"
#include "key.h"
#include "pointers.h"
#include "registration.h"

namespace fastadv {
namespace {

void cpu_philox_uniform(Address out, Address ids, Address seed_at, int64_t seed, Address tick_each, int64_t tick,
                        int64_t tick_step, int64_t layer, int64_t images, int64_t size, int threads, int isa) {
  cpu::check_isa(isa);
  const PhiloxArgs args = {pointer<float>(out), key_of(ids, seed_at, seed, tick_each, tick, tick_step, layer),
                           {images, 1, size, 0, partition(size, cpu::kRandomChunk)}};
  cpu::parallel_images(args, args.layout, FASTADV_PICK(isa, philox_task), threads);
}

}  // namespace

FASTADV_REGISTER(m) { m.def("cpu_philox_uniform", &cpu_philox_uniform); }

}  // namespace fastadv
