// Walks over the elements of an image in memory order and says which of them a feature dropout keeps.
#pragma once

#include "common/feature_dropout.h"
#include "cpu/random_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes), may_alias));

// Whether element i of a run is kept: kept(kept.each[i]). By its draw, or by a bit of its channel's byte.
struct ByDraw {
  const uint16_t* each;
  uint32_t threshold;

  bool operator()(uint16_t draw) const { return draw >= threshold; }
};

struct ByBit {
  const uint32_t* each;
  uint32_t bit;

  bool operator()(uint32_t byte) const { return (byte & bit) != 0; }
};

// Which of the eight elements of kVectors * 2 * kBlocks blocks are kept: bit k for element k.
template <int kVectors>
inline void kept_bytes(const WideStream& stream, const uint32_t* blocks, uint32_t group, uint32_t threshold,
                       uint32_t* out) {
  WideBlock made[2 * kVectors];
  blocks_side_by_side<kVectors>(stream, blocks, group, made);
  const Halves least = Halves{} + static_cast<uint16_t>(threshold);
  // Adds the two draws of word `word` of each block: two bits, 16 apart.
  const auto add = [=](Wide low, Wide high, uint32_t word, Words sum) {
    const Words bits = Words{} + (0x20001u << 2 * word);
#if defined(__AVX512F__)
    const __mmask32 kept = _mm512_cmpge_epu16_mask((__m512i)packed(low, high), (__m512i)least);
    return (Words)_mm512_mask_add_epi16((__m512i)sum, kept, (__m512i)sum, (__m512i)bits);
#else
    return sum | ((Words)(Halves)((Halves)packed(low, high) >= least) & bits);
#endif
  };
  FASTADV_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const WideBlock& a = made[2 * k];
    const WideBlock& b = made[2 * k + 1];
    Words both = add(a.c0, b.c0, 0, Words{});
    both = add(a.c1, b.c1, 1, both);
    both = add(a.c2, b.c2, 2, both);
    both = add(a.c3, b.c3, 3, both);
    *reinterpret_cast<Words*>(out + k * 2 * kBlocks) = (both | both >> 16) & 0xffu;
  }
}

template <class Row>
inline void mask_contiguous(const WideStream& stream, uint32_t threshold, const Span& span, int64_t first, Row row) {
  constexpr int64_t tile = 2 * kTile;
  alignas(kVectorBytes) uint16_t draws[tile];
  for (int64_t done = 0; done < span.length; done += tile) {
    const int64_t count = span.length - done < tile ? span.length - done : tile;
    words_in_order(stream, static_cast<uint32_t>((first + done) / kDraws), (count + 1) / 2,
                   reinterpret_cast<uint32_t*>(draws));
    row(ByDraw{draws, threshold}, Run{span.image, span.offset + done, count, first + done});
  }
}

// The bytes of even channels, then those of odd ones, each from a place of its own on: for elements of 16 bits, of which
// two are one word.
constexpr int64_t kOdd = kTileChannels / 2;

inline void sort_by_parity(const uint32_t* __restrict mixed, int64_t count, uint32_t* __restrict out) {
  const int64_t pairs = count / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    out[i] = mixed[2 * i];
    out[kOdd + i] = mixed[2 * i + 1];
  }
  if (count % 2 != 0) out[pairs] = mixed[count - 1];
}

// Memory order (H, W, C), the pixels of `span`. The eight draws of a block belong to eight pixels of one channel; where
// the plane is no multiple of 8, a block begins at another pixel in every channel. kSorted: see sort_by_parity.
template <bool kSorted, class Row>
inline void mask_channels_last(const WideStream& stream, uint32_t threshold, const BatchLayout& layout,
                               const Span& span, int64_t first, Row row) {
  alignas(kVectorBytes) uint32_t blocks[kTileChannels];
  alignas(kVectorBytes) uint32_t bytes[2][kTileChannels];
  alignas(kVectorBytes) uint32_t mixed[kTileChannels];
  alignas(kVectorBytes) uint32_t sorted[kSorted ? kTileChannels : 1];
  uint32_t shift[kTileChannels];
  const bool whole = layout.plane % kDraws == 0;
  for (int64_t channel = 0; channel < layout.channels; channel += kTileChannels) {
    const int64_t left = layout.channels - channel;
    const int64_t count = left < kTileChannels ? left : kTileChannels;
    const int64_t padded = (count + 2 * kBlocks - 1) / (2 * kBlocks) * (2 * kBlocks);  // whole registers
    for (int64_t c = 0; c < padded; ++c) {
      const uint64_t start = static_cast<uint64_t>((channel + c) * layout.plane + first);
      blocks[c] = static_cast<uint32_t>(start / kDraws);
      shift[c] = static_cast<uint32_t>(start % kDraws);
    }
    const auto make = [&](int64_t group, uint32_t* out) {
      int64_t c = 0;
      for (; c + kBlocks * (kChains - 1) < count; c += kBlocks * kChains)
        kept_bytes<kChains / 2>(stream, blocks + c, static_cast<uint32_t>(group), threshold, out + c);
      for (; c < count; c += 2 * kBlocks)
        kept_bytes<1>(stream, blocks + c, static_cast<uint32_t>(group), threshold, out + c);
    };
    if (!whole) make(0, bytes[0]);
    for (int64_t pixel = 0; pixel < span.length; pixel += kDraws) {
      const int64_t group = pixel / kDraws;
      if (whole) {
        make(group, mixed);
      } else {
        const uint32_t* now = bytes[group % 2];
        uint32_t* next = bytes[(group + 1) % 2];
        make(group + 1, next);
        for (int64_t c = 0; c < count; ++c) mixed[c] = (now[c] | next[c] << kDraws) >> shift[c];
      }
      if constexpr (kSorted) sort_by_parity(mixed, count, sorted);
      for (int k = 0; k < kDraws && pixel + k < span.length; ++k)
        row(ByBit{kSorted ? sorted : mixed, 1u << k}, Run{span.image, (span.offset + pixel + k) * layout.channels + channel, count, channel});
    }
  }
}

// Task `task` of images * cut.chunks: contiguous(kept, run) or channels_last(kept, run) for every run of it.
template <bool kSorted, class Contiguous, class ChannelsLast>
inline void mask_walk(const FeatureDropoutArgs& args, int64_t task, Contiguous contiguous,
                      ChannelsLast channels_last) {
  // A chunk starts on a multiple of 16 elements, and so on a whole block.
  const BatchLayout& layout = args.layout;
  const int64_t size = layout.channels_last ? layout.plane : layout.channels * layout.plane;
  const Span span = span_of(task, size, layout.cut);
  const WideStream stream = widened(stream_of(args.key, span.image));
  const int64_t first = span.chunk * layout.cut.chunk;
  if (layout.channels_last) return mask_channels_last<kSorted>(stream, args.threshold, layout, span, first, channels_last);
  mask_contiguous(stream, args.threshold, span, first, contiguous);
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
