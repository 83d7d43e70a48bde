// Compiled once per instruction set, see sign_step.cpp. Convolutions of few channels, with what follows them while a row
// is in the cache.
#include "cpu/conv_prelu.h"

#include "cpu/float_parts.h"
#include "cpu/fma.h"
#include "cpu/kernels.h"
#include "cpu/sums.h"
#include "cpu/unroll.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

// Registers of channels that are computed together, and how many pixels with one, two and three of them: the sums fill
// the registers that weights and a pixel leave. More pixels read the weights less often, which may not be in the first
// cache.
#if defined(__AVX512F__)
constexpr int64_t kMostColumns = 3;
constexpr int64_t kMost[] = {14, 12, 9};
#else
constexpr int64_t kMostColumns = 2;
constexpr int64_t kMost[] = {8, 6};
#endif
constexpr int64_t kRowsTogether = 3;  // of narrow maps

// Pixels of a result: beside each other in some rows below each other.
struct Place {
  const float* x;
  float* out;
  int64_t column;  // of `padded`
  int64_t line;    // numbers of a row of `out`
};

// The sum of every pixel and channel is made in the order of row, column and channel of the weights, each product added
// before it is rounded: the same bits whatever is computed beside it.
template <int64_t kRows, int64_t kCount, int64_t kColumns>
void tile(const ConvPreluArgs& args, const Place& place) {
  const int64_t terms = args.side * args.taken;  // of a row of weights: these pixels lie behind each other
  const int64_t below = args.width * args.taken;
  const int64_t taken = args.taken;
  Part sum[kRows * kCount][kColumns];
  FASTADV_UNROLL
  for (int64_t p = 0; p < kRows * kCount; ++p) {
    FASTADV_UNROLL
    for (int64_t c = 0; c < kColumns; ++c)
      sum[p][c] = *reinterpret_cast<const LoosePart*>(args.bias + place.column + c * kPart);
  }
  const float* x = place.x;
  const float* weights = args.weights + place.column;
  for (int64_t y = 0; y < args.side; ++y, x += below) {
    for (int64_t k = 0; k < terms; ++k, weights += args.padded) {
      Part w[kColumns];
      FASTADV_UNROLL
      for (int64_t c = 0; c < kColumns; ++c) w[c] = *reinterpret_cast<const LoosePart*>(weights + c * kPart);
      FASTADV_UNROLL
      for (int64_t p = 0; p < kRows * kCount; ++p) {
        const Part pixel = x[p / kCount * below + p % kCount * taken + k] - Part{};  // in every lane
        FASTADV_UNROLL
        for (int64_t c = 0; c < kColumns; ++c) sum[p][c] = fma(pixel, w[c], sum[p][c]);
      }
    }
  }
  FASTADV_UNROLL
  for (int64_t c = 0; c < kColumns; ++c) {
    const Part slope = *reinterpret_cast<const LoosePart*>(args.slopes + place.column + c * kPart);
    FASTADV_UNROLL
    for (int64_t p = 0; p < kRows * kCount; ++p) {
      float* out = place.out + p / kCount * place.line + p % kCount * args.padded + place.column + c * kPart;
      *reinterpret_cast<LoosePart*>(out) = sum[p][c] > 0.0f ? sum[p][c] : slope * sum[p][c];
    }
  }
}

// Some registers of channels of `pixels` pixels of some rows, in tiles of `count`; the last one begins earlier, so that
// it is full.
template <int64_t kRows, int64_t kCount, int64_t kColumns>
void tiles_of(const ConvPreluArgs& args, const Place& place, int64_t count, int64_t pixels) {
  if constexpr (kCount > 1) {
    if (count < kCount) return tiles_of<kRows, kCount - 1, kColumns>(args, place, count, pixels);
  }
  for (int64_t p = 0; p < pixels; p += kCount) {
    const int64_t first = smaller(p, pixels - kCount);
    const Place at = {place.x + first * args.taken, place.out + first * args.padded, place.column, place.line};
    tile<kRows, kCount, kColumns>(args, at);
  }
}

template <int64_t kRows, int64_t kColumns>
void columns_of(const ConvPreluArgs& args, Place place, int64_t part, int64_t pixels) {
  constexpr int64_t kWidest = kMost[kColumns - 1] / kRows;
  const int64_t tiles = (pixels + kWidest - 1) / kWidest;
  place.column = part * kPart;
  tiles_of<kRows, kWidest, kColumns>(args, place, (pixels + tiles - 1) / tiles, pixels);
}

// Rows of prelu(bias + x * weights), (rows, pixels, padded).
template <int64_t kRows>
void rows_of(const ConvPreluArgs& args, const float* x, int64_t pixels, float* out) {
  const Place place = {x, out, 0, pixels * args.padded};
  const int64_t parts = args.padded / kPart;
  int64_t part = 0;
  if constexpr (kMostColumns == 3)
    for (; parts - part == 3 || parts - part > 4; part += 3) columns_of<kRows, kMostColumns>(args, place, part, pixels);
  for (; parts - part >= 2; part += 2) columns_of<kRows, 2>(args, place, part, pixels);
  if (part < parts) columns_of<kRows, 1>(args, place, part, pixels);
}

// A NaN stays one.
Part larger(Part a, Part b) { return (a < b) | (b != b) ? b : a; }

Part read(const float* from) { return *reinterpret_cast<const LoosePart*>(from); }

// The maxima of neighbours of one row: (wide, padded) of (pixels, padded).
void pool_row(const ConvPreluArgs& args, const float* x, int64_t pixels, float* out) {
  for (int64_t i = 0; i < args.wide; ++i) {
    const float* pixel = x + 2 * i * args.padded;
    const int64_t left = smaller(args.pool, pixels - 2 * i) - 1;
    for (int64_t c = 0; c < args.padded; c += kPart) {
      Part most = read(pixel + c);
      if (left > 0) most = larger(most, read(pixel + args.padded + c));
      if (left > 1) most = larger(most, read(pixel + 2 * args.padded + c));
      *reinterpret_cast<LoosePart*>(out + i * args.padded + c) = most;
    }
  }
}

// The maxima of `count` rows, (wide, channels) of (wide, padded). Whole registers are written, over the next pixel where
// the channels fill none; that one is written next.
void give(const ConvPreluArgs& args, const float* const (&rows)[3], int64_t count, float* out) {
  const int64_t size = args.wide * args.channels;
  for (int64_t i = 0; i < args.wide; ++i) {
    for (int64_t c = 0; c < args.channels; c += kPart) {
      Part most = read(rows[0] + i * args.padded + c);
      for (int64_t r = 1; r < count; ++r) most = larger(most, read(rows[r] + i * args.padded + c));
      const int64_t at = i * args.channels + c;
      if (at + kPart <= size) {
        *reinterpret_cast<LoosePart*>(out + at) = most;
      } else {
        for (int64_t k = 0; k < smaller(kPart, args.channels - c); ++k) out[at + k] = most[k];
      }
    }
  }
}

}  // namespace

void conv_prelu_task(const ConvPreluArgs& args, int64_t task) {
  const int64_t bands = (args.tall + kConvRows - 1) / kConvRows;
  const int64_t first = task % bands * kConvRows;
  const int64_t last = smaller(args.tall, first + kConvRows);
  const int64_t pixels = args.width - args.side + 1;
  const int64_t line = args.width * args.taken;
  const float* x = args.x + task / bands * args.height * line;
  float* out = args.out + task / bands * args.tall * args.wide * args.channels;
  if (args.pool == 1 && args.channels == args.padded) {
    const int64_t made = args.wide * args.channels;
    int64_t r = first;
    if (pixels <= kMost[kMostColumns - 1] / kRowsTogether)
      for (; r + kRowsTogether <= last; r += kRowsTogether)
        rows_of<kRowsTogether>(args, x + r * line, pixels, out + r * made);
    for (; r < last; ++r) rows_of<1>(args, x + r * line, pixels, out + r * made);
    return;
  }
  // one row of the convolution, and as many pooled ones as a result is made of
  const auto pooled = [&](int64_t y) { return args.scratch + (pixels + y % args.pool * args.wide) * args.padded; };
  const int64_t step = args.pool == 1 ? 1 : 2;
  int64_t next = first * step;
  for (int64_t r = first; r < last; ++r) {
    const int64_t end = smaller(args.height - args.side + 1, r * step + args.pool);
    const float* rows[3] = {};
    for (; next < end; ++next) {
      rows_of<1>(args, x + next * line, pixels, args.pool == 1 ? pooled(next) : args.scratch);
      if (args.pool > 1) pool_row(args, args.scratch, pixels, pooled(next));
    }
    for (int64_t y = r * step; y < end; ++y) rows[y - r * step] = pooled(y);
    give(args, rows, end - r * step, out + r * args.wide * args.channels);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
