// Walks over the elements of an image in memory order and says which of them a feature dropout keeps.
#pragma once

#include "common/feature_dropout.h"
#include "cpu/random_walk.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

using MaskStream = WideStream<kMaskRounds>;
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes), may_alias));

// Whether element i of a run is kept: kept[i]. By its draw, by a bit of its channel's, or in any case.
struct ByDraw {
  const uint16_t* __restrict each;
  uint32_t threshold;

  bool operator[](int64_t i) const { return each[i] >= threshold; }
  ByDraw from(int64_t i) const { return {each + i, threshold}; }
};

template <class Bits>
struct ByBit {
  const Bits* __restrict each;
  Bits bit;

  bool operator[](int64_t i) const { return (each[i] & bit) != 0; }
};

struct All {
  bool operator[](int64_t) const { return true; }
  All from(int64_t) const { return {}; }
};

// swapped: one instruction where there is one for it. next_words: the one after each word in its block of four.
// in_order: the halves of two vectors, alternating.
using fastadv::swapped;
#if defined(__AVX512F__)
inline Words swapped(Words words) {
  const __m128i order = _mm_set_epi8(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1);
  return (Words)_mm512_shuffle_epi8((__m512i)words, _mm512_maskz_broadcast_i32x4(0xffff, order));
}
inline Words next_words(Words words) {
  return (Words)_mm512_maskz_shuffle_epi32(0xffff, (__m512i)words, _MM_PERM_ADCB);
}
inline void in_order(Words even, Words odd, Words* out) {
  const __m512i low = _mm512_unpacklo_epi16((__m512i)even, (__m512i)odd);
  const __m512i high = _mm512_unpackhi_epi16((__m512i)even, (__m512i)odd);
  out[0] = (Words)_mm512_permutex2var_epi64(low, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), high);
  out[1] = (Words)_mm512_permutex2var_epi64(low, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4), high);
}
#elif defined(__AVX2__)
inline Words swapped(Words words) {
  const __m128i order = _mm_set_epi8(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1);
  return (Words)_mm256_shuffle_epi8((__m256i)words, _mm256_broadcastsi128_si256(order));
}
inline Words next_words(Words words) { return (Words)_mm256_shuffle_epi32((__m256i)words, 0x39); }
inline void in_order(Words even, Words odd, Words* out) {
  const __m256i low = _mm256_unpacklo_epi16((__m256i)even, (__m256i)odd);
  const __m256i high = _mm256_unpackhi_epi16((__m256i)even, (__m256i)odd);
  out[0] = (Words)_mm256_permute2x128_si256(low, high, 0x20);
  out[1] = (Words)_mm256_permute2x128_si256(low, high, 0x31);
}
#else
inline Words next_words(Words words) { return Words{words[1], words[2], words[3], words[0]}; }
inline void in_order(Words even, Words odd, Words* out) {
  const Words low = (even & 0xffffu) | odd << 16;
  const Words high = even >> 16 | (odd & 0xffff0000u);
  out[0] = Words{low[0], high[0], low[1], high[1]};
  out[1] = Words{low[2], high[2], low[3], high[3]};
}
#endif

// Which of the sixteen elements of kVectors * 2 * kBlocks blocks are kept: bit k for element k.
template <int kVectors>
inline void kept_of_blocks(const MaskStream& stream, const uint32_t* blocks, uint32_t group, uint32_t threshold,
                           uint32_t* out) {
  WideBlock made[2 * kVectors];
  blocks_side_by_side<kVectors>(stream, blocks, group, made);
  const Halves least = Halves{} + static_cast<uint16_t>(threshold);
  // Adds draws `first` and first + 2 of each block, the halves of a word: two bits, 16 + 2 apart.
  const auto add = [=](Words draws, uint32_t first, Words sum) {
    const Words bits = Words{} + (0x40001u << first);
#if defined(__AVX512F__)
    const __mmask32 kept = _mm512_cmpge_epu16_mask((__m512i)draws, (__m512i)least);
    return (Words)_mm512_mask_add_epi16((__m512i)sum, kept, (__m512i)sum, (__m512i)bits);
#else
    return sum | ((Words)((Halves)draws >= least) & bits);
#endif
  };
  FASTADV_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const WideBlock& a = made[2 * k];
    const WideBlock& b = made[2 * k + 1];
    const Words words[] = {(Words)packed(a.c0, b.c0), (Words)packed(a.c1, b.c1), (Words)packed(a.c2, b.c2),
                           (Words)packed(a.c3, b.c3)};
    const Words other[] = {swapped(words[0]), swapped(words[1]), swapped(words[2]), swapped(words[3])};
    Words both{};
    FASTADV_UNROLL
    for (uint32_t word = 0; word < 4; ++word) {
      both = add(two_draws(other[word], other[(word + 1) % 4]), 4 * word, both);
      both = add(two_draws(words[word], words[(word + 1) % 4]), 4 * word + 1, both);
    }
    *reinterpret_cast<Words*>(out + k * 2 * kBlocks) = (both | both >> 16) & 0xffffu;
  }
}

// `count` draws in order, from the first of block `block` on. Rounds up: `out` has room for those of kTile words.
inline void draws_in_order(const MaskStream& stream, uint32_t block, int64_t count, uint16_t* out) {
  constexpr int64_t kLanes = kVectorBytes / 4;
  alignas(kVectorBytes) uint32_t words[kTile];
  const int64_t many = (count + 3) / 4;
  words_in_order(stream, block, many, words);
  for (int64_t i = 0; i < many; i += kLanes) {
    const Words word = *reinterpret_cast<const Words*>(words + i);
    const Words other = swapped(word);
    const Words odd = two_draws(word, next_words(word));
    const Words even = two_draws(other, next_words(other));
    in_order(even, odd, reinterpret_cast<Words*>(out + 4 * i));
  }
}

template <class Row>
inline void mask_contiguous(const MaskStream& stream, uint32_t threshold, const Span& span, int64_t first, Row row) {
  constexpr int64_t tile = 4 * kTile;
  alignas(kVectorBytes) uint16_t draws[tile];
  for (int64_t done = 0; done < span.length; done += tile) {
    const int64_t count = span.length - done < tile ? span.length - done : tile;
    draws_in_order(stream, static_cast<uint32_t>((first + done) / kDraws), count, draws);
    row(ByDraw{draws, threshold}, Run{span.image, span.offset + done, count, first + done});
  }
}

// Memory order (H, W, C), the pixels of `span`. The draws of a block belong to pixels of one channel; where the plane
// is no multiple of their number, a block begins at another pixel in every channel. Bits: as wide as an element.
template <class Bits, class Row>
inline void mask_channels_last(const MaskStream& stream, uint32_t threshold, const BatchLayout& layout,
                               const Span& span, int64_t first, Row row) {
  alignas(kVectorBytes) uint32_t blocks[kTileChannels];
  alignas(kVectorBytes) uint32_t halves[2][kTileChannels];
  alignas(kVectorBytes) Bits bits[kTileChannels];
  uint32_t shift[kTileChannels];
  for (int64_t channel = 0; channel < layout.channels; channel += kTileChannels) {
    const int64_t left = layout.channels - channel;
    const int64_t count = left < kTileChannels ? left : kTileChannels;
    const int64_t padded = (count + 2 * kBlocks - 1) / (2 * kBlocks) * (2 * kBlocks);  // whole registers
    uint32_t largest = 0;
    for (int64_t c = 0; c < padded; ++c) {
      const uint64_t start = static_cast<uint64_t>((channel + c) * layout.plane + first);
      blocks[c] = static_cast<uint32_t>(start / kDraws);
      shift[c] = static_cast<uint32_t>(start % kDraws);
      if (c < count && largest < shift[c]) largest = shift[c];
    }
    const auto make = [&](int64_t group, uint32_t* out) {
      int64_t c = 0;
      for (; c + kBlocks * (kChains - 1) < count; c += kBlocks * kChains)
        kept_of_blocks<kChains / 2>(stream, blocks + c, static_cast<uint32_t>(group), threshold, out + c);
      for (; c < count; c += 2 * kBlocks)
        kept_of_blocks<1>(stream, blocks + c, static_cast<uint32_t>(group), threshold, out + c);
    };
    for (int64_t pixel = 0; pixel < span.length; pixel += kDraws) {
      const int64_t group = pixel / kDraws;
      const int64_t rest = span.length - pixel;
      const int64_t pixels = rest < kDraws ? rest : kDraws;
      uint32_t* now = halves[group % 2];
      uint32_t* next = halves[(group + 1) % 2];
      if (group == 0 || largest == 0) make(group, now);
      if (largest + pixels <= kDraws) {
        for (int64_t c = 0; c < count; ++c) bits[c] = static_cast<Bits>(now[c] >> shift[c]);
      } else {
        make(group + 1, next);
        for (int64_t c = 0; c < count; ++c) bits[c] = static_cast<Bits>((now[c] | next[c] << kDraws) >> shift[c]);
      }
      for (int64_t k = 0; k < pixels; ++k)
        row(ByBit<Bits>{bits, static_cast<Bits>(1u << k)},
            Run{span.image, (span.offset + pixel + k) * layout.channels + channel, count, channel});
    }
  }
}

// Every element is kept, and nothing is drawn. A run then spans pixels of few channels, if possible whole registers.
template <class ChannelsLast>
inline void unmasked_channels_last(const BatchLayout& layout, const Span& span, ChannelsLast channels_last) {
  int64_t together = 1;
  while (together * layout.channels % (2 * kVectorBytes / 4) != 0) together *= 2;
  const int64_t most = kTileChannels / layout.channels;
  const int64_t pixels = most > together ? most / together * together : most > 1 ? most : 1;
  for (int64_t channel = 0; channel < layout.channels; channel += kTileChannels) {
    const int64_t left = layout.channels - channel;
    const int64_t count = left < kTileChannels ? left : kTileChannels;
    for (int64_t pixel = 0; pixel < span.length; pixel += pixels) {
      const int64_t rest = span.length - pixel < pixels ? span.length - pixel : pixels;
      channels_last(All{}, Run{span.image, (span.offset + pixel) * layout.channels + channel, rest * count, channel});
    }
  }
}

// Task `task` of images * cut.chunks: contiguous(kept, run) or channels_last(kept, run) for every run of it. A run of
// neighbouring channels may go on with the first channel of the next pixel.
template <class Bits, class Contiguous, class ChannelsLast>
inline void mask_walk(const FeatureDropoutArgs& args, int64_t task, Contiguous contiguous,
                      ChannelsLast channels_last) {
  // A chunk starts on a multiple of 16 elements, and so on a whole block.
  const BatchLayout& layout = args.layout;
  const int64_t size = layout.channels_last ? layout.plane : layout.channels * layout.plane;
  const Span span = span_of(task, size, layout.cut);
  const int64_t first = span.chunk * layout.cut.chunk;
  if (args.threshold == 0 && layout.channels_last) return unmasked_channels_last(layout, span, channels_last);
  if (args.threshold == 0) return contiguous(All{}, Run{span.image, span.offset, span.length, first});
  const MaskStream stream = widened<kMaskRounds>(stream_of(args.key, span.image));
  if (layout.channels_last) return mask_channels_last<Bits>(stream, args.threshold, layout, span, first, channels_last);
  mask_contiguous(stream, args.threshold, span, first, contiguous);
}

}  // namespace
}  // namespace fastadv::cpu::FASTADV_ISA
