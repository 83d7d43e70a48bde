// Kernels that walk over images in memory order and know which elements a feature dropout keeps. A Row says what is
// done with the elements of one thread, kWidth of which are neighbours in memory:
//   row.read<kWidth, kVector>(offset, inside, count)  what is read of them
//   row.channels<kWidth>(channel)                     what kWidth channels that are neighbours need
//   row.along<kWidth, kVector>(run, read)             the elements follow each other in (C, H, W) order
//   row.across<kWidth>(run, read, channels)           they are of neighbouring channels
// `inside` is the first one's offset from the start of its image.
#pragma once

#include "common/feature_dropout.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {

constexpr int kTaken = kDraws / 2;  // elements or pixels of a thread: sixteen bytes each way, or twice as many
constexpr int kAhead = 4;           // pixels of a channels-last image that are read before the first of them is written

// `count` elements, the others of a row are beyond the end. `place` is the first one's place in its image. Bit k of
// `kept` is element k's.
struct MaskRun {
  int64_t offset;
  int64_t place;
  int count;
  uint32_t kept;
};

// A thread takes half of the elements of a block.
template <class Row, bool kVector>
__global__ void __launch_bounds__(kThreads, 3) contiguous_mask_kernel(const Row row, const FeatureDropoutArgs args) {
  const BatchLayout& layout = args.layout;
  const int64_t size = layout.channels * layout.plane;
  const int64_t tasks = layout.images * layout.cut.chunks;
  const bool drops = args.threshold != 0;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const BlockSpan span = block_span(task, size, layout.cut);
    const PhiloxStream stream = drops ? stream_of(args.key, span.image) : PhiloxStream{};
    const int64_t begin = span.offset - span.image * size;
    for (int64_t i = int64_t{threadIdx.x} * kTaken; i < span.length; i += int64_t{kThreads} * kTaken) {
      const int64_t left = span.length - i;
      const uint32_t place = static_cast<uint32_t>(begin + i);
      uint32_t kept = ~0u;
      if (drops) {
        const PhiloxBlock block = philox<kMaskRounds>(stream, place / kDraws);
        kept = kept_of_half(block, place % kDraws != 0, args.threshold);
      }
      const MaskRun run = {span.offset + i, begin + i, left < kTaken ? static_cast<int>(left) : kTaken, kept};
      row.template along<kTaken, kVector>(run, row.template read<kTaken, kVector>(run.offset, run.place, run.count));
    }
  }
}

// A thread takes kTaken pixels of kWidth channels; neighbouring threads neighbouring channels. Where the plane is no
// multiple of kTaken, their bits may come from two blocks, and which ones differs between channels.
template <class Row, int kWidth>
__global__ void __launch_bounds__(kThreads) channels_last_mask_kernel(const Row row, const FeatureDropoutArgs args) {
  const BatchLayout& layout = args.layout;
  const int64_t packs = layout.channels / kWidth;
  const int64_t items = (layout.plane + kTaken - 1) / kTaken * packs;
  const int64_t tasks = layout.images * layout.cut.chunks;
  const bool drops = args.threshold != 0;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const BlockSpan span = block_span(task, items, layout.cut);
    const PhiloxStream stream = drops ? stream_of(args.key, span.image) : PhiloxStream{};
    const int64_t begin = span.offset - span.image * items;
    for (int64_t i = threadIdx.x; i < span.length; i += kThreads) {
      // 32 bits, which walk_masked() has made sure of: a 64-bit division is a function call, around which registers
      // spill.
      const int64_t group = static_cast<uint32_t>(begin + i) / static_cast<uint32_t>(packs);
      const int64_t channel = (begin + i - group * packs) * kWidth;
      const int64_t first = kTaken * group;
      uint32_t pixels[kWidth];  // bit p: whether pixel p of the group is kept
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        pixels[k] = ~0u;
        if (!drops) continue;
        const uint32_t place = static_cast<uint32_t>((channel + k) * layout.plane + first);
        const uint32_t shift = place % kDraws;
        const PhiloxBlock block = philox<kMaskRounds>(stream, place / kDraws);
        if (shift % kTaken == 0) {
          pixels[k] = kept_of_half(block, shift != 0, args.threshold);
        } else {
          pixels[k] = kept_of_block(block, args.threshold) >> shift;
          if (shift > kDraws - kTaken) {
            const PhiloxBlock next = philox<kMaskRounds>(stream, place / kDraws + 1);
            pixels[k] |= kept_of_block(next, args.threshold) << (kDraws - shift);
          }
        }
      }
      const int many = layout.plane - first < kTaken ? static_cast<int>(layout.plane - first) : kTaken;
      const int64_t inside = first * layout.channels + channel;
      const int64_t start = span.image * layout.plane * layout.channels + inside;
      const auto held = row.template channels<kWidth>(channel);
      const auto kept = [&](int p) {
        uint32_t bits = 0;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) bits |= (pixels[k] >> p & 1u) << k;
        return bits;
      };
      const auto read = [&](int p) {
        const int64_t moved = p * layout.channels;
        return row.template read<kWidth, true>(start + moved, inside + moved, kWidth);
      };
      int p = 0;
      for (; p + kAhead <= many; p += kAhead) {
        decltype(read(0)) ahead[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) ahead[j] = read(p + j);
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const MaskRun run = {start + (p + j) * layout.channels, first + p + j, kWidth, kept(p + j)};
          row.template across<kWidth>(run, ahead[j], held);
        }
      }
      for (; p < many; ++p) {
        const MaskRun run = {start + p * layout.channels, first + p, kWidth, kept(p)};
        row.template across<kWidth>(run, read(p), held);
      }
    }
  }
}

// Launches the kernel of the layout and returns its status: cudaErrorInvalidValue for images of 2^32 elements or more.
// kPack: elements in 16 bytes; `wide`: every array begins on 16 bytes.
template <int kPack, class Row>
int walk_masked(const Row& row, FeatureDropoutArgs args, bool wide, cudaStream_t stream) {
  BatchLayout& layout = args.layout;
  const int64_t size = layout.channels * layout.plane;
  if (size >= int64_t{1} << 32) return cudaErrorInvalidValue;
  if (!layout.channels_last) {
    layout.cut = partition(size, kChunk);
    const unsigned grid = grid_for(layout.images * layout.cut.chunks);
    if (wide && size % kTaken == 0) {
      contiguous_mask_kernel<Row, true><<<grid, kThreads, 0, stream>>>(row, args);
    } else {
      contiguous_mask_kernel<Row, false><<<grid, kThreads, 0, stream>>>(row, args);
    }
    return cudaGetLastError();
  }
  const bool packed = wide && layout.channels % kPack == 0;
  const int64_t items = (layout.plane + kTaken - 1) / kTaken * (layout.channels / (packed ? kPack : 1));
  layout.cut = partition(items, kThreads);
  const unsigned grid = grid_for(layout.images * layout.cut.chunks);
  if (packed) {
    channels_last_mask_kernel<Row, kPack><<<grid, kThreads, 0, stream>>>(row, args);
  } else {
    channels_last_mask_kernel<Row, 1><<<grid, kThreads, 0, stream>>>(row, args);
  }
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
