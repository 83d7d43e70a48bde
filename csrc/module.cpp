#include <pybind11/pybind11.h>

#include "registration.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of fastadv: raw addresses in, exceptions out. Private; use fastadv.ops.";
  fastadv::Registration::add_all(m);
}
