#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cuda/launch.h"
#include "layers.h"
#include "pointers.h"
#include "registration.h"
#include "status.h"

// average_pool, then relative_distances, in one call. Every layer of `layers` has its features in `pooled`.
namespace fastadv {
namespace {

void cpu_pooled_relative_distances(const Integers& maps, int type, Address pooled, int64_t row, const Integers& layers,
                                   int metric, Address scales, Address own, bool choose, Address seen, Address out,
                                   int64_t images, int64_t centroids, int threads, int isa) {
  cpu::check_isa(isa);
  pybind11::gil_scoped_release release;
  for_maps(maps, type, pointer<float>(pooled), images, row,
           [&](PoolArgs& args) { cpu::average_pool(args, threads, isa); });
  for_readings(layers, distance_args(metric, scales, out, images, centroids), own, choose, seen,
               [&](RelativeArgs& args) { cpu::relative_distances(args, threads, isa); });
}

#if FASTADV_WITH_CUDA
void cuda_pooled_relative_distances(const Integers& maps, int type, Address pooled, int64_t row,
                                    const Integers& layers, int metric, Address scales, Address own, bool choose,
                                    Address seen, Address out, int64_t images, int64_t centroids, int device,
                                    Address stream) {
  constexpr const char* name = "pooled_relative_distances";
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, name);
  for_maps(maps, type, pointer<float>(pooled), images, row,
           [&](const PoolArgs& args) { check_cuda(cuda::average_pool(args, pointer<void>(stream)), name); });
  for_readings(layers, distance_args(metric, scales, out, images, centroids), own, choose, seen,
               [&](const RelativeArgs& args) {
                 check_cuda(cuda::relative_distances(args, pointer<void>(stream)), name);
               });
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_pooled_relative_distances", &cpu_pooled_relative_distances);
#if FASTADV_WITH_CUDA
  m.def("cuda_pooled_relative_distances", &cuda_pooled_relative_distances);
#endif
}

}  // namespace fastadv
