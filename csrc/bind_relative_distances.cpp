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

void cpu::relative_distances(RelativeArgs& args, int threads, int isa, bool scaled) {
  DistanceArgs& all = args.distances;
  const int useful = useful_threads(all, threads);
  const auto each = [&](int64_t tasks, auto task) {
    parallel(tasks, useful, [&](int64_t index) { task(args, index); });
  };
  if (all.metric == kMetricCosine && !scaled) scale_vectors(all, useful, isa);
  if (!args.choose) each(all.images, FASTADV_PICK(isa, relative_own_task));
  for (int i = 0; i < all.layers; ++i)
    all.layer[i].tile = std::max<int64_t>(1, (1 << 15) / (all.layer[i].channels * args.part));
  number_tasks(all, [&](const DistanceLayer& layer) { return parts(args.parts, layer.tile); });
  each(all.tasks, FASTADV_PICK(isa, relative_distances_task));
  each(all.images, FASTADV_PICK(isa, relative_finish_task));
}

namespace {

void cpu_relative_distances(const Integers& layers, int metric, Address scales, Address own, bool choose, Address seen,
                            Address out, int64_t images, int64_t centroids, int threads, int isa) {
  cpu::check_isa(isa);
  pybind11::gil_scoped_release release;
  for_readings(layers, distance_args(metric, scales, out, images, centroids), own, choose, seen,
               [&](RelativeArgs& args) { cpu::relative_distances(args, threads, isa); });
}

#if FASTADV_WITH_CUDA
void cuda_relative_distances(const Integers& layers, int metric, Address scales, Address own, bool choose, Address seen,
                             Address out, int64_t images, int64_t centroids, int device, Address stream) {
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "relative_distances");
  for_readings(layers, distance_args(metric, scales, out, images, centroids), own, choose, seen,
               [&](const RelativeArgs& args) {
                 check_cuda(cuda::relative_distances(args, pointer<void>(stream)), "relative_distances");
               });
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_relative_distances", &cpu_relative_distances);
#if FASTADV_WITH_CUDA
  m.def("cuda_relative_distances", &cuda_relative_distances);
#endif
}

}  // namespace fastadv
