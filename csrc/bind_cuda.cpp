#include <pybind11/pybind11.h>

#include <string>

#include "cuda/launch.h"
#include "registration.h"

namespace fastadv {

FASTADV_REGISTER(m) {
#if FASTADV_WITH_CUDA
  m.attr("cuda_architectures") = FASTADV_CUDA_ARCHITECTURES;
  m.def(
      "cuda_problem",
      [] {
        const int status = cuda::probe();
        return status == 0 ? std::string() : std::string(cuda::error_text(status));
      },
      "Why CUDA cannot be used here, or an empty string.");
#else
  m.attr("cuda_architectures") = "";
#endif
}

}  // namespace fastadv
