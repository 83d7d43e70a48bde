#include <pybind11/pybind11.h>

#include "common/knn_score.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cuda/launch.h"
#include "pointers.h"
#include "registration.h"
#include "status.h"

namespace fastadv {
namespace {

KnnScoreArgs pack(Address distances, int64_t distance_stride, Address labels, int64_t label_stride, Address predicted,
                  Address out, int64_t rows, int64_t neighbours, int weighting) {
  return {pointer<const float>(distances),
          pointer<const int64_t>(labels),
          pointer<const int64_t>(predicted),
          pointer<float>(out),
          rows,
          neighbours,
          distance_stride,
          label_stride,
          weighting};
}

void cpu_knn_score(Address distances, int64_t distance_stride, Address labels, int64_t label_stride, Address predicted,
                   Address out, int64_t rows, int64_t neighbours, int weighting, int threads, int isa) {
  cpu::check_isa(isa);
  const KnnScoreArgs args =
      pack(distances, distance_stride, labels, label_stride, predicted, out, rows, neighbours, weighting);
  const auto task = FASTADV_PICK(isa, knn_score_task);
  if (rows * neighbours < cpu::kSerialElements) threads = 1;
  pybind11::gil_scoped_release release;
  cpu::parallel(rows, threads, [&](int64_t row) { task(args, row); });
}

#if FASTADV_WITH_CUDA
void cuda_knn_score(Address distances, int64_t distance_stride, Address labels, int64_t label_stride,
                    Address predicted, Address out, int64_t rows, int64_t neighbours, int weighting, int device,
                    Address stream) {
  const KnnScoreArgs args =
      pack(distances, distance_stride, labels, label_stride, predicted, out, rows, neighbours, weighting);
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "knn_score");
  check_cuda(cuda::knn_score(args, pointer<void>(stream)), "knn_score");
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_knn_score", &cpu_knn_score);
#if FASTADV_WITH_CUDA
  m.def("cuda_knn_score", &cuda_knn_score);
#endif
}

}  // namespace fastadv
