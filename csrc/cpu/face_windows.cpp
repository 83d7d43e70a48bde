// Compiled once per instruction set, see sign_step.cpp. Windows of pictures, channels last.
#include "cpu/face_windows.h"

#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

typedef uint32_t Pixel __attribute__((vector_size(16), aligned(4)));  // wraps as the sums do
typedef int32_t SignedPixel __attribute__((vector_size(16)));
typedef float Colours __attribute__((vector_size(16)));

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

}  // namespace fastadv::cpu::FASTADV_ISA
