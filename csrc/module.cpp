#include <pybind11/pybind11.h>

namespace fastadv {
void register_cpu(pybind11::module_& m);
void register_cuda(pybind11::module_& m);
void register_sign_step(pybind11::module_& m);
void register_momentum_step(pybind11::module_& m);
void register_philox(pybind11::module_& m);
}  // namespace fastadv

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of fastadv: raw addresses in, exceptions out. Private; use fastadv.ops.";
  fastadv::register_cpu(m);
  fastadv::register_cuda(m);
  fastadv::register_sign_step(m);
  fastadv::register_momentum_step(m);
  fastadv::register_philox(m);
}
