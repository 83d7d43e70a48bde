// Operations over several layers of different shapes: one launch works through the tasks of all of them.
#pragma once

#include "common/types.h"

namespace fastadv {

// Layers of one launch. They are passed by value, and kernel parameters are limited to 4 KB.
constexpr int kMaxLayers = 48;

// Gives every layer its range of tasks; `tasks_of(layer)` is how many it has.
template <class Args, class TasksOf>
static inline void number_tasks(Args& args, TasksOf tasks_of) {
  args.tasks = 0;
  for (int i = 0; i < args.layers; ++i) {
    args.layer[i].first_task = args.tasks;
    args.tasks += tasks_of(args.layer[i]);
  }
}

template <class Args>
static FASTADV_HD int layer_of(const Args& args, int64_t task) {
  int index = 0;
  while (index + 1 < args.layers && task >= args.layer[index + 1].first_task) ++index;
  return index;
}

static FASTADV_HD int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

}  // namespace fastadv
