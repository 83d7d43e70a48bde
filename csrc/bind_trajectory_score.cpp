#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "layers.h"
#include "pointers.h"
#include "registration.h"

// pooled_centroid_distances or pooled_relative_distances and a detector's network in one call, for the latency of a
// guard on a CPU.
namespace fastadv {
namespace {

// What stays the same from call to call, and where its results go.
struct PreparedScore {
  Integers centroids;        // centroids, channels, stride of a centroid, for every layer
  Integers metrics;          // the network reads a layer's numbers by each of them, side by side
  int64_t templates;         // centroids of a layer
  bool relative;             // the network reads the distances relative to a class
  int64_t channels = 0;      // of all layers
  TrajectoryScoreArgs network = {};
  std::vector<float> norms;  // cosine: (layers, templates), what the operations make of the centroids again and again

  // `parameters`: addresses of mean, scale, first, bias, recurrent, last.
  PreparedScore(Integers layers, Integers by, int64_t classes, bool relative_reading, int kind, int64_t hidden,
                const std::array<Address, 6>& parameters, float last_bias)
      : centroids(std::move(layers)), metrics(std::move(by)), templates(classes), relative(relative_reading) {
    if (centroids.empty() || centroids.size() % 3 != 0) throw std::invalid_argument("layers are not described");
    if (metrics.empty()) throw std::invalid_argument("metrics are missing");
    for (size_t i = 0; i < centroids.size(); i += 3) channels += centroids[i + 1];
    network.mean = pointer<const float>(parameters[0]);
    network.scale = pointer<const float>(parameters[1]);
    network.first = pointer<const float>(parameters[2]);
    network.bias = pointer<const float>(parameters[3]);
    network.recurrent = pointer<const float>(parameters[4]);
    network.last = pointer<const float>(parameters[5]);
    network.last_bias = last_bias;
    network.layers = static_cast<int64_t>(centroids.size() / 3);
    network.classes = static_cast<int64_t>(metrics.size()) * width();
    network.hidden = hidden;
    network.lanes = parts(hidden, 16) * 16;
    network.width = kind == kRecurrent ? 4 * network.lanes : network.lanes;
    network.row = channels + 3;
    network.kind = kind;
    if (!has_cosine()) return;
    norms.resize(static_cast<size_t>(network.layers * templates));
    scale(nullptr, norms.data(), 0, 0, templates, cpu::kBaseline);  // the same bits on every instruction set
  }

  // float32 numbers that a call needs beside its result
  int64_t scratch(int64_t images) const {
    const int64_t seen = relative ? images * (2 + 8 * network.layers * reading_parts(templates).parts) + 1 : 0;
    return scales_size(images) + apart_size(images) + seen +
           images * (network.row + network.layers * (network.classes + network.width) + 6 * network.lanes);
  }

  // `layouts`: of every map type, channels, positions, strides of image, channel and position; `addresses`: where the
  // maps are, and behind them the images where these may hold numbers that are not finite. `made`: the scores, then
  // scratch. `own`: of each metric and image, or 0 for the nearest class of the last layer. `flags`: where to write
  // whether each score is at or above `threshold`, or none; 0: nowhere.
  void run(Address layouts, const Integers& addresses, Address made, Address own, Address flags, double threshold,
           int64_t images, int threads, int isa) const {
    cpu::check_isa(isa);
    const auto layers = static_cast<size_t>(network.layers);
    const bool with_images = addresses.size() == layers + 1;
    if (!with_images && addresses.size() != layers) throw std::invalid_argument("maps are too few");
    const auto* layout = pointer<const int64_t>(layouts);
    Integers maps;
    for (size_t i = 0; i < addresses.size(); ++i, layout += 6) {
      maps.insert(maps.end(), {layout[0], addresses[i]});
      maps.insert(maps.end(), layout + 1, layout + 6);
    }
    pybind11::gil_scoped_release release;
    float* pooled = pointer<float>(made) + images;
    pool(maps, pooled, images, threads, isa);
    TrajectoryScoreArgs args = network;
    args.images = images;
    args.whole = with_images ? pooled + channels : nullptr;
    args.flags = pointer<uint8_t>(flags);
    args.threshold = static_cast<float>(threshold);
    args.values = pooled + images * args.row;
    args.projected = args.values + images * args.layers * args.classes;
    args.state = args.projected + images * args.layers * args.width;
    float* apart = args.state + images * 6 * args.lanes;
    float* scales = apart + apart_size(images);
    args.out = pointer<float>(made);
    if (metrics.size() == 1) {
      measure(static_cast<int>(metrics[0]), pooled, scales, args.values, own, images, threads, isa);
    } else {
      const int64_t rows = images * network.layers;
      for (size_t m = 0; m < metrics.size(); ++m) {
        float* out = apart + static_cast<int64_t>(m) * rows * width();
        const Address of = own == 0 ? 0 : own + 8 * static_cast<Address>(m) * static_cast<Address>(images);
        measure(static_cast<int>(metrics[m]), pooled, scales, out, of, images, threads, isa);
        for (int64_t row = 0; row < rows; ++row)
          std::copy_n(out + row * width(), width(),
                      args.values + row * args.classes + static_cast<int64_t>(m) * width());
      }
    }
    score(args, threads, isa);
  }

 private:
  // numbers of a layer by one metric
  int64_t width() const { return relative ? kReading : templates; }

  bool has_cosine() const { return std::find(metrics.begin(), metrics.end(), kMetricCosine) != metrics.end(); }

  int64_t scales_size(int64_t images) const { return has_cosine() ? network.layers * (templates + images) : 0; }

  // distances by one metric after the other, before they are put side by side
  int64_t apart_size(int64_t images) const {
    return metrics.size() > 1 ? images * network.layers * network.classes : 0;
  }

  // Maps of one type at a time, as the operation wants them.
  void pool(const Integers& maps, float* pooled, int64_t images, int threads, int isa) const {
    int64_t column = 0;
    for (size_t first = 0; first < maps.size();) {
      Integers same;
      const int64_t type = maps[first];
      const int64_t begin = column;
      for (; first < maps.size() && maps[first] == type; first += 7) {
        same.insert(same.end(), maps.begin() + static_cast<int64_t>(first) + 1,
                    maps.begin() + static_cast<int64_t>(first) + 7);
        column += maps[first + 2];
      }
      for_maps(same, static_cast<int>(type), pooled + begin, images, network.row,
               [&](PoolArgs& args) { cpu::average_pool(args, threads, isa); });
    }
  }

  // 1 / norm of the vectors [first, last) of every layer, its centroids and then its features.
  void scale(const float* pooled, float* scales, int64_t images, int64_t first, int64_t last, int isa) const {
    DistanceArgs args = distance_args(kMetricCosine, reinterpret_cast<Address>(scales), 0, images, templates);
    args.layers = 1;
    for (int64_t layer = 0; layer < network.layers; ++layer) {
      const int64_t* values = centroids.data() + 3 * layer;
      args.first_layer = layer;
      args.layer[0] = {pooled, pointer<const float>(static_cast<Address>(values[0])), values[1], network.row, values[2],
                       0, 1, 0};
      for (int64_t i = first; i < last; ++i) FASTADV_PICK(isa, centroid_scales_task)(args, i);
      if (pooled != nullptr) pooled += values[1];
    }
  }

  void measure(int metric, const float* pooled, float* scales, float* out, Address own, int64_t images, int threads,
               int isa) const {
    if (metric == kMetricCosine) {
      for (int64_t layer = 0; layer < network.layers; ++layer)
        std::copy_n(norms.data() + layer * templates, templates, scales + layer * (templates + images));
      scale(pooled, scales, images, templates, templates + images, isa);
    }
    Integers layers;
    for (size_t i = 0; i < centroids.size(); i += 3) {
      layers.insert(layers.end(), {static_cast<int64_t>(reinterpret_cast<Address>(pooled)), centroids[i],
                                   centroids[i + 1], network.row, centroids[i + 2]});
      pooled += centroids[i + 1];
    }
    const DistanceArgs common = distance_args(metric, reinterpret_cast<Address>(scales), reinterpret_cast<Address>(out),
                                              images, templates);
    if (!relative) {
      return for_distances(layers, common,
                           [&](DistanceArgs& args) { cpu::centroid_distances(args, threads, isa, true); });
    }
    const float* after = scales + scales_size(images);
    const Address chosen = (reinterpret_cast<Address>(after) + 7) / 8 * 8;
    const Address seen = chosen + 8 * static_cast<Address>(images);
    for_readings(layers, common, own == 0 ? chosen : own, own == 0, seen,
                 [&](RelativeArgs& args) { cpu::relative_distances(args, threads, isa, true); });
  }

  static void score(const TrajectoryScoreArgs& args, int threads, int isa) {
    const auto each = [&](int64_t tasks, int64_t products, auto task) {
      const int useful = products < cpu::kSerialElements ? 1 : threads;
      cpu::parallel(tasks, useful, [&](int64_t index) { task(args, index); });
    };
    const bool recurrent = args.kind == kRecurrent;
    const int64_t rows = args.images * args.layers;
    each(rows, rows * args.classes, FASTADV_PICK(isa, standardise_task));
    const int64_t groups = recurrent ? parts(rows, kScoreRows) : parts(args.images, kScoreRows) * args.layers;
    each(groups * parts(args.width, kScoreColumns), rows * args.classes * args.width, FASTADV_PICK(isa, project_task));
    each(parts(args.images, kScoreRows), rows * args.width * (recurrent ? args.hidden : 1),
         FASTADV_PICK(isa, score_task));
  }
};

}  // namespace

FASTADV_REGISTER(m) {
  pybind11::class_<PreparedScore>(m, "PreparedScore")
      .def(pybind11::init<Integers, Integers, int64_t, bool, int, int64_t, const std::array<Address, 6>&, float>())
      .def("scratch", &PreparedScore::scratch)
      .def("run", &PreparedScore::run);
}

}  // namespace fastadv
