#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cuda/launch.h"
#include "layers.h"
#include "pointers.h"
#include "registration.h"
#include "status.h"

namespace fastadv {

void cpu::average_pool(PoolArgs& args, int threads, int isa) {
  int64_t elements = 0;
  for (int i = 0; i < args.layers; ++i) elements += args.images * args.layer[i].channels * args.layer[i].positions;
  if (elements < kSerialElements) threads = 1;
  // Memory is best read in long runs; short ones only where there is too little work to share.
  int64_t together = 1024;  // channels of a task where they lie together
  do {
    for (int i = 0; i < args.layers; ++i) {
      PoolLayer& layer = args.layer[i];
      layer.tile = channels_together(layer) ? together : std::max<int64_t>(1, 256 * together / layer.positions);
    }
    number_tasks(args, [&](const PoolLayer& layer) { return args.images * parts(layer.channels, layer.tile); });
    together /= 2;
  } while (args.tasks < 8 * threads && together >= 64);
  const auto task = FASTADV_PICK(isa, average_pool_task);
  parallel(args.tasks, threads, [&](int64_t index) { task(args, index); });
}

namespace {

void cpu_average_pool(const Integers& maps, int type, Address out, int64_t images, int64_t row, int threads, int isa) {
  cpu::check_isa(isa);
  pybind11::gil_scoped_release release;
  for_maps(maps, type, pointer<float>(out), images, row,
           [&](PoolArgs& args) { cpu::average_pool(args, threads, isa); });
}

#if FASTADV_WITH_CUDA
void cuda_average_pool(const Integers& maps, int type, Address out, int64_t images, int64_t row, int device,
                       Address stream) {
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "average_pool");
  for_maps(maps, type, pointer<float>(out), images, row, [&](const PoolArgs& args) {
    check_cuda(cuda::average_pool(args, pointer<void>(stream)), "average_pool");
  });
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_average_pool", &cpu_average_pool);
#if FASTADV_WITH_CUDA
  m.def("cuda_average_pool", &cuda_average_pool);
#endif
}

}  // namespace fastadv
