// Compiled once per instruction set, see sign_step.cpp. Windows of pictures, and pooled activations, channels last.
#include "cpu/face_windows.h"

#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

typedef uint32_t Pixel __attribute__((vector_size(16), aligned(4)));  // wraps as the sums do
typedef int32_t SignedPixel __attribute__((vector_size(16)));
typedef float Colours __attribute__((vector_size(16)));

// A NaN stays one.
float larger(float a, float b) { return a < b || b != b ? b : a; }

// The maximum of what `rows` holds, unless this is the first row, and of prelu(x).
void take(const float* __restrict x, const float* __restrict slopes, int64_t numbers, bool first,
          float* __restrict rows) {
  if (first) {
    for (int64_t i = 0; i < numbers; ++i) rows[i] = x[i] > 0.0f ? x[i] : slopes[i] * x[i];
  } else {
    for (int64_t i = 0; i < numbers; ++i) {
      const float value = x[i] > 0.0f ? x[i] : slopes[i] * x[i];
      rows[i] = larger(rows[i], value);
    }
  }
}

// The maxima of two or three of `pixels` pixels, `count` times. Whole registers are written, over the next result where
// the channels fill none; that one is written next.
void give(const float* __restrict rows, int64_t pixels, int64_t size, int64_t channels, int64_t count,
          float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const float* __restrict pixel = rows + 2 * i * channels;
    float* __restrict into = out + i * channels;
    const int64_t left = smaller(size, pixels - 2 * i);
    const int64_t second = left > 1 ? channels : 0;
    const int64_t third = left > 2 ? 2 * channels : 0;
    int64_t c = 0;
    for (; c < channels && (c + kLanes <= channels || i + kLanes < count); c += kLanes)
      for (int64_t k = c; k < c + kLanes; ++k)
        into[k] = larger(larger(pixel[k], pixel[k + second]), pixel[k + third]);
    for (; c < channels; ++c) into[c] = larger(larger(pixel[c], pixel[c + second]), pixel[c + third]);
  }
}

}  // namespace

void summed_area_task(const SummedAreaArgs& args, int64_t) {
  const int64_t line = args.width + 1;
  for (int64_t i = 0; i < 4 * line; ++i) args.table[i] = 0;
  for (int64_t y = 0; y < args.height; ++y) {
    const uint8_t* pixel = args.picture + y * args.width * 3;
    const int32_t* above = args.table + 4 * y * line;
    int32_t* sums = args.table + 4 * (y + 1) * line;
    Pixel left = {};
    for (int c = 0; c < 4; ++c) sums[c] = 0;
    for (int64_t x = 1; x <= args.width; ++x, pixel += 3) {
      left += Pixel{pixel[0], pixel[1], pixel[2], 0};
      *reinterpret_cast<Pixel*>(sums + 4 * x) = left + *reinterpret_cast<const Pixel*>(above + 4 * x);
    }
  }
}

void area_means_task(const AreaMeansArgs& args, int64_t window) {
  const int64_t* place = args.windows + 6 * window;
  const int64_t stride = place[1];
  const int64_t top = place[3];
  const int64_t length = place[5] - top;
  const int32_t* __restrict before = args.before + window * args.width;
  const int32_t* __restrict behind = args.behind + window * args.width;
  const float* __restrict share = args.share + window * args.width;
  float* __restrict out = args.out + window * args.rows * args.width * 3;
  for (int64_t r = 0; r < args.rows; ++r) {
    const int64_t cell = args.first + r;
    const int64_t above = top + cell * length / args.height;
    const int64_t below = top + ((cell + 1) * length + args.height - 1) / args.height;
    const int32_t* upper = args.table + 4 * (place[0] + above * stride);
    const int32_t* lower = args.table + 4 * (place[0] + below * stride);
    const float part = 1.0f / static_cast<float>(below - above);
    for (int64_t i = 0; i < args.width; ++i) {
      const auto at = [&](const int32_t* row, int32_t column) {
        return *reinterpret_cast<const Pixel*>(row + 4 * static_cast<int64_t>(column));
      };
      const Pixel total = at(lower, behind[i]) - at(lower, before[i]) - at(upper, behind[i]) + at(upper, before[i]);
      const Colours mean = __builtin_convertvector((SignedPixel)total, Colours) * share[i] * part - 127.5f / 128.0f;
      float* pixel = out + (r * args.width + i) * 3;
      for (int c = 0; c < 3; ++c) pixel[c] = mean[c];
    }
  }
}

void prelu_task(const PreluArgs& args, int64_t task) {
  const int64_t first = task * kPreluPixels;
  const int64_t last = smaller(args.pixels, first + kPreluPixels);
  const float* __restrict slopes = args.slopes;
  for (int64_t i = first; i < last; ++i) {
    float* __restrict x = args.x + i * args.channels;
    for (int64_t c = 0; c < args.channels; ++c) x[c] = x[c] > 0.0f ? x[c] : slopes[c] * x[c];
  }
}

void prelu_max_pool_task(const PreluMaxPoolArgs& args, int64_t row) {
  const int64_t image = row / args.tall;
  const int64_t first = row % args.tall * 2;
  const int64_t count = smaller(args.size, args.height - first);
  const int64_t line = args.width * args.channels;
  const float* x = args.x + (image * args.height + first) * line;
  float* out = args.out + row * args.wide * args.channels;
  const int64_t together = pooled_together(args.channels);
  float rows[kPooled + kLanes] = {};
  for (int64_t begin = 0; begin < args.wide; begin += together) {
    const int64_t made = smaller(together, args.wide - begin);
    const int64_t pixels = smaller(2 * (made - 1) + args.size, args.width - 2 * begin);
    for (int64_t r = 0; r < count; ++r)
      take(x + r * line + 2 * begin * args.channels, args.slopes, pixels * args.channels, r == 0, rows);
    give(rows, pixels, args.size, args.channels, made, out + begin * args.channels);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
