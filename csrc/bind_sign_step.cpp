#include <pybind11/pybind11.h>

#include "common/sign_step.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cuda/launch.h"
#include "pointers.h"
#include "registration.h"
#include "status.h"

namespace fastadv {
namespace {

constexpr int64_t kCpuChunk = 1 << 15;

SignStepArgs pack(Address x, Address grad, int grad_type, Address origin, Address alpha_each, double alpha,
                  Address eps_each, double eps, Address active, Address stats, double lo, double hi, int64_t images,
                  int64_t size) {
  return {pointer<float>(x),
          pointer<const void>(grad, grad_type),
          pointer<const float>(origin),
          pointer<const float>(alpha_each),
          pointer<const float>(eps_each),
          pointer<const uint8_t>(active),
          pointer<int64_t>(stats),
          static_cast<float>(alpha),
          static_cast<float>(eps),
          static_cast<float>(lo),
          static_cast<float>(hi),
          grad_type,
          images,
          size,
          {0, 0}};
}

void cpu_sign_step(Address x, Address grad, int grad_type, Address origin, Address alpha_each, double alpha,
                   Address eps_each, double eps, Address active, Address stats, double lo, double hi, int64_t images,
                   int64_t size, int threads, int isa) {
  cpu::check_isa(isa);
  SignStepArgs args =
      pack(x, grad, grad_type, origin, alpha_each, alpha, eps_each, eps, active, stats, lo, hi, images, size);
  args.cut = partition(size, kCpuChunk);
  const auto task = FASTADV_PICK(isa, sign_step_task);
  if (images * size < cpu::kSerialElements) threads = 1;
  pybind11::gil_scoped_release release;
  cpu::parallel(images * args.cut.chunks, threads, [&](int64_t index) { task(args, index); });
}

#if FASTADV_WITH_CUDA
void cuda_sign_step(Address x, Address grad, int grad_type, Address origin, Address alpha_each, double alpha,
                    Address eps_each, double eps, Address active, Address stats, double lo, double hi, int64_t images,
                    int64_t size, int device, Address stream) {
  const SignStepArgs args =
      pack(x, grad, grad_type, origin, alpha_each, alpha, eps_each, eps, active, stats, lo, hi, images, size);
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "sign_step_");
  check_cuda(cuda::sign_step(args, pointer<void>(stream)), "sign_step_");
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_sign_step", &cpu_sign_step);
#if FASTADV_WITH_CUDA
  m.def("cuda_sign_step", &cuda_sign_step);
#endif
}

}  // namespace fastadv
