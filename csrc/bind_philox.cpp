#include <pybind11/pybind11.h>

#include "common/philox.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "pointers.h"

namespace fastadv {
namespace {

void cpu_philox_uniform(Address out, Address ids, uint64_t seed, Address stream_each, int64_t stream, int64_t images,
                        int64_t size, int threads, int isa) {
  cpu::check_isa(isa);
  const PhiloxArgs args = {pointer<float>(out), pointer<const int64_t>(ids), pointer<const int64_t>(stream_each),
                           stream,              seed,                        images,
                           size,                partition(size, 1 << 14)};
  const auto task = FASTADV_PICK(isa, philox_task);
  if (images * size < cpu::kSerialElements) threads = 1;
  pybind11::gil_scoped_release release;
  cpu::parallel(images * args.cut.chunks, threads, [&](int64_t index) { task(args, index); });
}

}  // namespace

void register_philox(pybind11::module_& m) { m.def("cpu_philox_uniform", &cpu_philox_uniform); }

}  // namespace fastadv
