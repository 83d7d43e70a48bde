// The launchers of kernels whose threads work together, for ctypes.
#include <cuda_runtime.h>

#include "cuda/average_pool.cu"
#include "cuda/centroid_distances.cu"
#include "cuda/centroid_gradient.cu"
#include "cuda/momentum_step.cu"
#include "cuda/relative_distances.cu"
#include "layers.h"

using namespace fastadv;

extern "C" {

void set_version(int ptx_version) { on_host::ptx_version = ptx_version; }
void set_order(int backwards) { on_host::backwards = backwards != 0; }

// warps: of a block, 8 or 32; 0: as the launcher chooses
int average_pool(const int64_t* maps, int64_t count, int type, float* out, int64_t images, int64_t row, int warps) {
  int status = 0;
  for_maps(Integers(maps, maps + count), type, out, images, row, [&](PoolArgs& args) {
    if (warps == 8) {
      cuda::number<8>(args);
      cuda::launch<8>(args, nullptr);
    } else if (warps == 32) {
      cuda::number<32>(args);
      cuda::launch<32>(args, nullptr);
    } else {
      status |= cuda::average_pool(args, nullptr);
    }
  });
  return status;
}

int distances(const int64_t* layers, int64_t count, int metric, float* scales, float* out, int64_t images,
              int64_t centroids) {
  int status = 0;
  DistanceArgs common = distance_args(metric, 0, 0, images, centroids);
  common.scales = scales;
  common.out = out;
  for_distances(Integers(layers, layers + count), common,
                [&](const DistanceArgs& args) { status |= cuda::centroid_distances(args, nullptr); });
  return status;
}

int relative(const int64_t* layers, int64_t count, int metric, float* scales, int64_t* own, int64_t choose, double* seen,
             float* out, int64_t images, int64_t centroids) {
  int status = 0;
  DistanceArgs common = distance_args(metric, 0, 0, images, centroids);
  common.scales = scales;
  common.out = out;
  for_readings(Integers(layers, layers + count), common, reinterpret_cast<Address>(own), choose != 0,
               reinterpret_cast<Address>(seen),
               [&](const RelativeArgs& args) { status |= cuda::relative_distances(args, nullptr); });
  return status;
}

int gradient(const int64_t* layers, int64_t count, int metric, float* scales, const float* grad,
             const float* distances, float* out, int64_t images, int64_t centroids, int64_t row) {
  int status = 0;
  DistanceArgs common = distance_args(metric, 0, 0, images, centroids);
  common.scales = scales;
  common.out = out;
  common.grad = grad;
  common.distances = distances;
  common.row = row;
  for_distances(Integers(layers, layers + count), common,
                [&](const DistanceArgs& args) { status |= cuda::centroid_gradient(args, nullptr); });
  return status;
}

int momentum_step(float* x, const void* grad, const float* origin, float* velocity, const float* alpha, float eps,
                  const uint8_t* active, int64_t* stats, double* partials, int type, int norm, int64_t images,
                  int64_t size) {
  return cuda::momentum_step({x, grad, origin, velocity, alpha, nullptr, active, stats, partials, 0.0f, eps, 0.9f, 0.0f,
                              1.0f, type, norm, kStepSign, images, size, partition(size, cuda::kChunk)},
                             nullptr);
}

}  // extern "C"
