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

// What a face detector computes beside its networks, for many small windows.
namespace fastadv {
namespace {

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

}  // namespace

FASTADV_REGISTER(m) {
  m.def("cpu_summed_area", &cpu_summed_area);
  m.def("cpu_area_means", &cpu_area_means);
}

}  // namespace fastadv
