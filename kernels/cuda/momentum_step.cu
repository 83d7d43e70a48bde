#include "common/momentum_step.h"

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {
namespace {

enum class Pass { kReduce, kSign, kVelocity, kMove, kProject };

// One image's sum of the pass before, added up again by every block in the same order: cheaper than one more launch.
__device__ __forceinline__ double fold(const MomentumStepArgs& args, int region, int64_t image, double* shared) {
  const double* sums = args.partials + (region * args.images + image) * args.cut.chunks;
  static_assert(kMaxChunks <= kThreads, "one thread takes one partial sum");
  return block_sum(threadIdx.x < args.cut.chunks ? sums[threadIdx.x] : 0.0, shared);
}

// The passes differ in what they read, write and add up; the walk over the pixels is the same.
template <Pass kPass, class G, int kWidth>
__global__ void __launch_bounds__(kThreads) momentum_kernel(const MomentumStepArgs args) {
  constexpr bool kReadsGrad = kPass != Pass::kProject;
  constexpr bool kReadsX = kPass == Pass::kSign || kPass == Pass::kMove || kPass == Pass::kProject;
  constexpr bool kReadsVelocity = kPass == Pass::kSign || kPass == Pass::kVelocity || kPass == Pass::kMove;
  constexpr bool kWritesVelocity = kPass == Pass::kSign || kPass == Pass::kVelocity;
  constexpr bool kSums = kPass == Pass::kReduce || kPass == Pass::kVelocity || kPass == Pass::kMove;
  __shared__ double shared[kThreads / 32];
  const G* grad = static_cast<const G*>(args.grad);
  const int64_t tasks = args.images * args.cut.chunks;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const BlockSpan span = block_span(task, args.size, args.cut);
    if (args.active && !args.active[span.image]) continue;
    const float alpha = args.alpha_each ? args.alpha_each[span.image] : args.alpha;
    const float eps = args.eps_each ? args.eps_each[span.image] : args.eps;
    float norm = 0.0f;  // of the gradient, of the velocity, or the distance from the origin
    if constexpr (kPass == Pass::kSign || kPass == Pass::kVelocity)
      norm = finish_norm(fold(args, 0, span.image, shared), args.norm);
    if constexpr (kPass == Pass::kMove) norm = finish_norm(fold(args, 1, span.image, shared), kNormL2);
    if constexpr (kPass == Pass::kProject) norm = finish_norm(fold(args, 0, span.image, shared), kNormL2);
    double sum = 0.0;
    int64_t bad = 0;
    int64_t zero = 0;
    for (int64_t i = int64_t{threadIdx.x} * kWidth; i < span.length; i += int64_t{kThreads} * kWidth) {
      const int64_t at = span.offset + i;
      Pack<G, kWidth> g;
      Pack<float, kWidth> x, center, velocity;
      if constexpr (kReadsGrad) g = load<G, kWidth>(grad + at);
      if constexpr (kReadsX) x = load<float, kWidth>(args.x + at);
      if constexpr (kReadsX) center = load<float, kWidth>(args.origin + at);
      if constexpr (kReadsVelocity) velocity = load<float, kWidth>(args.velocity + at);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        [[maybe_unused]] float value = 0.0f;
        [[maybe_unused]] bool finite = true;
        if constexpr (kReadsGrad) {
          value = to_float(g.item[k]);
          finite = is_finite(value);
        }
        if constexpr (kPass == Pass::kReduce) {
          sum += norm_term(finite ? value : 0.0f, args.norm);
          bad += !finite;
          zero += value == 0.0f;
        }
        if constexpr (kWritesVelocity)
          velocity.item[k] = next_velocity(velocity.item[k], value, finite, args.mu, norm);
        if constexpr (kPass == Pass::kVelocity) sum += norm_term(velocity.item[k], kNormL2);
        if constexpr (kPass == Pass::kSign) {
          const float moved =
              sign_move(x.item[k], velocity.item[k], center.item[k], alpha, eps, args.lo, args.hi);
          x.item[k] = finite ? moved : x.item[k];
        }
        if constexpr (kPass == Pass::kMove) {
          x.item[k] = l2_move(x.item[k], velocity.item[k], finite, alpha, norm);
          sum += norm_term(x.item[k] - center.item[k], kNormL2);
        }
        if constexpr (kPass == Pass::kProject)
          x.item[k] = l2_project(x.item[k], center.item[k], norm, eps, args.lo, args.hi);
      }
      if constexpr (kWritesVelocity) store<float, kWidth>(args.velocity + at, velocity);
      if constexpr (kReadsX) store<float, kWidth>(args.x + at, x);
    }
    if constexpr (kSums) {
      const double total = block_sum(sum, shared);
      const int region = kPass == Pass::kVelocity ? 1 : 0;
      if (threadIdx.x == 0) args.partials[region * args.images * args.cut.chunks + task] = total;
    }
    if constexpr (kPass == Pass::kReduce)
      if (args.stats) add_counts(bad, zero, args.stats + 2 * span.image);
  }
}

struct Launch {
  const MomentumStepArgs& args;
  cudaStream_t stream;

  template <Pass kPass, class G, int kWidth>
  void pass() const {
    momentum_kernel<kPass, G, kWidth><<<grid_for(args.images * args.cut.chunks), kThreads, 0, stream>>>(args);
  }

  template <class G, int kWidth>
  void run() const {
    pass<Pass::kReduce, G, kWidth>();
    if (args.step == kStepSign) return pass<Pass::kSign, G, kWidth>();
    pass<Pass::kVelocity, G, kWidth>();
    pass<Pass::kMove, G, kWidth>();
    pass<Pass::kProject, G, kWidth>();
  }
};

}  // namespace

int momentum_step(MomentumStepArgs args, void* stream) {
  const bool wide = args.size % 8 == 0 && aligned(args.x) && aligned(args.grad) && aligned(args.origin) &&
                    aligned(args.velocity);
  by_type(args.grad_type, wide, Launch{args, static_cast<cudaStream_t>(stream)});
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
