// Every operation on a CPU, from several threads at once and with several threads each: the results are those of one
// thread. For a sanitizer, which reports a race even where the result is right.
//
//   driver [LIBRARY]   with the small pool of the kernels, or on the threads of an OpenMP runtime (team.cpp)
//   driver --race      two threads that write one image: a sanitizer of threads has to report it
//   driver --leak      memory that nobody frees: a sanitizer of leaks has to
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <random>
#include <set>
#include <string_view>
#include <thread>

#include "common/momentum_step.h"
#include "common/relative_distances.h"
#include "cpu/isa.h"
#include "pybind11/pybind11.h"
#include "registration.h"

namespace {

using fastadv::Seen;
using pybind11::Value;
using pybind11::Values;
using Integers = Value::Integers;

constexpr int kThreads = 4;  // of a call
constexpr int kCallers = 3;  // at once
constexpr int64_t kChannels = 48, kPlane = 768, kSize = kChannels * kPlane;  // of an image; also read as (3, 12288)
constexpr int64_t kMost = 8, kOdd = 5;  // images: whole ones keep four threads busy, or do not
constexpr int64_t kClasses = 700;
constexpr int64_t kHidden = 80;

int64_t whole(const void* address) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(address)); }

std::vector<float> uniform(int64_t count, unsigned seed, float low) {
  std::mt19937 draw(seed);
  std::vector<float> made(static_cast<size_t>(count));
  for (float& each : made) each = low + static_cast<float>(draw() >> 8) * 0x1p-24f;
  return made;
}

// What all calls read.
struct Shared {
  std::vector<float> x = uniform(kMost * kSize, 1, 0.0f);
  std::vector<float> grad = uniform(kMost * kSize, 2, -0.5f);
  std::vector<float> positive = uniform(kMost * kSize, 3, 0.5f);
  std::vector<uint16_t> half;  // bfloat16
  std::vector<int64_t> labels;
  std::vector<int64_t> ids = {0, 1, 2, 3, 1 << 20, 5, 6, 7};

  Shared() {
    for (float each : grad) half.push_back(static_cast<uint16_t>(fastadv::to_bits(each) >> 16));
    for (int64_t i = 0; i < kMost * kSize; ++i) labels.push_back(i * 7919 % kClasses);
  }
};

// What one call writes: memory of its own, each piece to the byte.
class Written {
 public:
  template <class T>
  T* room(int64_t count) {
    pieces_.emplace_back(static_cast<size_t>(count) * sizeof(T));
    return reinterpret_cast<T*>(pieces_.back().data());
  }
  template <class T>
  T* copy(const std::vector<T>& from) {
    T* made = room<T>(static_cast<int64_t>(from.size()));
    std::memcpy(made, from.data(), from.size() * sizeof(T));
    return made;
  }
  size_t hash() const {
    size_t made = 0;
    for (const auto& each : pieces_) made = made * 31 + std::hash<std::string_view>()({each.data(), each.size()});
    return made;
  }

 private:
  std::deque<std::vector<char>> pieces_;
};

struct Case {
  std::string function;
  std::function<Values(Written&)> arguments;  // all but the number of threads and the instruction set

  size_t run(int threads, int isa) const {
    Written written;
    Values values = arguments(written);
    values.push_back(threads);
    values.push_back(isa);
    pybind11::functions().at(function)(values);
    return written.hash();
  }
};

class Cases {
 public:
  explicit Cases(const Shared& shared) : s(shared) {
    steps();
    random();
    dropout();
    add("cpu_box_blur", [this](Written& w) {
      return Values{s.x.data(), w.room<float>(kOdd * kSize), 0, kOdd * kChannels, 24, 32, 1};
    });
    face_windows();
    add("cpu_all_within", [this](Written&) { return Values{s.x.data(), kOdd * kSize, -10.0, 10.0}; });
    add("cpu_knn_score", [this](Written& w) {
      constexpr int64_t rows = 1000, neighbours = 203;
      return Values{s.positive.data(), neighbours, s.labels.data(), neighbours, s.labels.data(), w.room<float>(rows),
                    rows, neighbours, 2};
    });
    add("cpu_average_pool", [this](Written& w) {
      return Values{maps(), 0, w.room<float>(kMost * kRow), kMost, kRow};
    });
    for (int metric : {0, 1}) distances(metric);
    prepared(false, false, false);
    prepared(false, true, false);
    for (bool claimed : {false, true}) prepared(true, true, claimed);
  }

  void face_windows() {
    add("cpu_summed_area", [this](Written& w) { return Values{s.x.data(), w.room<int32_t>(4 * 21 * 31), 20, 30}; });
    add("cpu_area_means", [this](Written& w) {
      auto* windows = w.room<int64_t>(6 * 64);
      for (int64_t n = 0; n < 64; ++n) {
        const int64_t window[6] = {0, 31, n % 8, n % 5, 30 - n % 7, 20 - n % 3};
        std::copy_n(window, 6, windows + 6 * n);
      }
      return Values{s.x.data(), windows, w.room<float>(64 * 40 * 40 * 3), 21 * 31, 64, 40, 40, 0, 40};
    });
    // pooled, with channels that fill no register, narrow, and as a matrix
    add("cpu_conv_prelu", [this](Written& w) {
      const int64_t numbers = whole(s.positive.data());
      const Integers layers = {numbers, 28, 3, 3, numbers, 48, 3, 3, numbers, 64, 2, 1, numbers, 128, 3, 1, numbers, 5, 1, 1};
      return Values{s.x.data(), w.room<float>(kOdd * 5), kOdd, 24, 24, 3, layers};
    });
    add("cpu_conv_prelu", [this](Written& w) {
      const Integers layers = {whole(s.positive.data()), 10, 3, 2};
      return Values{s.x.data(), w.room<float>(73 * 40 * 10), 1, 148, 82, 3, layers};
    });
  }

  const std::vector<Case>& all() const { return all_; }

 private:
  static constexpr int64_t kRow = 2 * kChannels;  // two layers

  void add(const char* function, std::function<Values(Written&)> arguments) {
    all_.push_back({function, std::move(arguments)});
  }

  void steps() {
    for (int64_t images : {kOdd, kMost}) {
      add("cpu_sign_step", [=](Written& w) {
        float* x = w.copy(s.x);
        return Values{x, s.half.data(), 1, s.x.data(), 0, 0.01, 0, 0.1, 0, w.room<int64_t>(2 * images), 0.0, 1.0,
                      images, kSize};
      });
      for (int step : {0, 1}) {
        add("cpu_momentum_step", [=](Written& w) {
          float* x = w.copy(s.x);
          const int64_t needed = 2 * images * fastadv::partition(kSize, 1 << 14).chunks;
          return Values{x, s.grad.data(), 0, s.x.data(), w.room<float>(images * kSize), 0, 0.01, 0, 0.1, 0.9, 0, step,
                        0, w.room<int64_t>(2 * images), w.room<double>(needed), needed, 0.0, 1.0, images, kSize};
        });
      }
    }
  }

  // ids, seed, tick and layer
  Values with_key(Values begin, Values end) const {
    const Values key = {s.ids.data(), 0, 11, 0, 3, 0, 2};
    begin.insert(begin.end(), key.begin(), key.end());
    begin.insert(begin.end(), end.begin(), end.end());
    return begin;
  }

  void random() {
    add("cpu_philox_uniform",
        [this](Written& w) { return with_key({w.room<float>(kOdd * kSize)}, {kOdd, kSize}); });
    for (int kind : {0, 1}) {
      for (int last : {0, 1}) {
        add("cpu_add_noise", [=](Written& w) {
          return with_key({w.room<float>(kOdd * kSize), s.x.data(), 0, 0.1, 0.0, 1.0, kind},
                          {kOdd, kChannels, kPlane, last});
        });
      }
    }
  }

  void dropout() {
    for (int last : {0, 1}) {
      add("cpu_feature_dropout", [=](Written& w) {
        return with_key({s.x.data(), w.room<float>(kOdd * kSize), 0}, {1 << 13, 1.25, kOdd, kChannels, kPlane, last});
      });
      for (bool backward : {false, true}) {
        add("cpu_feature_dropout_bn_prelu", [=](Written& w) {
          return with_key({s.half.data(), backward ? s.half.data() : nullptr, w.room<uint16_t>(kOdd * kSize), 1},
                          {1 << 13, 1.0, s.positive.data(), s.grad.data(), s.positive.data(), 0.0, 1, std::nan(""), 0,
                           0, kOdd, kChannels, kPlane, last});
        });
      }
    }
  }

  // One memory read as contiguous and as channels-last maps.
  Integers maps() const {
    return {whole(s.x.data()), kChannels, kPlane, kSize, kPlane, 1, whole(s.x.data()), kChannels, kPlane, kSize, 1,
            kChannels};
  }

  // Two layers of `row` channels, the first of `width`.
  Integers layers(const float* features, int64_t width, int64_t row) const {
    return {whole(features),         whole(s.grad.data()),     width,       row, width,
            whole(features + width), whole(s.positive.data()), row - width, row, row - width};
  }

  static Value scales(Written& w, int metric) {
    return metric == 0 ? Value(0) : Value(w.room<float>(2 * (kClasses + kMost)));
  }

  // own, choose, seen
  Values reading(Written& w, bool choose) const {
    int64_t* own = w.room<int64_t>(kMost);
    if (!choose) std::copy_n(s.labels.begin(), kMost, own);
    return {own, choose, w.room<Seen>(2 * fastadv::reading_parts(kClasses).parts * kMost)};
  }

  static Values joined(Values begin, const Values& middle, const Values& end) {
    begin.insert(begin.end(), middle.begin(), middle.end());
    begin.insert(begin.end(), end.begin(), end.end());
    return begin;
  }

  void distances(int metric) {
    constexpr int64_t width = 160, row = 227, found = 2 * kMost * kClasses;
    const auto given = [=] { return layers(s.x.data(), width, row); };
    add("cpu_centroid_distances", [=](Written& w) {
      return Values{given(), metric, scales(w, metric), w.room<float>(found), kMost, kClasses};
    });
    add("cpu_centroid_distances_backward", [=](Written& w) {
      return Values{given(), metric, scales(w, metric), s.grad.data(), s.positive.data(), w.room<float>(kMost * row),
                    kMost, kClasses, row};
    });
    add("cpu_pooled_centroid_distances", [=](Written& w) {
      const float* pooled = w.room<float>(kMost * kRow);
      return Values{maps(), 0, pooled, kRow, layers(pooled, kChannels, kRow), metric, scales(w, metric),
                    w.room<float>(found), kMost, kClasses};
    });
    for (bool choose : {false, true}) {
      const auto read = [](Written& w) { return w.room<float>(2 * kMost * fastadv::kReading); };
      add("cpu_relative_distances", [=](Written& w) {
        return joined({given(), metric, scales(w, metric)}, reading(w, choose), {read(w), kMost, kClasses});
      });
      add("cpu_pooled_relative_distances", [=](Written& w) {
        const float* pooled = w.room<float>(kMost * kRow);
        return joined({maps(), 0, pooled, kRow, layers(pooled, kChannels, kRow), metric, scales(w, metric)},
                      reading(w, choose), {read(w), kMost, kClasses});
      });
    }
  }

  // Distances by one metric or both, to the nearest class or given ones, and a perceptron or an LSTM.
  void prepared(bool relative, bool both, bool claimed) {
    const Integers centroids = {whole(s.grad.data()),     kChannels, kChannels,
                                whole(s.positive.data()), kChannels, kChannels};
    const Integers parameters = {whole(s.grad.data()),     whole(s.positive.data()), whole(s.grad.data()),
                                 whole(s.grad.data()),     whole(s.grad.data()),     whole(s.grad.data())};
    const Integers metrics = both ? Integers{0, 1} : Integers{1};
    const Values sizes = {metrics, kClasses, relative, both ? 1 : 2, kHidden};
    const Value made = pybind11::functions().at("PreparedScore")(joined({centroids}, sizes, {parameters, 0.5}));
    const int64_t scratch = pybind11::functions().at("PreparedScore.scratch")({made, kMost}).as<int64_t>();
    add("PreparedScore.run", [=](Written& w) {
      const Integers each = maps();
      Integers layouts, addresses;
      for (size_t i = 0; i < each.size(); i += 6) {
        layouts.push_back(0);
        layouts.insert(layouts.end(), each.begin() + static_cast<int64_t>(i) + 1,
                       each.begin() + static_cast<int64_t>(i) + 6);
        addresses.push_back(each[i]);
      }
      if (!claimed) {  // an image is asked whether it is finite
        layouts.insert(layouts.end(), {0, 3, kSize / 3, kSize, kSize / 3, 1});
        addresses.push_back(whole(s.x.data()));
      }
      int64_t* own = claimed ? w.room<int64_t>(2 * kMost) : nullptr;
      for (int64_t m = 0; claimed && m < 2; ++m) std::copy_n(s.labels.begin(), kMost, own + m * kMost);
      return Values{made,          w.copy(layouts), addresses, w.room<float>(kMost + scratch), own,
                    w.room<uint8_t>(kMost), 0.5, kMost};
    });
  }

  const Shared& s;
  std::vector<Case> all_;
};

void at_once(int callers, const std::function<void(int)>& work) {
  std::atomic<int> missing{callers};
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      --missing;
      while (missing.load() > 0) std::this_thread::yield();
      work(caller);
    });
  }
  for (std::thread& each : threads) each.join();
}

int race(const Shared& s) {
  std::vector<float> x = s.x;
  at_once(2, [&](int) {
    const Values values = {x.data(), s.grad.data(), 0, s.x.data(), 0, 0.01, 0, 0.1, 0, 0, 0.0, 1.0, 1, kSize, 1, 0};
    pybind11::functions().at("cpu_sign_step")(values);
  });
  return 0;
}

int leak() {
  at_once(1, [](int) {
    int* volatile lost = new int[1000];
    lost[0] = 1;
  });
  return 0;
}

int check(const Cases& cases, bool with_runtime) {
  const std::vector<Case>& all = cases.all();
  std::set<std::string> left;
  for (const auto& each : pybind11::functions()) left.insert(each.first.substr(0, each.first.find('.')));
  const size_t operations = left.size();
  for (const Case& each : all) left.erase(each.function.substr(0, each.function.find('.')));
  for (const std::string& each : left) std::fprintf(stderr, "%s: expected a case here, got none\n", each.c_str());

  // First of all, so that the first calls of the process come at once: in one round all callers begin with the same
  // operation, in the other each with one of its own.
  const size_t isas = fastadv::cpu::available_isas().size();
  const size_t count = all.size() * isas;
  std::vector<std::vector<size_t>> found(kCallers, std::vector<size_t>(2 * count));
  at_once(kCallers, [&](int caller) {
    const size_t shift = count / kCallers * static_cast<size_t>(caller);
    for (size_t i = 0; i < 2 * count; ++i) {
      const size_t k = i < count ? i : (i + shift) % count;
      found[static_cast<size_t>(caller)][i < count ? k : count + k] =
          all[k / isas].run(kThreads, static_cast<int>(k % isas));
    }
  });
  int wrong = static_cast<int>(left.size());
  for (size_t k = 0; k < count; ++k) {
    const Case& each = all[k / isas];
    const int isa = static_cast<int>(k % isas);
    const size_t alone = each.run(1, isa);
    bool same = each.run(kThreads, isa) == alone;
    for (const auto& caller : found) same = same && caller[k] == alone && caller[count + k] == alone;
    if (!same) std::fprintf(stderr, "%s: expected the bits of one thread, got others\n", each.function.c_str());
    wrong += same ? 0 : 1;
  }
  std::printf("{\"operations\": %zu, \"cases\": %zu, \"instruction_sets\": %zu, \"callers\": %d, \"threads\": %d, "
              "\"calls\": %zu, \"runtime\": \"%s\"}\n",
              operations, all.size(), isas, kCallers, kThreads, count * (2 * kCallers + 2),
              with_runtime ? "OpenMP" : "pool");
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  const std::string given = count > 1 ? words[1] : "";
  pybind11::module_ m;
  fastadv::Registration::add_all(m);
  const Shared shared;
  if (given == "--race") return race(shared);
  if (given == "--leak") return leak();
  if (!given.empty() && dlopen(given.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {  // as torch brings its runtime
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  return check(Cases(shared), !given.empty());
}
