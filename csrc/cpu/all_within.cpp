// Compiled once per instruction set, see sign_step.cpp.
#include "cpu/all_within.h"

#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int64_t kTogether = 64;  // a few registers, so that no comparison waits for the one before it

}  // namespace

void all_within_task(const AllWithinArgs& args, int64_t task) {
  const float* __restrict values = args.values + task * kWithinPart;
  const int64_t size = smaller(kWithinPart, args.size - task * kWithinPart);
  const int64_t whole = size / kTogether * kTogether;
  const float low = args.low;
  const float high = args.high;
  int32_t out[kTogether] = {};
  // no comparison holds for a NaN
  const auto outside = [low, high](float value) { return static_cast<int32_t>(!(value >= low)) | !(value <= high); };
  for (int64_t i = 0; i < whole; i += kTogether)
    for (int64_t k = 0; k < kTogether; ++k) out[k] |= outside(values[i + k]);
  for (int64_t i = whole; i < size; ++i) out[i - whole] |= outside(values[i]);
  int32_t any = 0;
  for (int64_t k = 0; k < kTogether; ++k) any |= out[k];
  args.without[task] = any != 0;
}

}  // namespace fastadv::cpu::FASTADV_ISA
