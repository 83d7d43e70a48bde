// Tasks on the threads of the OpenMP runtime that torch has brought: after a loop of torch its threads spin for a while,
// waiting for the next one, and threads of our own would have to share the cores with them (two cores: a map of 200,000
// elements behind a convolution took three times as long). Without such a runtime, a small pool that sleeps.
#pragma once

#include <cstdint>

namespace fastadv::cpu {

using TaskFunction = void (*)(void* context, int64_t task);

// Runs function(context, 0 .. tasks-1) on at most `threads` threads, the caller's included. Tasks must not throw.
// A second caller that finds our pool busy runs its tasks alone. A forked child has lost the runtime's threads, and
// starts with an empty pool.
void parallel_for(int64_t tasks, int threads, TaskFunction function, void* context);

template <class Body>
void parallel(int64_t tasks, int threads, Body body) {
  parallel_for(tasks, threads, [](void* context, int64_t task) { (*static_cast<Body*>(context))(task); }, &body);
}

// Below this many elements waking a thread costs more than it saves (measured with sign_step_: 75,000 elements take
// 32 us on one thread and 42 on two, 600,000 take 146 and 113).
constexpr int64_t kSerialElements = 1 << 17;

}  // namespace fastadv::cpu
