// The one place where a kernel's status becomes an exception.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/launch.h"

namespace fastadv {

inline void check_cuda(int status, const char* op) {
#if FASTADV_WITH_CUDA
  if (status != 0)
    throw std::runtime_error(std::string(op) + ": CUDA error " + std::to_string(status) + ": " +
                             cuda::error_text(status));
#else
  (void)status;
  throw std::runtime_error(std::string(op) + ": this build of fastadv has no CUDA kernels");
#endif
}

#if FASTADV_WITH_CUDA
// Makes `device` current for a launch and puts back the one that was.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* op) : device_(device) { check_cuda(cuda::swap_device(device, &before_), op); }
  ~DeviceGuard() {
    int ignored = 0;
    if (before_ != device_) (void)cuda::swap_device(before_, &ignored);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int before_ = 0;
};
#endif

}  // namespace fastadv
