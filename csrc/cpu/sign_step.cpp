// Compiled once per instruction set (FASTADV_ISA). No C++ library here: its inline functions would be compiled for
// this instruction set and could be linked into callers that run on less.
#include "common/sign_step.h"

#include "cpu/kernels.h"
#include "cpu/span.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

template <class G>
void step_span(const SignStepArgs& args, const Span& span) {
  float* __restrict x = args.x + span.offset;
  const G* __restrict grad = static_cast<const G*>(args.grad) + span.offset;
  const float* __restrict origin = args.origin + span.offset;
  const float alpha = args.alpha_each ? args.alpha_each[span.image] : args.alpha;
  const float eps = args.eps_each ? args.eps_each[span.image] : args.eps;
  const float lo = args.lo;
  const float hi = args.hi;
  Counts counts;
  for (int64_t begin = 0; begin < span.length; begin = block_end(begin, span.length)) {
    const int64_t end = block_end(begin, span.length);
    int32_t bad = 0;
    int32_t zero = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float g = to_float(grad[i]);
      const bool finite = is_finite(g);
      const float old = x[i];
      const float moved = sign_move(old, g, origin[i], alpha, eps, lo, hi);
      x[i] = finite ? moved : old;
      bad += finite ? 0 : 1;
      zero += g == 0.0f ? 1 : 0;
    }
    counts.bad += bad;
    counts.zero += zero;
  }
  counts.add_to(args.stats, span.image);
}

}  // namespace

void sign_step_task(const SignStepArgs& args, int64_t task) {
  const Span span = span_of(task, args.size, args.cut);
  if (args.active && !args.active[span.image]) return;
  switch (args.grad_type) {
    case kFloat32: return step_span<float>(args, span);
    case kBFloat16: return step_span<BFloat16>(args, span);
    default: return step_span<Float16>(args, span);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
