#include <cuda_runtime_api.h>

#include "cuda/launch.h"

namespace fastadv::cuda {

int probe() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();  // leave no error behind for the next launch
    return status;
  }
  return count > 0 ? cudaSuccess : cudaErrorNoDevice;
}

int swap_device(int device, int* before) {
  const cudaError_t status = cudaGetDevice(before);
  if (status != cudaSuccess || *before == device) return status;
  return cudaSetDevice(device);
}

const char* error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace fastadv::cuda
