#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/face_windows.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "pointers.h"
#include "registration.h"

// What a face detector computes beside its convolutions, for many small windows: without these, more than half of the
// time on a CPU goes into some thirty small operations a batch.
namespace fastadv {
namespace {

constexpr int64_t kRowsTogether = 16;  // rows of results in a task

void cpu_summed_area(Address picture, Address table, int64_t height, int64_t width, int, int isa) {
  cpu::check_isa(isa);
  const SummedAreaArgs args = {pointer<const uint8_t>(picture), pointer<int32_t>(table), height, width};
  const auto task = FASTADV_PICK(isa, summed_area_task);
  pybind11::gil_scoped_release release;
  task(args, 0);
}

// `boxes`: (windows, 6) index of the first row of a picture's table, its stride, left, top, right, bottom.
void cpu_area_means(Address table, Address boxes, Address out, int64_t pixels, int64_t windows, int64_t height,
                    int64_t width, int64_t first, int64_t rows, int threads, int isa) {
  cpu::check_isa(isa);
  const auto* box = pointer<const int64_t>(boxes);
  for (int64_t n = 0; n < windows; ++n) {
    const int64_t* place = box + 6 * n;
    const int64_t* corner = place + 2;
    const bool ordered = 0 <= corner[0] && corner[0] < corner[2] && 0 <= corner[1] && corner[1] < corner[3];
    const bool begun = ordered && corner[2] < place[1] && 0 <= place[0] && place[0] < pixels;
    // the pixel that is read last, place[0] + corner[3] * place[1] + corner[2], without an overflow
    if (!begun || corner[2] >= pixels - place[0] || corner[3] > (pixels - 1 - place[0] - corner[2]) / place[1])
      throw std::invalid_argument("windows: expected rectangles inside of their pictures, got another at row " +
                                  std::to_string(n));
  }
  const auto task = FASTADV_PICK(isa, area_means_task);
  AreaMeansArgs args = {};
  args.table = pointer<const int32_t>(table);
  args.out = pointer<float>(out);
  args.height = height;
  args.first = first;
  args.rows = rows;
  args.width = width;
  pybind11::gil_scoped_release release;
  const auto cells = static_cast<size_t>(windows * width);
  std::vector<int64_t> corners(static_cast<size_t>(4 * windows));
  std::vector<int32_t> columns(2 * cells);
  std::vector<float> shares(cells);
  for (int64_t n = 0; n < windows; ++n) {
    const int64_t* window = box + 6 * n;
    const int64_t left = window[2];
    const int64_t length = window[4] - left;
    const int64_t corner[4] = {window[0], window[1], window[3], window[5]};
    for (size_t k = 0; k < 4; ++k) corners[static_cast<size_t>(4 * n) + k] = corner[k];
    for (int64_t i = 0; i < width; ++i) {
      const auto cell = static_cast<size_t>(n * width + i);
      const int64_t before = left + i * length / width;
      const int64_t behind = left + ((i + 1) * length + width - 1) / width;
      columns[cell] = static_cast<int32_t>(before);
      columns[cells + cell] = static_cast<int32_t>(behind);
      shares[cell] = 1.0f / static_cast<float>(128 * (behind - before));
    }
  }
  args.corners = corners.data();
  args.before = columns.data();
  args.behind = columns.data() + cells;
  args.share = shares.data();
  if (windows * rows * width * 3 < cpu::kSerialElements) threads = 1;
  cpu::parallel(windows, threads, [&](int64_t window) { task(args, window); });
}

void cpu_prelu(Address x, Address slopes, int64_t pixels, int64_t channels, int threads, int isa) {
  cpu::check_isa(isa);
  const PreluArgs args = {pointer<float>(x), pointer<const float>(slopes), pixels, channels};
  const auto task = FASTADV_PICK(isa, prelu_task);
  if (pixels * channels < cpu::kSerialElements) threads = 1;
  pybind11::gil_scoped_release release;
  cpu::parallel((pixels + kPreluPixels - 1) / kPreluPixels, threads, [&](int64_t index) { task(args, index); });
}

void cpu_prelu_max_pool(Address x, Address slopes, Address out, int64_t images, int64_t height, int64_t width,
                        int64_t channels, int64_t size, int64_t tall, int64_t wide, int threads, int isa) {
  cpu::check_isa(isa);
  PreluMaxPoolArgs args = {};
  args.x = pointer<const float>(x);
  args.out = pointer<float>(out);
  args.height = height;
  args.width = width;
  args.channels = channels;
  args.size = size;
  args.tall = tall;
  args.wide = wide;
  const auto task = FASTADV_PICK(isa, prelu_max_pool_task);
  const int64_t total = images * tall;
  if (images * height * width * channels < cpu::kSerialElements) threads = 1;
  pybind11::gil_scoped_release release;
  std::vector<float> repeated;
  if (const auto* slope = pointer<const float>(slopes); slope != nullptr) {
    const int64_t pixels = std::min(width, pooled_pixels(channels));
    repeated.reserve(static_cast<size_t>(pixels * channels));
    for (int64_t i = 0; i < pixels; ++i) repeated.insert(repeated.end(), slope, slope + channels);
    args.slopes = repeated.data();
  }
  cpu::parallel((total + kRowsTogether - 1) / kRowsTogether, threads, [&](int64_t index) {
    const int64_t end = (index + 1) * kRowsTogether;
    for (int64_t i = index * kRowsTogether; i < (end < total ? end : total); ++i) task(args, i);
  });
}

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_summed_area", &cpu_summed_area);
  m.def("cpu_area_means", &cpu_area_means);
  m.def("cpu_prelu", &cpu_prelu);
  m.def("cpu_prelu_max_pool", &cpu_prelu_max_pool);
}

}  // namespace fastadv
