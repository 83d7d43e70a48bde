#include "common/momentum_step.h"

#include <cooperative_groups.h>

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

// The sign step of kWidth elements from `at` on, with what is known of their image.
template <class G, int kWidth>
__device__ __forceinline__ void sign_pack(const MomentumStepArgs& args, const Pack<G, kWidth>& g, int64_t at,
                                          float norm, float alpha, float eps) {
  auto x = load<float, kWidth>(args.x + at);
  const auto center = load<float, kWidth>(args.origin + at);
  auto velocity = load<float, kWidth>(args.velocity + at);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    const float value = to_float(g.item[k]);
    const bool finite = is_finite(value);
    velocity.item[k] = next_velocity(velocity.item[k], value, finite, args.mu, norm);
    const float moved = sign_move(x.item[k], velocity.item[k], center.item[k], alpha, eps, args.lo, args.hi);
    x.item[k] = finite ? moved : x.item[k];
  }
  store<float, kWidth>(args.velocity + at, velocity);
  store<float, kWidth>(args.x + at, x);
}

// What kWidth elements add to the sum of the norm and to the counts.
template <class G, int kWidth>
__device__ __forceinline__ void reduce_pack(const Pack<G, kWidth>& g, int norm, double& sum, int64_t& bad,
                                            int64_t& zero) {
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    const float value = to_float(g.item[k]);
    const bool finite = is_finite(value);
    sum += norm_term(finite ? value : 0.0f, norm);
    bad += !finite;
    zero += value == 0.0f;
  }
}

// The passes differ in what they read, write and add up; the walk over the pixels is the same.
template <Pass kPass, class G, int kWidth>
__global__ void __launch_bounds__(kThreads) momentum_kernel(const MomentumStepArgs args) {
  constexpr bool kReadsGrad = kPass != Pass::kProject;
  constexpr bool kReadsX = kPass == Pass::kMove || kPass == Pass::kProject;
  constexpr bool kReadsVelocity = kPass == Pass::kVelocity || kPass == Pass::kMove;
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
      if constexpr (kPass == Pass::kReduce) reduce_pack(g, args.norm, sum, bad, zero);
      if constexpr (kPass == Pass::kSign) sign_pack(args, g, at, norm, alpha, eps);
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
        if constexpr (kPass == Pass::kVelocity) {
          velocity.item[k] = next_velocity(velocity.item[k], value, finite, args.mu, norm);
          sum += norm_term(velocity.item[k], kNormL2);
        }
        if constexpr (kPass == Pass::kMove) {
          x.item[k] = l2_move(x.item[k], velocity.item[k], finite, alpha, norm);
          sum += norm_term(x.item[k] - center.item[k], kNormL2);
        }
        if constexpr (kPass == Pass::kProject)
          x.item[k] = l2_project(x.item[k], center.item[k], norm, eps, args.lo, args.hi);
      }
      if constexpr (kPass == Pass::kVelocity) store<float, kWidth>(args.velocity + at, velocity);
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

// The sign step of an image by a cluster of blocks, from compute capability 9.0 on: the gradient is read once, and
// stays in shared memory until every block has the sums of all chunks. They are the sums above, in the same order.
constexpr int kCluster = 8;
constexpr int kMostKept = 72 << 10;  // bytes of a block, so that a multiprocessor holds three or more

template <class G, int kWidth>
__global__ void __launch_bounds__(kThreads) momentum_cluster_kernel(const MomentumStepArgs args) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ float4 memory[];
  __shared__ double partials[kMaxChunks];  // of all chunks of the image
  __shared__ double shared[kThreads / 32];
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank());
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t image = blockIdx.x / kCluster;
  if (args.active && !args.active[image]) return;  // all of the cluster
  cluster.barrier_arrive();
  const int64_t first = args.cut.chunks * rank / kCluster;
  const int64_t last = args.cut.chunks * (rank + 1) / kCluster;
  const int64_t begin = image * args.size + first * args.cut.chunk;
  const int64_t left = args.size - first * args.cut.chunk;
  const int64_t length = left < (last - first) * args.cut.chunk ? left : (last - first) * args.cut.chunk;
  const G* grad = static_cast<const G*>(args.grad) + begin;
  G* kept = reinterpret_cast<G*>(memory);
#pragma unroll 4
  for (int64_t i = int64_t{thread} * kWidth; i < length; i += int64_t{kThreads} * kWidth)
    store<G, kWidth>(kept + i, load<G, kWidth>(grad + i));
  __syncthreads();
  cluster.barrier_wait();  // every block has begun, so that its memory can be written
  int64_t bad = 0;
  int64_t zero = 0;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    const int64_t start = (chunk - first) * args.cut.chunk;
    const int64_t end = length - start < args.cut.chunk ? length : start + args.cut.chunk;
    double sum = 0.0;
    for (int64_t i = start + int64_t{thread} * kWidth; i < end; i += int64_t{kThreads} * kWidth)
      reduce_pack(load<G, kWidth>(kept + i), args.norm, sum, bad, zero);
    const double total = block_sum(sum, shared);
    if (thread < kCluster) cluster.map_shared_rank(partials, thread)[chunk] = total;
  }
  if (args.stats) add_counts(bad, zero, args.stats + 2 * image);
  cluster.sync();  // every sum has arrived
  const float norm = finish_norm(block_sum(thread < args.cut.chunks ? partials[thread] : 0.0, shared), args.norm);
  const float alpha = args.alpha_each ? args.alpha_each[image] : args.alpha;
  const float eps = args.eps_each ? args.eps_each[image] : args.eps;
  for (int64_t i = int64_t{thread} * kWidth; i < length; i += int64_t{kThreads} * kWidth)
    sign_pack(args, load<G, kWidth>(kept + i), begin + i, norm, alpha, eps);
#endif
}

// Starts it and returns true, if device and code can and a block has room for its part of an image.
template <class G, int kWidth>
bool start_clusters(const MomentumStepArgs& args, cudaStream_t stream) {
  const auto kernel = momentum_cluster_kernel<G, kWidth>;
  const int64_t kept = (args.cut.chunks + kCluster - 1) / kCluster * args.cut.chunk * int64_t{sizeof(G)};
  if (kept > kMostKept || args.images > (int64_t{1} << 27)) return false;
  cudaLaunchAttribute together = {};
  together.id = cudaLaunchAttributeClusterDimension;
  together.val.clusterDim.x = kCluster;
  together.val.clusterDim.y = 1;
  together.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(args.images) * kCluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(kept);
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = 1;
  cudaFuncAttributes code = {};  // ptxVersion: what it was compiled for, which may be older than the device
  const bool started =
      cudaFuncGetAttributes(&code, kernel) == cudaSuccess && code.ptxVersion >= 90 &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostKept) == cudaSuccess &&
      cudaLaunchKernelEx(&config, kernel, args) == cudaSuccess;
  if (!started) (void)cudaGetLastError();
  return started;
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
    if constexpr (kWidth > 1)
      if (args.step == kStepSign && start_clusters<G, kWidth>(args, stream)) return;
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
