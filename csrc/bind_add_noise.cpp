#include <pybind11/pybind11.h>

#include "common/add_noise.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/random_tasks.h"
#include "cuda/launch.h"
#include "key.h"
#include "pointers.h"
#include "registration.h"
#include "status.h"

namespace fastadv {
namespace {

AddNoiseArgs pack(Address x, Address origin, Address scale_each, double scale, double lo, double hi, int kind,
                  const PhiloxKey& key, const BatchLayout& layout) {
  return {pointer<float>(x),
          pointer<const float>(origin),
          pointer<const float>(scale_each),
          static_cast<float>(scale),
          static_cast<float>(lo),
          static_cast<float>(hi),
          kind,
          key,
          layout};
}

void cpu_add_noise(Address x, Address origin, Address scale_each, double scale, double lo, double hi, int kind,
                   Address ids, Address seed_at, int64_t seed, Address tick_each, int64_t tick, int64_t tick_step,
                   int64_t layer, int64_t images, int64_t channels, int64_t plane, int channels_last, int threads,
                   int isa) {
  cpu::check_isa(isa);
  const AddNoiseArgs args = pack(x, origin, scale_each, scale, lo, hi, kind,
                                 key_of(ids, seed_at, seed, tick_each, tick, tick_step, layer),
                                 cpu::cpu_layout(images, channels, plane, channels_last));
  cpu::parallel_images(args, args.layout, FASTADV_PICK(isa, add_noise_task), threads);
}

#if FASTADV_WITH_CUDA
void cuda_add_noise(Address x, Address origin, Address scale_each, double scale, double lo, double hi, int kind,
                    Address ids, Address seed_at, int64_t seed, Address tick_each, int64_t tick, int64_t tick_step,
                    int64_t layer, int64_t images, int64_t channels, int64_t plane, int channels_last, int device,
                    Address stream) {
  const AddNoiseArgs args = pack(x, origin, scale_each, scale, lo, hi, kind,
                                 key_of(ids, seed_at, seed, tick_each, tick, tick_step, layer),
                                 {images, channels, plane, channels_last, {0, 0}});
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "add_noise_");
  check_cuda(cuda::add_noise(args, pointer<void>(stream)), "add_noise_");
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_add_noise", &cpu_add_noise);
#if FASTADV_WITH_CUDA
  m.def("cuda_add_noise", &cuda_add_noise);
#endif
}

}  // namespace fastadv
