// Lists of layers arrive from Python as one flat list of integers, so many for each layer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "common/average_pool.h"
#include "common/centroid_distances.h"
#include "common/relative_distances.h"
#include "pointers.h"

namespace fastadv {

using Integers = std::vector<int64_t>;

// Calls launch(args) for the layers, as many at a time as fit into the arguments of a kernel.
template <class Args, class Read, class Launch>
void for_layers(const Integers& values, size_t fields, const Args& common, Read read, Launch launch) {
  if (values.empty() || values.size() % fields != 0) throw std::invalid_argument("layers are not described completely");
  const size_t count = values.size() / fields;
  int64_t column = 0;
  for (size_t first = 0; first < count; first += kMaxLayers) {
    Args args = common;
    args.layers = static_cast<int>(std::min(count - first, static_cast<size_t>(kMaxLayers)));
    for (int i = 0; i < args.layers; ++i) {
      args.layer[i] = read(values.data() + (first + static_cast<size_t>(i)) * fields, column);
      column += args.layer[i].channels;
    }
    launch(args, static_cast<int64_t>(first));
  }
}

// map, channels, positions, strides of image, channel and position
template <class Launch>
void for_maps(const Integers& maps, int type, float* out, int64_t images, int64_t row, Launch launch) {
  PoolArgs common = {};
  common.out = out;
  common.images = images;
  common.row = row;
  common.type = type;
  const auto read = [type](const int64_t* v, int64_t column) {
    const auto map = pointer<const void>(static_cast<Address>(v[0]), type);
    return PoolLayer{map, v[1], v[2], v[3], v[4], v[5], column, 1, 0};
  };
  for_layers(maps, 6, common, read, [&](PoolArgs& args, int64_t) { launch(args); });
}

inline DistanceArgs distance_args(int metric, Address scales, Address out, int64_t images, int64_t centroids) {
  DistanceArgs args = {};
  args.metric = metric;
  args.scales = pointer<float>(scales);
  args.out = pointer<float>(out);
  args.images = images;
  args.centroids = centroids;
  return args;
}

// features, centroids, channels, stride of a feature, stride of a centroid; `layers` begin with number `first` of `all`
template <class Launch>
void for_distances(const Integers& layers, const DistanceArgs& common, int64_t first, int64_t all, Launch launch) {
  const auto read = [](const int64_t* v, int64_t column) {
    const auto features = pointer<const float>(static_cast<Address>(v[0]));
    const auto centroids = pointer<const float>(static_cast<Address>(v[1]));
    return DistanceLayer{features, centroids, v[2], v[3], v[4], column, 1, 0};
  };
  for_layers(layers, 5, common, read, [&](DistanceArgs& args, int64_t before) {
    args.first_layer = first + before;
    args.all_layers = all;
    launch(args);
  });
}

template <class Launch>
void for_distances(const Integers& layers, const DistanceArgs& common, Launch launch) {
  for_distances(layers, common, 0, static_cast<int64_t>(layers.size() / 5), launch);
}

// The same for distances relative to a class: where it is to be chosen, the last layer goes first.
template <class Launch>
void for_readings(const Integers& layers, const DistanceArgs& common, Address own, bool choose, Address seen,
                  Launch launch) {
  RelativeArgs args = {};
  args.seen = pointer<Seen>(seen);
  args.own = pointer<int64_t>(own);
  args.part = reading_parts(common.centroids).part;
  args.parts = reading_parts(common.centroids).parts;
  const auto one = [&](const DistanceArgs& distances) {
    args.distances = distances;
    launch(args);
  };
  const auto all = static_cast<int64_t>(layers.size() / 5);
  const auto last = layers.end() - std::min<std::ptrdiff_t>(layers.end() - layers.begin(), choose ? 5 : 0);
  if (choose) {
    args.choose = true;
    for_distances(Integers(last, layers.end()), common, all - 1, all, one);
    args.choose = false;
  }
  if (last != layers.begin()) for_distances(Integers(layers.begin(), last), common, 0, all, one);
}

namespace cpu {
void average_pool(PoolArgs& args, int threads, int isa);
int useful_threads(const DistanceArgs& args, int threads);
void scale_vectors(DistanceArgs& args, int threads, int isa);
// scaled: the inverse norms of the cosine distance are there already
void centroid_distances(DistanceArgs& args, int threads, int isa, bool scaled = false);
void relative_distances(RelativeArgs& args, int threads, int isa, bool scaled = false);
}  // namespace cpu

}  // namespace fastadv
