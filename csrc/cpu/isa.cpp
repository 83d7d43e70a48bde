#include "cpu/isa.h"

#include <stdexcept>

#include "cpu/kernels.h"

namespace fastadv::cpu {
namespace {

int highest() {
#if FASTADV_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kBaseline;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? kAvx512 : kAvx2;
#else
  return kBaseline;
#endif
}

int highest_once() {
  static const int found = highest();
  return found;
}

}  // namespace

std::vector<std::string> available_isas() {
  const char* const names[] = {"baseline", "avx2", "avx512"};
  return {names, names + highest_once() + 1};
}

void check_isa(int isa) {
  if (isa < kBaseline || isa > highest_once())
    throw std::invalid_argument("instruction set " + std::to_string(isa) + " does not run on this processor");
}

}  // namespace fastadv::cpu
