#include <pybind11/pybind11.h>

#include <algorithm>
#include <vector>

#include "cpu/all_within.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "pointers.h"
#include "registration.h"

namespace fastadv {
namespace {

bool cpu_all_within(Address values, int64_t size, double low, double high, int threads, int isa) {
  cpu::check_isa(isa);
  const auto tasks = static_cast<size_t>((size + kWithinPart - 1) / kWithinPart);
  std::vector<uint8_t> without(tasks);
  const AllWithinArgs args = {pointer<const float>(values), size, static_cast<float>(low), static_cast<float>(high),
                              without.data()};
  const auto task = FASTADV_PICK(isa, all_within_task);
  if (size < cpu::kSerialElements) threads = 1;
  pybind11::gil_scoped_release release;
  cpu::parallel(static_cast<int64_t>(tasks), threads, [&](int64_t index) { task(args, index); });
  return std::find(without.begin(), without.end(), 1) == without.end();
}

}  // namespace

FASTADV_REGISTER(m) { m.def("cpu_all_within", &cpu_all_within); }

}  // namespace fastadv
