#include "common/sign_step.h"

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {
namespace {

template <class G, int kWidth>
__global__ void __launch_bounds__(kThreads) sign_step_kernel(const SignStepArgs args) {
  const G* grad = static_cast<const G*>(args.grad);
  const int64_t tasks = args.images * args.cut.chunks;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const BlockSpan span = block_span(task, args.size, args.cut);
    if (args.active && !args.active[span.image]) continue;
    const float alpha = args.alpha_each ? args.alpha_each[span.image] : args.alpha;
    const float eps = args.eps_each ? args.eps_each[span.image] : args.eps;
    int64_t bad = 0;
    int64_t zero = 0;
    for (int64_t i = int64_t{threadIdx.x} * kWidth; i < span.length; i += int64_t{kThreads} * kWidth) {
      const int64_t at = span.offset + i;
      const auto g = load<G, kWidth>(grad + at);
      const auto center = load<float, kWidth>(args.origin + at);
      auto x = load<float, kWidth>(args.x + at);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float value = to_float(g.item[k]);
        const bool finite = is_finite(value);
        const float moved = sign_move(x.item[k], value, center.item[k], alpha, eps, args.lo, args.hi);
        x.item[k] = finite ? moved : x.item[k];
        bad += !finite;
        zero += value == 0.0f;
      }
      store<float, kWidth>(args.x + at, x);
    }
    if (args.stats) add_counts(bad, zero, args.stats + 2 * span.image);
  }
}

struct Launch {
  const SignStepArgs& args;
  cudaStream_t stream;

  template <class G, int kWidth>
  void run() const {
    sign_step_kernel<G, kWidth><<<grid_for(args.images * args.cut.chunks), kThreads, 0, stream>>>(args);
  }
};

}  // namespace

int sign_step(SignStepArgs args, void* stream) {
  args.cut = partition(args.size, kChunk);
  const bool wide = args.size % 8 == 0 && aligned(args.x) && aligned(args.grad) && aligned(args.origin);
  by_type(args.grad_type, wide, Launch{args, static_cast<cudaStream_t>(stream)});
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
