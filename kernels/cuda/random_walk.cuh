// Kernels that walk over images in memory order with a random word for each element: the word belongs to the element's
// place in (C, H, W) order, whatever the order in memory. A Row says what is done with the elements of one thread:
//   Row::pair(a, b)                      with words 2k and 2k + 1, before they are handed out
//   row.read<kWidth, kVector>(run)       what is read of kWidth elements that are neighbours in memory
//   row.apply<kWidth, kVector>(run, read)
#pragma once

#include "common/philox.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {

// `count` elements of `kWidth`; the others are beyond the end.
template <int kWidth>
struct Run {
  int64_t image;
  int64_t offset;
  int count;
  uint32_t words[kWidth];
};

// A thread takes kWidth elements, which are kWidth / 4 blocks.
template <class Row, int kWidth, bool kVector>
__global__ void __launch_bounds__(kThreads) contiguous_kernel(const Row row, const PhiloxKey key,
                                                              const BatchLayout layout) {
  const int64_t size = layout.channels * layout.plane;
  const int64_t tasks = layout.images * layout.cut.chunks;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const BlockSpan span = block_span(task, size, layout.cut);
    const PhiloxStream stream = stream_of(key, span.image);
    const int64_t begin = span.offset - span.image * size;
    for (int64_t i = int64_t{threadIdx.x} * kWidth; i < span.length; i += int64_t{kThreads} * kWidth) {
      const int64_t left = span.length - i;
      Run<kWidth> run = {span.image, span.offset + i, left < kWidth ? static_cast<int>(left) : kWidth, {}};
      const auto given = row.template read<kWidth, kVector>(run);
#pragma unroll
      for (int k = 0; k < kWidth; k += 4) {
        const PhiloxBlock made = philox<kNumberRounds>(stream, static_cast<uint32_t>((begin + i + k) / 4));
        run.words[k] = made.c0;
        run.words[k + 1] = made.c1;
        run.words[k + 2] = made.c2;
        run.words[k + 3] = made.c3;
        Row::pair(run.words[k], run.words[k + 1]);
        Row::pair(run.words[k + 2], run.words[k + 3]);
      }
      row.template apply<kWidth, kVector>(run, given);
    }
  }
}

// A thread takes four pixels of kWidth channels; neighbouring threads neighbouring channels. Where the plane is no
// multiple of 4, the words of four pixels come from two blocks, and which ones differs from channel to channel.
template <class Row, int kWidth>
__global__ void __launch_bounds__(kThreads) channels_last_kernel(const Row row, const PhiloxKey key,
                                                                 const BatchLayout layout) {
  const int64_t packs = layout.channels / kWidth;
  const int64_t items = (layout.plane + 3) / 4 * packs;
  const int64_t tasks = layout.images * layout.cut.chunks;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const BlockSpan span = block_span(task, items, layout.cut);
    const PhiloxStream stream = stream_of(key, span.image);
    const int64_t begin = span.offset - span.image * items;
    for (int64_t i = threadIdx.x; i < span.length; i += kThreads) {
      // 32 bits, which walk() has made sure of: a 64-bit division is a function call, around which registers spill.
      const int64_t group = static_cast<uint32_t>(begin + i) / static_cast<uint32_t>(packs);
      const int64_t channel = (begin + i - group * packs) * kWidth;
      uint32_t words[4][kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const uint64_t start = static_cast<uint64_t>((channel + k) * layout.plane);
        const uint32_t block = static_cast<uint32_t>(start / 4 + static_cast<uint64_t>(group));
        PhiloxBlock a = philox<kNumberRounds>(stream, block);
        Row::pair(a.c0, a.c1);
        Row::pair(a.c2, a.c3);
        const uint32_t shift = static_cast<uint32_t>(start % 4);
        if (shift == 0) {
          words[0][k] = a.c0;
          words[1][k] = a.c1;
          words[2][k] = a.c2;
          words[3][k] = a.c3;
        } else {
          PhiloxBlock b = philox<kNumberRounds>(stream, block + 1);
          Row::pair(b.c0, b.c1);
          Row::pair(b.c2, b.c3);
          words[0][k] = shift == 1 ? a.c1 : shift == 2 ? a.c2 : a.c3;
          words[1][k] = shift == 1 ? a.c2 : shift == 2 ? a.c3 : b.c0;
          words[2][k] = shift == 1 ? a.c3 : shift == 2 ? b.c0 : b.c1;
          words[3][k] = shift == 1 ? b.c0 : shift == 2 ? b.c1 : b.c2;
        }
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int64_t pixel = 4 * group + p;
        if (pixel >= layout.plane) break;
        Run<kWidth> run = {span.image, (span.image * layout.plane + pixel) * layout.channels + channel, kWidth, {}};
#pragma unroll
        for (int k = 0; k < kWidth; ++k) run.words[k] = words[p][k];
        row.template apply<kWidth, true>(run, row.template read<kWidth, true>(run));
      }
    }
  }
}

// A thread takes four pixels of all channels of a channels-last image with few: they lie together, in kChannels packs of
// four. The plane is a multiple of 4.
template <class Row, int kChannels>
__global__ void __launch_bounds__(kThreads) few_channels_kernel(const Row row, const PhiloxKey key,
                                                                const BatchLayout layout) {
  const int64_t groups = layout.plane / 4;
  const int64_t tasks = layout.images * layout.cut.chunks;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const BlockSpan span = block_span(task, groups, layout.cut);
    const PhiloxStream stream = stream_of(key, span.image);
    const int64_t begin = span.offset - span.image * groups;
    for (int64_t i = threadIdx.x; i < span.length; i += kThreads) {
      Run<4> runs[kChannels];
      Pack<float, 4> given[kChannels];
#pragma unroll
      for (int k = 0; k < kChannels; ++k) {
        runs[k] = {span.image, ((span.offset + i) * kChannels + k) * 4, 4, {}};
        given[k] = row.template read<4, true>(runs[k]);
      }
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        PhiloxBlock made = philox<kNumberRounds>(stream, static_cast<uint32_t>(c * groups + begin + i));
        Row::pair(made.c0, made.c1);
        Row::pair(made.c2, made.c3);
        const uint32_t words[] = {made.c0, made.c1, made.c2, made.c3};
#pragma unroll
        for (int p = 0; p < 4; ++p) runs[(p * kChannels + c) / 4].words[(p * kChannels + c) % 4] = words[p];
      }
#pragma unroll
      for (int k = 0; k < kChannels; ++k) row.template apply<4, true>(runs[k], given[k]);
    }
  }
}

// Launches the kernel of the layout and returns its status: cudaErrorInvalidValue for images of 2^32 elements or more.
// kPack: elements in 16 bytes; `wide`: every array begins on 16 bytes.
template <int kPack, class Row>
int walk(const Row& row, const PhiloxKey& key, BatchLayout layout, bool wide, cudaStream_t stream) {
  const int64_t size = layout.channels * layout.plane;
  if (size >= int64_t{1} << 32) return cudaErrorInvalidValue;
  if (!layout.channels_last) {
    layout.cut = partition(size, kChunk);
    const unsigned grid = grid_for(layout.images * layout.cut.chunks);
    if (wide && size % kPack == 0) {
      contiguous_kernel<Row, kPack, true><<<grid, kThreads, 0, stream>>>(row, key, layout);
    } else {
      contiguous_kernel<Row, 4, false><<<grid, kThreads, 0, stream>>>(row, key, layout);
    }
    return cudaGetLastError();
  }
  constexpr int kColours = 3;
  if (wide && layout.plane % 4 == 0 && layout.channels == kColours) {
    layout.cut = partition(layout.plane / 4, kThreads);
    const unsigned grid = grid_for(layout.images * layout.cut.chunks);
    few_channels_kernel<Row, kColours><<<grid, kThreads, 0, stream>>>(row, key, layout);
    return cudaGetLastError();
  }
  const bool packed = wide && layout.plane % 4 == 0 && layout.channels % kPack == 0;
  const int64_t items = (layout.plane + 3) / 4 * (layout.channels / (packed ? kPack : 1));
  layout.cut = partition(items, kThreads);
  const unsigned grid = grid_for(layout.images * layout.cut.chunks);
  if (packed) {
    channels_last_kernel<Row, kPack><<<grid, kThreads, 0, stream>>>(row, key, layout);
  } else {
    channels_last_kernel<Row, 1><<<grid, kThreads, 0, stream>>>(row, key, layout);
  }
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
