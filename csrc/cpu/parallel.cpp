#include "cpu/parallel.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace fastadv::cpu {
namespace {

constexpr int kMostShares = 256;

// Subnormal numbers are numbers while it lives. torch.set_flush_denormal makes them zeros in the thread that calls it
// alone: half-precision numbers would lose theirs on the way to float32, and bits would depend on who did which task.
class Subnormals {
 public:
  Subnormals() : before_(control()) {
    if (before_ & kFlush) set_control(before_ & ~kFlush);
  }
  ~Subnormals() {
    if (before_ & kFlush) set_control(before_);
  }
  Subnormals(const Subnormals&) = delete;
  Subnormals& operator=(const Subnormals&) = delete;

 private:
#if defined(__SSE2__)
  using Word = unsigned;
  static constexpr Word kFlush = 0x8040;  // of results, and of operands
  static Word control() { return _mm_getcsr(); }
  static void set_control(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kFlush = Word{1} << 24 | Word{1} << 19;
  static Word control() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set_control(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
  using Word = unsigned;
  static constexpr Word kFlush = 0;
  static Word control() { return 0; }
  static void set_control(Word) {}
#endif
  Word before_;
};

// Every thread begins with a run of tasks of its own, so that it walks through memory of its own, and then helps the
// others.
struct Job {
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };

  Job(TaskFunction work, void* with, int64_t tasks, int threads) : function(work), context(with), shares(threads) {
    for (int i = 0; i < shares; ++i) {
      share[i].next.store(tasks * i / shares, std::memory_order_relaxed);
      share[i].end = tasks * (i + 1) / shares;
    }
  }

  void work(int seat) {
    const Subnormals kept;
    for (int i = 0; i < shares; ++i) {
      Share& own = share[(seat + i) % shares];
      for (int64_t task = own.next.fetch_add(1); task < own.end; task = own.next.fetch_add(1)) function(context, task);
    }
  }

  TaskFunction function;
  void* context;
  int shares;
  Share share[kMostShares];
};

class Pool {
 public:
  // False when another caller has the pool.
  bool run(Job& job, int helpers) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      job_ = &job;
      seats_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes up late finds nothing to do
    done_.wait(lock, [this] { return busy_ == 0; });
    return true;
  }

 private:
  void grow(int helpers) {
    while (workers_ < helpers) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // out of threads: go on with those there are
      }
      ++workers_;
    }
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen && job_ != nullptr; });
      seen = generation_;
      if (seats_ == 0) continue;
      const int seat = seats_--;
      ++busy_;
      Job* job = job_;
      lock.unlock();
      job->work(seat);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  uint64_t generation_ = 0;
  int workers_ = 0;
  int seats_ = 0;
  int busy_ = 0;
};

// Entry points of GCC's OpenMP runtime, which that of LLVM and Intel has too. Not linked: the one that torch has
// loaded, under whatever name, and no other.
struct Runtime {
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  int (*seat)();
};

const Runtime* torch_runtime() {
#if defined(__unix__) || defined(__APPLE__)
  static const Runtime found = {
      reinterpret_cast<decltype(Runtime::parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel")),
      reinterpret_cast<decltype(Runtime::seat)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num")),
  };
  if (found.parallel != nullptr && found.seat != nullptr) return &found;
#endif
  return nullptr;
}

std::atomic<bool> forked{false};

// Never destroyed: detached workers may outlive static destruction, and a forked child must not touch the parent's.
std::atomic<Pool*> current_pool{nullptr};

Pool& pool() {
  Pool* found = current_pool.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  Pool* fresh = new Pool;
  if (current_pool.compare_exchange_strong(found, fresh)) return *fresh;
  delete fresh;  // another thread was first; this one has no workers yet
  return *found;
}

// When the module is loaded, not at the first call: a child may be forked before it, after torch's threads have begun.
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int watching_forks = pthread_atfork(nullptr, nullptr, [] {
  forked.store(true);
  current_pool.store(nullptr);
});
#endif

}  // namespace

void parallel_for(int64_t tasks, int threads, TaskFunction function, void* context) {
  if (tasks <= 0) return;
  const int64_t most = tasks < kMostShares ? tasks : kMostShares;
  Job job(function, context, tasks, static_cast<int>(threads < 1 ? 1 : threads < most ? threads : most));
  if (job.shares == 1) return job.work(0);
  const Runtime* runtime = forked.load() ? nullptr : torch_runtime();
  if (runtime != nullptr) {
    // A team may be smaller than asked for, as inside another one: whoever is there does the shares of the others.
    const auto work = [](void* data) { static_cast<Job*>(data)->work(torch_runtime()->seat()); };
    return runtime->parallel(work, &job, static_cast<unsigned>(job.shares), 0);
  }
  if (!pool().run(job, job.shares - 1)) job.work(0);
}

}  // namespace fastadv::cpu
