// The tasks of an operation that walks over images with random words.
#pragma once

#include <pybind11/pybind11.h>

#include "common/philox.h"
#include "cpu/parallel.h"

namespace fastadv::cpu {

constexpr int64_t kRandomChunk = 1 << 15;   // elements of a task
constexpr int64_t kSerialRandom = 1 << 15;  // kSerialElements, where each of them costs some arithmetic

// The layout as the CPU kernels cut it: by elements, or by pixels where they are channels-last.
inline BatchLayout cpu_layout(int64_t images, int64_t channels, int64_t plane, int channels_last) {
  const Partition cut = channels_last ? partition(plane, (kRandomChunk + channels - 1) / channels)
                                      : partition(channels * plane, kRandomChunk);
  return {images, channels, plane, channels_last, cut};
}

// Releases the GIL and runs task(args, 0 ..).
template <class Args>
void parallel_images(const Args& args, const BatchLayout& layout, void (*task)(const Args&, int64_t), int threads) {
  if (layout.images * layout.channels * layout.plane < kSerialRandom) threads = 1;
  pybind11::gil_scoped_release release;
  parallel(layout.images * layout.cut.chunks, threads, [&](int64_t index) { task(args, index); });
}

}  // namespace fastadv::cpu
