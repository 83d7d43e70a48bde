// Lists of layers arrive from Python as one flat list of integers, so many for each layer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "common/average_pool.h"
#include "common/centroid_distances.h"
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
  const auto read = [](const int64_t* v, int64_t column) {
    const auto map = pointer<const void>(static_cast<Address>(v[0]));
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

// features, centroids, channels, stride of a feature, stride of a centroid
template <class Launch>
void for_distances(const Integers& layers, const DistanceArgs& common, Launch launch) {
  const auto read = [](const int64_t* v, int64_t column) {
    const auto features = pointer<const float>(static_cast<Address>(v[0]));
    const auto centroids = pointer<const float>(static_cast<Address>(v[1]));
    return DistanceLayer{features, centroids, v[2], v[3], v[4], column, 1, 0};
  };
  for_layers(layers, 5, common, read, [&](DistanceArgs& args, int64_t first) {
    args.first_layer = first;
    args.all_layers = static_cast<int64_t>(layers.size() / 5);
    launch(args);
  });
}

namespace cpu {
void average_pool(PoolArgs& args, int threads, int isa);
void centroid_distances(DistanceArgs& args, int threads, int isa);
}  // namespace cpu

}  // namespace fastadv
