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

// `windows`: (count, 6), as of AreaMeansArgs.
void cpu_area_means(Address table, Address windows, Address out, int64_t pixels, int64_t count, int64_t height,
                    int64_t width, int64_t first, int64_t rows, int threads, int isa) {
  cpu::check_isa(isa);
  const auto* places = pointer<const int64_t>(windows);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t* place = places + 6 * n;
    const int64_t* corner = place + 2;
    const bool ordered = 0 <= corner[0] && corner[0] < corner[2] && 0 <= corner[1] && corner[1] < corner[3];
    const bool begun = ordered && corner[2] < place[1] && 0 <= place[0] && place[0] < pixels;
    // the pixel that is read last, place[0] + corner[3] * place[1] + corner[2], without an overflow
    if (!begun || corner[2] >= pixels - place[0] || corner[3] > (pixels - 1 - place[0] - corner[2]) / place[1])
      throw std::invalid_argument("windows: expected rectangles inside of their pictures, got another at row " +
                                  std::to_string(n));
  }
  const auto task = FASTADV_PICK(isa, area_means_task);
  pybind11::gil_scoped_release release;
  const auto cells = static_cast<size_t>(count * width);
  std::vector<int32_t> columns(2 * cells);
  std::vector<float> shares(cells);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t left = places[6 * n + 2];
    const int64_t length = places[6 * n + 4] - left;
    for (int64_t i = 0; i < width; ++i) {
      const auto cell = static_cast<size_t>(n * width + i);
      const int64_t before = left + i * length / width;
      const int64_t behind = left + ((i + 1) * length + width - 1) / width;
      columns[cell] = static_cast<int32_t>(before);
      columns[cells + cell] = static_cast<int32_t>(behind);
      shares[cell] = 1.0f / static_cast<float>(128 * (behind - before));
    }
  }
  const AreaMeansArgs args = {pointer<const int32_t>(table), places, columns.data(), columns.data() + cells,
                              shares.data(), pointer<float>(out), height, width, first, rows};
  if (count * rows * width * 3 < cpu::kSerialElements) threads = 1;
  cpu::parallel(count, threads, [&](int64_t window) { task(args, window); });
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
  const auto task = FASTADV_PICK(isa, prelu_max_pool_task);
  const int64_t total = images * tall;
  if (images * height * width * channels < cpu::kSerialElements) threads = 1;
  pybind11::gil_scoped_release release;
  const auto* slope = pointer<const float>(slopes);
  std::vector<float> repeated(static_cast<size_t>(std::min(width, pooled_pixels(channels)) * channels), 1.0f);
  for (size_t i = 0; slope != nullptr && i < repeated.size(); ++i) repeated[i] = slope[i % static_cast<size_t>(channels)];
  const PreluMaxPoolArgs args = {pointer<const float>(x), repeated.data(), pointer<float>(out), height, width,
                                 channels, size, tall, wide};
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
