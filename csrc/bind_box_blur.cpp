#include <pybind11/pybind11.h>

#include "common/box_blur.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"
#include "cuda/launch.h"
#include "pointers.h"
#include "registration.h"
#include "status.h"

namespace fastadv {
namespace {

constexpr int64_t kCpuElements = 1 << 14;  // of a task, about

BoxBlurArgs pack(Address x, Address out, int type, int64_t planes, int64_t rows, int64_t row, int64_t inner) {
  return {pointer<const void>(x, type), pointer<void>(out, type), type, planes, rows, row, inner};
}

void cpu_box_blur(Address x, Address out, int type, int64_t planes, int64_t rows, int64_t row, int64_t inner,
                  int threads, int isa) {
  cpu::check_isa(isa);
  const BoxBlurArgs args = pack(x, out, type, planes, rows, row, inner);
  const auto task = FASTADV_PICK(isa, box_blur_task);
  const int64_t total = planes * rows;
  const int64_t together = row < kCpuElements ? kCpuElements / row : 1;
  if (total * row < cpu::kSerialElements) threads = 1;
  pybind11::gil_scoped_release release;
  cpu::about_to_fill(pointer<void>(out), total * row * bytes_of(type));
  cpu::parallel((total + together - 1) / together, threads, [&](int64_t index) {
    const int64_t end = (index + 1) * together;
    for (int64_t i = index * together; i < (end < total ? end : total); ++i) task(args, i);
  });
}

#if FASTADV_WITH_CUDA
void cuda_box_blur(Address x, Address out, int type, int64_t planes, int64_t rows, int64_t row, int64_t inner,
                   int device, Address stream) {
  const BoxBlurArgs args = pack(x, out, type, planes, rows, row, inner);
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "box_blur");
  check_cuda(cuda::box_blur(args, pointer<void>(stream)), "box_blur");
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_box_blur", &cpu_box_blur);
#if FASTADV_WITH_CUDA
  m.def("cuda_box_blur", &cuda_box_blur);
#endif
}

}  // namespace fastadv
