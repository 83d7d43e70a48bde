// Walks over the elements of an image in memory order and hands out a random word for each: the word belongs to the
// element's place in (C, H, W) order, whatever the order in memory.
#pragma once

#include "cpu/philox_lanes.h"
#include "cpu/span.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int64_t kTile = 128;          // words made at a time, contiguous images
constexpr int64_t kTileChannels = 512;  // channels at a time, channels-last images: whole rows, for the memory's sake
static_assert(kTile % kTogether == 0 && kTileChannels % (kChains * kBlocks) == 0, "tiles hold whole vectors");

// Neighbours in memory: elements of one image from `place` on, or channels of one pixel from channel `place` on.
struct Run {
  int64_t image;
  int64_t offset;  // of the first element, from the start of the batch
  int64_t count;
  int64_t place;
};

// What is done with the pair of words 2k and 2k + 1 before they are handed out: nothing.
struct PlainWords {
  static constexpr bool kPlain = true;
  static void pair(uint32_t&, uint32_t&) {}
};

template <class Pairs, class Row>
inline void walk_contiguous(const WideStream<kNumberRounds>& stream, const Span& span, int64_t first, Row row) {
  alignas(kVectorBytes) uint32_t words[kTile];
  for (int64_t done = 0; done < span.length; done += kTile) {
    const int64_t count = span.length - done < kTile ? span.length - done : kTile;
    words_in_order(stream, static_cast<uint32_t>((first + done) / 4), count, words);
    for (int64_t i = 0; i < count; i += 2) Pairs::pair(words[i], words[i + 1]);
    row(words, Run{span.image, span.offset + done, count, first + done});
  }
}

struct ChannelTile {
  alignas(kVectorBytes) uint32_t plane[4][kTileChannels];
};

// The words of pixel k of a group, for a channel whose blocks begin `s` elements before the pixels' groups.
inline void mix(const ChannelTile& now, const ChannelTile& next, const uint32_t* shift, int64_t count,
                ChannelTile* out) {
  for (int64_t c = 0; c < count; ++c) {
    const uint32_t s = shift[c];
    const uint32_t a0 = now.plane[0][c], a1 = now.plane[1][c], a2 = now.plane[2][c], a3 = now.plane[3][c];
    const uint32_t b0 = next.plane[0][c], b1 = next.plane[1][c], b2 = next.plane[2][c];
    out->plane[0][c] = s == 0 ? a0 : s == 1 ? a1 : s == 2 ? a2 : a3;
    out->plane[1][c] = s == 0 ? a1 : s == 1 ? a2 : s == 2 ? a3 : b0;
    out->plane[2][c] = s == 0 ? a2 : s == 1 ? a3 : s == 2 ? b0 : b1;
    out->plane[3][c] = s == 0 ? a3 : s == 1 ? b0 : s == 2 ? b1 : b2;
  }
}

// Memory order (H, W, C), the pixels of `span`. An element is channel * plane + pixel, so the four words of a block
// belong to four pixels of one channel; where the plane is no multiple of 4, a block begins at another pixel in every
// channel, and the words of four pixels come from two blocks.
template <class Pairs, class Row>
inline void walk_channels_last(const WideStream<kNumberRounds>& stream, const BatchLayout& layout, const Span& span, int64_t first,
                               Row row) {
  alignas(kVectorBytes) uint32_t blocks[kTileChannels];
  uint32_t shift[kTileChannels];
  ChannelTile tiles[2];
  ChannelTile mixed;
  const bool whole = layout.plane % 4 == 0;
  for (int64_t channel = 0; channel < layout.channels; channel += kTileChannels) {
    const int64_t left = layout.channels - channel;
    const int64_t count = left < kTileChannels ? left : kTileChannels;
    const int64_t padded = (count + 2 * kBlocks - 1) / (2 * kBlocks) * (2 * kBlocks);  // whole registers
    for (int64_t c = 0; c < padded; ++c) {
      const uint64_t start = static_cast<uint64_t>((channel + c) * layout.plane + first);
      blocks[c] = static_cast<uint32_t>(start / 4);
      shift[c] = static_cast<uint32_t>(start % 4);
    }
    const auto make = [&](int64_t group, ChannelTile* out) {
      int64_t c = 0;
      for (; c + kBlocks * (kChains - 1) < count; c += kBlocks * kChains)
        word_planes<kChains / 2>(stream, blocks + c, static_cast<uint32_t>(group), out->plane[0] + c, kTileChannels);
      for (; c < count; c += 2 * kBlocks)
        word_planes<1>(stream, blocks + c, static_cast<uint32_t>(group), out->plane[0] + c, kTileChannels);
      for (int k = 0; k < 4; k += 2)
        for (int64_t c = 0; c < count; ++c) Pairs::pair(out->plane[k][c], out->plane[k + 1][c]);
    };
    if (!whole) make(0, &tiles[0]);
    for (int64_t pixel = 0; pixel < span.length; pixel += 4) {
      const int64_t group = pixel / 4;
      if (whole) {
        make(group, &mixed);
      } else {
        make(group + 1, &tiles[(group + 1) % 2]);
        mix(tiles[group % 2], tiles[(group + 1) % 2], shift, count, &mixed);
      }
      for (int64_t k = 0; k < 4 && pixel + k < span.length; ++k)
        row(mixed.plane[k], Run{span.image, (span.offset + pixel + k) * layout.channels + channel, count, channel});
    }
  }
}

// Task `task` of images * cut.chunks: contiguous(words, run) or channels_last(words, run) for every run of it.
template <class Pairs, class Contiguous, class ChannelsLast>
inline void walk(const PhiloxKey& key, const BatchLayout& layout, int64_t task, Contiguous contiguous,
                 ChannelsLast channels_last) {
  // A chunk starts on a multiple of 16 elements, and so on a whole block.
  const int64_t size = layout.channels_last ? layout.plane : layout.channels * layout.plane;
  const Span span = span_of(task, size, layout.cut);
  const auto stream = widened<kNumberRounds>(stream_of(key, span.image));
  const int64_t first = span.chunk * layout.cut.chunk;
  if (layout.channels_last) return walk_channels_last<Pairs>(stream, layout, span, first, channels_last);
  walk_contiguous<Pairs>(stream, span, first, contiguous);
}

template <class Pairs, class Row>
inline void walk(const PhiloxKey& key, const BatchLayout& layout, int64_t task, Row row) {
  walk<Pairs>(key, layout, task, row, row);
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
