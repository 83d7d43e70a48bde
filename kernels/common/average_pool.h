// average_pool: the mean of every channel of several maps. What C++ and CUDA share.
#pragma once

#include "common/layers.h"

namespace fastadv {

// One map (N, C, H, W), its two spatial dimensions as one; strides in elements. stride_p == 1 (the positions of a
// channel lie together) or stride_c == 1 (the channels of a position do).
struct PoolLayer {
  const void* map;
  int64_t channels;
  int64_t positions;
  int64_t stride_n;
  int64_t stride_c;
  int64_t stride_p;
  int64_t column;      // where the layer's means begin in a row of the result
  int64_t tile;        // channels of one task
  int64_t first_task;
};

struct PoolArgs {
  PoolLayer layer[kMaxLayers];
  float* out;     // (images, row)
  int64_t images;
  int64_t row;    // channels of all layers
  int64_t tasks;
  int layers;
  int type;
};

struct PoolTask {
  int64_t image;
  int64_t first;  // channel
  int64_t count;  // of channels
};

static FASTADV_HD PoolTask pool_task(const PoolLayer& layer, int64_t task) {
  const int64_t tiles = parts(layer.channels, layer.tile);
  const int64_t local = task - layer.first_task;
  const int64_t image = local / tiles;
  const int64_t first = (local - image * tiles) * layer.tile;
  const int64_t left = layer.channels - first;
  return {image, first, left < layer.tile ? left : layer.tile};
}

// With one position every layout is both; channels that lie together are then the longer run.
static FASTADV_HD bool channels_together(const PoolLayer& layer) {
  return layer.stride_c == 1 && (layer.positions == 1 || layer.stride_p != 1);
}

static FASTADV_HD float mean_of(double sum, int64_t positions) {
  return static_cast<float>(sum / static_cast<double>(positions));
}

}  // namespace fastadv
