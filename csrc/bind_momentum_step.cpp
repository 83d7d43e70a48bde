#include <pybind11/pybind11.h>

#include <stdexcept>

#include "common/momentum_step.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cuda/launch.h"
#include "pointers.h"
#include "status.h"

namespace fastadv {
namespace {

constexpr int64_t kCpuChunk = 1 << 14;

MomentumStepArgs pack(Address x, Address grad, int grad_type, Address origin, Address velocity, Address alpha_each,
                      double alpha, Address eps_each, double eps, double mu, int norm, int step, Address active,
                      Address stats, Address workspace, double lo, double hi, int64_t images, int64_t size) {
  return {pointer<float>(x),
          pointer<const void>(grad),
          pointer<const float>(origin),
          pointer<float>(velocity),
          pointer<const float>(alpha_each),
          pointer<const float>(eps_each),
          pointer<const uint8_t>(active),
          pointer<int64_t>(stats),
          pointer<double>(workspace),
          static_cast<float>(alpha),
          static_cast<float>(eps),
          static_cast<float>(mu),
          static_cast<float>(lo),
          static_cast<float>(hi),
          grad_type,
          norm,
          step,
          images,
          size,
          {0, 0}};
}

void check_workspace(const MomentumStepArgs& args, int64_t workspace_size) {
  if (workspace_size < 2 * args.images * args.cut.chunks)
    throw std::invalid_argument("momentum_step_: workspace is too small; make it with momentum_workspace(x)");
}

void cpu_momentum_step(Address x, Address grad, int grad_type, Address origin, Address velocity, Address alpha_each,
                       double alpha, Address eps_each, double eps, double mu, int norm, int step, Address active,
                       Address stats, Address workspace, int64_t workspace_size, double lo, double hi, int64_t images,
                       int64_t size, int threads, int isa) {
  cpu::check_isa(isa);
  MomentumStepArgs args = pack(x, grad, grad_type, origin, velocity, alpha_each, alpha, eps_each, eps, mu, norm, step,
                               active, stats, workspace, lo, hi, images, size);
  args.cut = partition(size, kCpuChunk);
  check_workspace(args, workspace_size);
  if (images * size < cpu::kSerialElements) threads = 1;
  const auto pass = [&](void (*task)(const MomentumStepArgs&, int64_t)) {
    cpu::parallel(images * args.cut.chunks, threads, [&, task](int64_t index) { task(args, index); });
  };
  pybind11::gil_scoped_release release;
  pass(FASTADV_PICK(isa, momentum_reduce_task));
  if (step == kStepSign) return pass(FASTADV_PICK(isa, momentum_sign_task));
  pass(FASTADV_PICK(isa, momentum_velocity_task));
  pass(FASTADV_PICK(isa, momentum_move_task));
  pass(FASTADV_PICK(isa, momentum_project_task));
}

#if FASTADV_WITH_CUDA
void cuda_momentum_step(Address x, Address grad, int grad_type, Address origin, Address velocity, Address alpha_each,
                        double alpha, Address eps_each, double eps, double mu, int norm, int step, Address active,
                        Address stats, Address workspace, int64_t workspace_size, double lo, double hi,
                        int64_t images, int64_t size, int device, Address stream) {
  MomentumStepArgs args = pack(x, grad, grad_type, origin, velocity, alpha_each, alpha, eps_each, eps, mu, norm, step,
                               active, stats, workspace, lo, hi, images, size);
  args.cut = partition(size, cuda::kChunk);
  check_workspace(args, workspace_size);
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "momentum_step_");
  check_cuda(cuda::momentum_step(args, pointer<void>(stream)), "momentum_step_");
}
#endif

}  // namespace

void register_momentum_step(pybind11::module_& m) {
  m.def("cpu_momentum_step", &cpu_momentum_step);
#if FASTADV_WITH_CUDA
  m.def("cuda_momentum_step", &cuda_momentum_step);
#endif
}

}  // namespace fastadv
