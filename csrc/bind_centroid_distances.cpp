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
namespace {

template <class TasksOf>
void run(DistanceArgs& args, void (*task)(const DistanceArgs&, int64_t), TasksOf tasks_of, int threads) {
  number_tasks(args, tasks_of);
  cpu::parallel(args.tasks, threads, [&, task](int64_t index) { task(args, index); });
}

void set_tiles(DistanceArgs& args, int64_t elements) {
  // Whole groups of four vectors, together about `elements` numbers.
  for (int i = 0; i < args.layers; ++i)
    args.layer[i].tile = std::max<int64_t>(4, elements / args.layer[i].channels / 4 * 4);
}

DistanceArgs gradient_args(int metric, Address scales, Address grad, Address distances, Address out, int64_t images,
                           int64_t centroids, int64_t row) {
  DistanceArgs args = distance_args(metric, scales, out, images, centroids);
  args.grad = pointer<const float>(grad);
  args.distances = pointer<const float>(distances);
  args.row = row;
  return args;
}

}  // namespace

int cpu::useful_threads(const DistanceArgs& args, int threads) {
  int64_t products = 0;
  for (int i = 0; i < args.layers; ++i) products += args.images * args.centroids * args.layer[i].channels;
  return products < kSerialElements ? 1 : threads;
}

void cpu::scale_vectors(DistanceArgs& args, int threads, int isa) {
  set_tiles(args, 1 << 15);
  const int64_t vectors = args.centroids + args.images;
  run(args, FASTADV_PICK(isa, centroid_scales_task),
      [&](const DistanceLayer& layer) { return parts(vectors, layer.tile); }, threads);
}

void cpu::centroid_distances(DistanceArgs& args, int threads, int isa, bool scaled) {
  threads = useful_threads(args, threads);
  if (args.metric == kMetricCosine && !scaled) scale_vectors(args, threads, isa);
  set_tiles(args, 1 << 15);
  run(args, FASTADV_PICK(isa, centroid_distances_task),
      [&](const DistanceLayer& layer) { return parts(args.centroids, layer.tile); }, threads);
}

namespace {

void cpu_centroid_distances(const Integers& layers, int metric, Address scales, Address out, int64_t images,
                            int64_t centroids, int threads, int isa) {
  cpu::check_isa(isa);
  pybind11::gil_scoped_release release;
  for_distances(layers, distance_args(metric, scales, out, images, centroids),
                [&](DistanceArgs& args) { cpu::centroid_distances(args, threads, isa); });
}

void cpu_centroid_distances_backward(const Integers& layers, int metric, Address scales, Address grad,
                                     Address distances, Address out, int64_t images, int64_t centroids, int64_t row,
                                     int threads, int isa) {
  cpu::check_isa(isa);
  pybind11::gil_scoped_release release;
  const DistanceArgs common = gradient_args(metric, scales, grad, distances, out, images, centroids, row);
  for_distances(layers, common, [&](DistanceArgs& args) {
    const int useful = cpu::useful_threads(args, threads);
    if (args.metric == kMetricCosine) cpu::scale_vectors(args, useful, isa);
    // Wide tiles make the weights less often; narrow ones, where there are few, give every thread one.
    const int64_t blocks = parts(images, cpu::kGradientImages);
    int64_t tasks = 0;
    for (int i = 0; i < args.layers; ++i) tasks += blocks * parts(args.layer[i].channels, cpu::kGradientChannels);
    const int64_t pieces = std::clamp<int64_t>(parts(useful, tasks), 1, cpu::kGradientChannels / 32);
    const int64_t width = cpu::kGradientChannels / pieces / 32 * 32;
    for (int i = 0; i < args.layers; ++i) args.layer[i].tile = width;
    run(args, FASTADV_PICK(isa, centroid_gradient_task),
        [&](const DistanceLayer& layer) { return blocks * parts(layer.channels, layer.tile); }, useful);
  });
}

#if FASTADV_WITH_CUDA
void cuda_centroid_distances(const Integers& layers, int metric, Address scales, Address out, int64_t images,
                             int64_t centroids, int device, Address stream) {
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "centroid_distances");
  for_distances(layers, distance_args(metric, scales, out, images, centroids), [&](const DistanceArgs& args) {
    check_cuda(cuda::centroid_distances(args, pointer<void>(stream)), "centroid_distances");
  });
}

void cuda_centroid_distances_backward(const Integers& layers, int metric, Address scales, Address grad,
                                      Address distances, Address out, int64_t images, int64_t centroids, int64_t row,
                                      int device, Address stream) {
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "centroid_distances");
  const DistanceArgs common = gradient_args(metric, scales, grad, distances, out, images, centroids, row);
  for_distances(layers, common, [&](const DistanceArgs& args) {
    check_cuda(cuda::centroid_gradient(args, pointer<void>(stream)), "centroid_distances (backward)");
  });
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_centroid_distances", &cpu_centroid_distances);
  m.def("cpu_centroid_distances_backward", &cpu_centroid_distances_backward);
#if FASTADV_WITH_CUDA
  m.def("cuda_centroid_distances", &cuda_centroid_distances);
  m.def("cuda_centroid_distances_backward", &cuda_centroid_distances_backward);
#endif
}

}  // namespace fastadv
