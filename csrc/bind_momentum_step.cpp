#include <pybind11/pybind11.h>

#include <iterator>
#include <stdexcept>

#include "common/momentum_step.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cuda/launch.h"
#include "pointers.h"
#include "registration.h"
#include "status.h"

namespace fastadv {
namespace {

constexpr int64_t kCpuChunk = 1 << 14;

MomentumStepArgs pack(Address x, Address grad, int grad_type, Address origin, Address velocity, Address alpha_each,
                      double alpha, Address eps_each, double eps, double mu, int norm, int step, Address active,
                      Address stats, Address workspace, double lo, double hi, int64_t images, int64_t size) {
  return {pointer<float>(x),
          pointer<const void>(grad, grad_type),
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

// Whether whole images keep all threads busy, but for a fifth of the time at most.
bool shares_evenly(int64_t images, int threads) {
  const int64_t rounds = (images + threads - 1) / threads;
  return 4 * rounds * threads <= 5 * images;
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
  using Pass = void (*)(const MomentumStepArgs&, int64_t);
  const Pass sign[] = {FASTADV_PICK(isa, momentum_reduce_task), FASTADV_PICK(isa, momentum_sign_task)};
  const Pass l2[] = {sign[0], FASTADV_PICK(isa, momentum_velocity_task), FASTADV_PICK(isa, momentum_move_task),
                     FASTADV_PICK(isa, momentum_project_task)};
  const Pass* first = step == kStepSign ? std::begin(sign) : std::begin(l2);
  const Pass* last = step == kStepSign ? std::end(sign) : std::end(l2);
  const int64_t chunks = args.cut.chunks;
  pybind11::gil_scoped_release release;
  if (shares_evenly(images, threads)) {
    // All passes over an image before the next one: it stays in the cache, and the threads wake up once.
    cpu::parallel(images, threads, [&](int64_t image) {
      for (const Pass* pass = first; pass != last; ++pass)
        for (int64_t i = 0; i < chunks; ++i) (*pass)(args, image * chunks + i);
    });
    return;
  }
  for (const Pass* pass = first; pass != last; ++pass)
    cpu::parallel(images * chunks, threads, [&](int64_t index) { (*pass)(args, index); });
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

FASTADV_REGISTER(m) {
  m.def("cpu_momentum_step", &cpu_momentum_step);
#if FASTADV_WITH_CUDA
  m.def("cuda_momentum_step", &cuda_momentum_step);
#endif
}

}  // namespace fastadv
