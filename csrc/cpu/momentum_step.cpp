// Compiled once per instruction set, see sign_step.cpp. The passes of momentum_step_, one function each.
#include "common/momentum_step.h"

#include "cpu/kernels.h"
#include "cpu/span.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int kLanes = 16;  // independent sums, the same number everywhere: every instruction set gives the same bits

struct LaneSums {
  double lane[kLanes] = {};

  double total() const {
    double sum = 0.0;
    for (double value : lane) sum += value;
    return sum;
  }
};

double* region(const MomentumStepArgs& args, int index) {
  return args.partials + index * args.images * args.cut.chunks;
}

double fold(const MomentumStepArgs& args, int index, int64_t image) {
  const double* sums = region(args, index) + image * args.cut.chunks;
  double total = 0.0;
  for (int64_t i = 0; i < args.cut.chunks; ++i) total += sums[i];
  return total;
}

template <class G, int kNorm, bool kCounted>
void reduce_span(const MomentumStepArgs& args, const Span& span, double* out) {
  const G* __restrict grad = static_cast<const G*>(args.grad) + span.offset;
  LaneSums sums;
  Counts counts;
  for (int64_t begin = 0; begin < span.length; begin = block_end(begin, span.length)) {
    const int64_t end = block_end(begin, span.length);
    int32_t bad[kLanes] = {};
    int32_t zero[kLanes] = {};
    const auto add = [&](int64_t i, int64_t lane) {
      const float g = to_float(grad[i]);
      const bool finite = is_finite(g);
      if (kCounted) bad[lane] += finite ? 0 : 1;
      if (kCounted) zero[lane] += g == 0.0f ? 1 : 0;
      sums.lane[lane] += norm_term(finite ? g : 0.0f, kNorm);
    };
    const int64_t whole = begin + (end - begin) / kLanes * kLanes;
    for (int64_t i = begin; i < whole; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
    for (int64_t i = whole; i < end; ++i) add(i, i - whole);
    for (int lane = 0; lane < kLanes; ++lane) counts.bad += bad[lane];
    for (int lane = 0; lane < kLanes; ++lane) counts.zero += zero[lane];
  }
  *out = sums.total();
  counts.add_to(args.stats, span.image);
}

template <class G, int kNorm>
void reduce_normed(const MomentumStepArgs& args, const Span& span, double* out) {
  if (args.stats) return reduce_span<G, kNorm, true>(args, span, out);
  reduce_span<G, kNorm, false>(args, span, out);
}

template <class G>
void reduce_typed(const MomentumStepArgs& args, const Span& span, double* out) {
  if (args.norm == kNormL1) return reduce_normed<G, kNormL1>(args, span, out);
  reduce_normed<G, kNormL2>(args, span, out);
}

template <class G>
void sign_span(const MomentumStepArgs& args, const Span& span) {
  float* __restrict x = args.x + span.offset;
  float* __restrict velocity = args.velocity + span.offset;
  const G* __restrict grad = static_cast<const G*>(args.grad) + span.offset;
  const float* __restrict origin = args.origin + span.offset;
  const float norm = finish_norm(fold(args, 0, span.image), args.norm);
  const float alpha = args.alpha_each ? args.alpha_each[span.image] : args.alpha;
  const float eps = args.eps_each ? args.eps_each[span.image] : args.eps;
  const float mu = args.mu;
  const float lo = args.lo;
  const float hi = args.hi;
  for (int64_t i = 0; i < span.length; ++i) {
    const float g = to_float(grad[i]);
    const bool finite = is_finite(g);
    const float speed = next_velocity(velocity[i], g, finite, mu, norm);
    const float old = x[i];
    const float moved = sign_move(old, speed, origin[i], alpha, eps, lo, hi);
    velocity[i] = speed;
    x[i] = finite ? moved : old;
  }
}

template <class G>
void velocity_span(const MomentumStepArgs& args, const Span& span, double* out) {
  float* __restrict velocity = args.velocity + span.offset;
  const G* __restrict grad = static_cast<const G*>(args.grad) + span.offset;
  const float norm = finish_norm(fold(args, 0, span.image), args.norm);
  const float mu = args.mu;
  for (int64_t i = 0; i < span.length; ++i) {
    const float g = to_float(grad[i]);
    velocity[i] = next_velocity(velocity[i], g, is_finite(g), mu, norm);
  }
  LaneSums sums;
  for (int64_t i = 0; i < span.length; ++i) sums.lane[i % kLanes] += norm_term(velocity[i], kNormL2);
  *out = sums.total();
}

template <class G>
void move_span(const MomentumStepArgs& args, const Span& span, double* out) {
  float* __restrict x = args.x + span.offset;
  const float* __restrict velocity = args.velocity + span.offset;
  const G* __restrict grad = static_cast<const G*>(args.grad) + span.offset;
  const float* __restrict origin = args.origin + span.offset;
  const float norm = finish_norm(fold(args, 1, span.image), kNormL2);
  const float alpha = args.alpha_each ? args.alpha_each[span.image] : args.alpha;
  for (int64_t i = 0; i < span.length; ++i)
    x[i] = l2_move(x[i], velocity[i], is_finite(to_float(grad[i])), alpha, norm);
  LaneSums sums;
  for (int64_t i = 0; i < span.length; ++i) sums.lane[i % kLanes] += norm_term(x[i] - origin[i], kNormL2);
  *out = sums.total();
}

bool skipped(const MomentumStepArgs& args, const Span& span) { return args.active && !args.active[span.image]; }

}  // namespace

#define FASTADV_BY_TYPE(function, ...)                                          \
  switch (args.grad_type) {                                                     \
    case kFloat32: return function<float>(__VA_ARGS__);                         \
    case kBFloat16: return function<BFloat16>(__VA_ARGS__);                     \
    default: return function<Float16>(__VA_ARGS__);                             \
  }

void momentum_reduce_task(const MomentumStepArgs& args, int64_t task) {
  const Span span = span_of(task, args.size, args.cut);
  if (skipped(args, span)) return;
  FASTADV_BY_TYPE(reduce_typed, args, span, region(args, 0) + task)
}

void momentum_sign_task(const MomentumStepArgs& args, int64_t task) {
  const Span span = span_of(task, args.size, args.cut);
  if (skipped(args, span)) return;
  FASTADV_BY_TYPE(sign_span, args, span)
}

void momentum_velocity_task(const MomentumStepArgs& args, int64_t task) {
  const Span span = span_of(task, args.size, args.cut);
  if (skipped(args, span)) return;
  FASTADV_BY_TYPE(velocity_span, args, span, region(args, 1) + task)
}

// Overwrites the gradient's sums, which nobody reads any more.
void momentum_move_task(const MomentumStepArgs& args, int64_t task) {
  const Span span = span_of(task, args.size, args.cut);
  if (skipped(args, span)) return;
  FASTADV_BY_TYPE(move_span, args, span, region(args, 0) + task)
}

void momentum_project_task(const MomentumStepArgs& args, int64_t task) {
  const Span span = span_of(task, args.size, args.cut);
  if (skipped(args, span)) return;
  float* __restrict x = args.x + span.offset;
  const float* __restrict origin = args.origin + span.offset;
  const float distance = finish_norm(fold(args, 0, span.image), kNormL2);
  const float eps = args.eps_each ? args.eps_each[span.image] : args.eps;
  for (int64_t i = 0; i < span.length; ++i)
    x[i] = l2_project(x[i], origin[i], distance, eps, args.lo, args.hi);
}

}  // namespace fastadv::cpu::FASTADV_ISA
