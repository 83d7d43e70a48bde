#include <pybind11/pybind11.h>

#include "common/feature_dropout.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/pages.h"
#include "cpu/random_tasks.h"
#include "cuda/launch.h"
#include "key.h"
#include "pointers.h"
#include "registration.h"
#include "status.h"

namespace fastadv {
namespace {

FeatureDropoutArgs pack(Address x, Address out, int type, const PhiloxKey& key, uint32_t threshold, double factor,
                        const BatchLayout& layout) {
  return {pointer<const void>(x, type), pointer<void>(out, type), key, threshold, static_cast<float>(factor), type,
          layout};
}

void cpu_feature_dropout(Address x, Address out, int type, Address ids, Address seed_at, int64_t seed,
                         Address tick_each, int64_t tick, int64_t tick_step, int64_t layer, uint32_t threshold,
                         double factor, int64_t images, int64_t channels, int64_t plane, int channels_last,
                         int threads, int isa) {
  cpu::check_isa(isa);
  const FeatureDropoutArgs args = pack(x, out, type, key_of(ids, seed_at, seed, tick_each, tick, tick_step, layer),
                                       threshold, factor, cpu::cpu_layout(images, channels, plane, channels_last));
  cpu::about_to_fill(pointer<void>(out), images * channels * plane * bytes_of(type));
  cpu::parallel_images(args, args.layout, FASTADV_PICK(isa, feature_dropout_task), threads);
}

#if FASTADV_WITH_CUDA
void cuda_feature_dropout(Address x, Address out, int type, Address ids, Address seed_at, int64_t seed,
                          Address tick_each, int64_t tick, int64_t tick_step, int64_t layer, uint32_t threshold,
                          double factor, int64_t images, int64_t channels, int64_t plane, int channels_last,
                          int device, Address stream) {
  const FeatureDropoutArgs args = pack(x, out, type, key_of(ids, seed_at, seed, tick_each, tick, tick_step, layer),
                                       threshold, factor, {images, channels, plane, channels_last, {0, 0}});
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "feature_dropout");
  check_cuda(cuda::feature_dropout(args, pointer<void>(stream)), "feature_dropout");
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_feature_dropout", &cpu_feature_dropout);
#if FASTADV_WITH_CUDA
  m.def("cuda_feature_dropout", &cuda_feature_dropout);
#endif
}

}  // namespace fastadv
