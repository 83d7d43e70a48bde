#include <pybind11/pybind11.h>

#include "common/feature_dropout_bn_prelu.h"
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

FeatureDropoutBnPreluArgs pack(Address x, Address grad, Address out, int type, const PhiloxKey& key,
                               uint32_t threshold, double factor, Address scale, Address shift, Address slope_each,
                               double slope, int64_t slope_step, double ceiling, int from_result, int untied,
                               const BatchLayout& layout) {
  return {{pointer<const void>(x, type), pointer<void>(out, type), key, threshold, static_cast<float>(factor), type,
           layout},
          pointer<const void>(grad, type),
          pointer<const float>(scale),
          pointer<const float>(shift),
          pointer<const float>(slope_each),
          static_cast<float>(slope),
          slope_step,
          static_cast<float>(ceiling),
          from_result,
          untied};
}

void cpu_feature_dropout_bn_prelu(Address x, Address grad, Address out, int type, Address ids, Address seed_at,
                                  int64_t seed, Address tick_each, int64_t tick, int64_t tick_step, int64_t layer,
                                  uint32_t threshold, double factor, Address scale, Address shift, Address slope_each,
                                  double slope, int64_t slope_step, double ceiling, int from_result, int untied,
                                  int64_t images, int64_t channels, int64_t plane, int channels_last, int threads,
                                  int isa) {
  cpu::check_isa(isa);
  const FeatureDropoutBnPreluArgs args =
      pack(x, grad, out, type, key_of(ids, seed_at, seed, tick_each, tick, tick_step, layer), threshold, factor, scale,
           shift, slope_each, slope, slope_step, ceiling, from_result, untied,
           cpu::cpu_layout(images, channels, plane, channels_last));
  cpu::about_to_fill(pointer<void>(out), images * channels * plane * bytes_of(type));
  cpu::parallel_images(args, args.dropout.layout, FASTADV_PICK(isa, feature_dropout_bn_prelu_task), threads);
}

#if FASTADV_WITH_CUDA
void cuda_feature_dropout_bn_prelu(Address x, Address grad, Address out, int type, Address ids, Address seed_at,
                                   int64_t seed, Address tick_each, int64_t tick, int64_t tick_step, int64_t layer,
                                   uint32_t threshold, double factor, Address scale, Address shift,
                                   Address slope_each, double slope, int64_t slope_step, double ceiling,
                                   int from_result, int untied, int64_t images, int64_t channels, int64_t plane,
                                   int channels_last, int device, Address stream) {
  const FeatureDropoutBnPreluArgs args =
      pack(x, grad, out, type, key_of(ids, seed_at, seed, tick_each, tick, tick_step, layer), threshold, factor, scale,
           shift, slope_each, slope, slope_step, ceiling, from_result, untied,
           {images, channels, plane, channels_last, {0, 0}});
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device, "feature_dropout_bn_prelu");
  check_cuda(cuda::feature_dropout_bn_prelu(args, pointer<void>(stream)), "feature_dropout_bn_prelu");
}
#endif

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_feature_dropout_bn_prelu", &cpu_feature_dropout_bn_prelu);
#if FASTADV_WITH_CUDA
  m.def("cuda_feature_dropout_bn_prelu", &cuda_feature_dropout_bn_prelu);
#endif
}

}  // namespace fastadv
