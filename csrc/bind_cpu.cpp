#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "registration.h"

namespace fastadv {

FASTADV_REGISTER(m) {
  m.def("cpu_isas", &cpu::available_isas, "Instruction sets that run here, slowest first.");
}

}  // namespace fastadv
