// CUDA for a CPU: the threads of a block take turns, each until it waits for others, and the blocks of a cluster are
// threads of the system. A warp runs as far as it can before the next one does, so that a missing barrier shows. Slow; to
// see what a kernel computes where there is no GPU.
#pragma once

#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local

struct alignas(16) float4 {
  float x, y, z, w;
};
struct Index {
  unsigned x;
};
struct dim3 {
  unsigned x;
  explicit dim3(unsigned x = 1) : x(x) {}
};
inline thread_local Index threadIdx, blockIdx, gridDim;

namespace on_host {

inline int ptx_version = 90;  // what the code pretends to be compiled for
inline bool backwards = false;  // the last thread of a block begins, and copies are made at once instead of at the end

constexpr size_t kStack = 64 << 10;
constexpr unsigned kMostThreads = 1024;

struct Copy {
  void* to;
  const void* from;
  size_t size;
  size_t zeros;
};
struct Barrier {
  unsigned arrived = 0;
  unsigned turn = 0;
};
struct Cluster {
  explicit Cluster(unsigned blocks) : blocks(blocks), base(blocks) {}
  unsigned blocks;
  std::vector<char*> base;  // of every block's shared memory
  std::atomic<unsigned> arrived{0};
  std::atomic<unsigned> turn{0};
};

// What stands still while another thread of the block runs.
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
  unsigned turn = 0;  // of the cluster, when this thread arrived
  alignas(16) unsigned char slot[16];
  std::vector<std::vector<Copy>> copies;  // by group, the last one open
};
struct Block {
  std::function<void()> kernel;
  unsigned threads = 0;
  unsigned current = 0;
  unsigned rank = 0;
  unsigned steps = 0;    // barriers that were passed, and threads that ended
  unsigned outside = 0;  // threads that wait for another block
  Cluster* cluster = nullptr;
  ucontext_t scheduler;
  Barrier all;
  Barrier warps[kMostThreads / 32];
  std::vector<Fiber> fibers{kMostThreads};
};

inline thread_local char shared_anchor;
alignas(16) inline thread_local unsigned char dynamic_shared[232448];
inline Block& block() {
  static thread_local Block own;
  return own;
}

inline void give_way() {
  Block& own = block();
  const unsigned thread = own.current;
  swapcontext(&own.fibers[thread].context, &own.scheduler);
  own.current = thread;
  threadIdx.x = thread;
}

inline void wait(Barrier& barrier, unsigned expected) {
  const unsigned turn = barrier.turn;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.turn;
    ++block().steps;
    return;
  }
  while (barrier.turn == turn) give_way();
}

inline void wait_block() { wait(block().all, block().threads); }
inline void wait_warp() { wait(block().warps[threadIdx.x / 32], 32); }

inline void enter() {
  block().kernel();
  block().fibers[block().current].done = true;
  ++block().steps;
}

inline void run_block(unsigned index, unsigned threads, unsigned rank, Cluster* cluster, std::function<void()> kernel) {
  Block& own = block();
  own.kernel = std::move(kernel);
  own.threads = threads;
  own.rank = rank;
  own.cluster = cluster;
  blockIdx.x = index;
  if (cluster) cluster->base[rank] = &shared_anchor;
  std::memset(dynamic_shared, 0xff, sizeof(dynamic_shared));  // NaN
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = own.fibers[i];
    fiber.done = false;
    fiber.copies.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &own.scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool busy = true; busy;) {
    busy = false;
    const unsigned before = own.steps;
    for (unsigned first = 0; first < threads; first += 32) {
      for (unsigned last = own.steps - 1; last != own.steps;) {
        last = own.steps;
        for (unsigned i = first; i < first + 32 && i < threads; ++i) {
          const unsigned thread = backwards ? threads - 1 - i : i;
          if (own.fibers[thread].done) continue;
          busy = true;
          own.current = thread;
          threadIdx.x = thread;
          swapcontext(&own.scheduler, &own.fibers[thread].context);
        }
      }
    }
    if (busy && own.steps == before && own.outside > 0) {
      std::this_thread::yield();
    } else if (busy && own.steps == before) {
      std::fprintf(stderr, "block %u: its threads wait for each other\n", index);
      std::abort();
    }
  }
}

template <class Kernel>
void launch_clusters(unsigned grid, unsigned threads, unsigned cluster, Kernel kernel) {
  for (unsigned first = 0; first < grid; first += cluster) {
    Cluster together(cluster);
    const auto run = [&](unsigned rank) {
      gridDim.x = grid;
      run_block(first + rank, threads, rank, &together, kernel);
    };
    if (cluster == 1) {
      run(0);
      continue;
    }
    std::vector<std::thread> blocks;
    for (unsigned rank = 0; rank < cluster; ++rank) blocks.emplace_back(run, rank);
    for (auto& each : blocks) each.join();
  }
}

template <class Kernel>
void launch(unsigned grid, unsigned threads, size_t memory, void*, Kernel kernel) {
  if (memory > sizeof(dynamic_shared)) std::abort();
  launch_clusters(grid, threads, 1, kernel);
}

inline void arrive_at_cluster() {
  Cluster& all = *block().cluster;
  block().fibers[threadIdx.x].turn = all.turn;
  if (++all.arrived == all.blocks * block().threads) {
    all.arrived = 0;
    ++all.turn;
  }
}

inline void wait_for_cluster() {
  const Cluster& all = *block().cluster;
  const unsigned turn = block().fibers[threadIdx.x].turn;
  ++block().outside;
  while (all.turn == turn) give_way();
  --block().outside;
  ++block().steps;
}

inline void copy(const Copy& each) {
  std::memcpy(each.to, each.from, each.size - each.zeros);
  std::memset(static_cast<char*>(each.to) + each.size - each.zeros, 0, each.zeros);
}

// Every thread of the warp, or of the block, leaves a value; then `read` looks at them.
template <class T>
const T& slot_of(unsigned thread) {
  return *reinterpret_cast<const T*>(block().fibers[thread].slot);
}
template <class T, class Read>
auto exchange(const T& value, bool whole_block, Read read) {
  static_assert(sizeof(T) <= 16, "a slot");
  std::memcpy(block().fibers[threadIdx.x].slot, &value, sizeof(T));
  whole_block ? wait_block() : wait_warp();
  const auto found = read(threadIdx.x / 32 * 32);
  whole_block ? wait_block() : wait_warp();
  return found;
}

}  // namespace on_host

using cudaStream_t = void*;
using cudaError_t = int;
constexpr int cudaSuccess = 0;
constexpr int cudaErrorInvalidValue = 1;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
constexpr int cudaLaunchAttributeClusterDimension = 4;
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaLaunchAttribute {
  int id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline int cudaGetLastError() { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, Kernel) {
  found->ptxVersion = on_host::ptx_version;
  return cudaSuccess;
}
template <class Kernel, class Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, Kernel kernel, const Args& args) {
  on_host::launch_clusters(config->gridDim.x, config->blockDim.x, config->attrs->val.clusterDim.x,
                           [&] { kernel(args); });
  return cudaSuccess;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
template <class T>
void atomicAdd(T* to, T value) {
  __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

inline void __syncthreads() { on_host::wait_block(); }
inline void __syncwarp() { on_host::wait_warp(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
  return on_host::exchange(value, false, [&](unsigned) { return on_host::slot_of<T>(threadIdx.x ^ step); });
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return on_host::exchange(value, false, [&](unsigned first) { return on_host::slot_of<T>(first + lane); });
}
inline unsigned __ballot_sync(unsigned, bool value) {
  return on_host::exchange(value, false, [](unsigned first) {
    unsigned found = 0;
    for (unsigned lane = 0; lane < 32; ++lane) found |= unsigned{on_host::slot_of<bool>(first + lane)} << lane;
    return found;
  });
}
inline bool __any_sync(unsigned all, bool value) { return __ballot_sync(all, value) != 0; }
inline int __syncthreads_or(bool value) {
  return on_host::exchange(value, true, [](unsigned) {
    bool found = false;
    for (unsigned thread = 0; thread < on_host::block().threads; ++thread) found |= on_host::slot_of<bool>(thread);
    return int{found};
  });
}

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0) {
  on_host::block().fibers[threadIdx.x].copies.back().push_back({to, from, size, zeros});
  if (on_host::backwards) on_host::copy(on_host::block().fibers[threadIdx.x].copies.back().back());
}
inline void __pipeline_commit() { on_host::block().fibers[threadIdx.x].copies.emplace_back(); }
inline void __pipeline_wait_prior(size_t kept) {
  auto& copies = on_host::block().fibers[threadIdx.x].copies;
  while (copies.size() > kept + 1) {
    for (const auto& each : copies.front())
      if (!on_host::backwards) on_host::copy(each);
    copies.erase(copies.begin());
  }
}

namespace cooperative_groups {
struct cluster_group {
  void sync() const {
    barrier_arrive();
    barrier_wait();
  }
  void barrier_arrive() const { on_host::arrive_at_cluster(); }
  void barrier_wait() const { on_host::wait_for_cluster(); }
  unsigned block_rank() const { return on_host::block().rank; }
  template <class T>
  T* map_shared_rank(T* own, int rank) const {  // every block's shared memory has the same form
    const auto offset = reinterpret_cast<char*>(own) - &on_host::shared_anchor;
    return reinterpret_cast<T*>(on_host::block().cluster->base[static_cast<size_t>(rank)] + offset);
  }
};
inline cluster_group this_cluster() { return {}; }
}  // namespace cooperative_groups
