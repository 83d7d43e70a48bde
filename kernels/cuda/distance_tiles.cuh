// The distances of a rectangle of features and centroids, by a warp or by a block, for every kernel that reads them.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/distances.cuh"

namespace fastadv::cuda {
namespace {

// Where the distance of feature n and centroid k is put, that of a row and a column of a rectangle: in the result,
// whose addresses are made when they are wanted and take no registers before, or in shared memory.
struct InResult {
  __device__ __forceinline__ float* at(const DistanceArgs& args, int index, int64_t n, int64_t k, int, int) const {
    return args.out + distance_row(args, n, index) + k;
  }
  __device__ __forceinline__ InResult moved(int, int) const { return {}; }
  __device__ __forceinline__ int layer(int index) const { return index; }
  __device__ __forceinline__ int64_t image(int64_t n0) const { return n0; }
};

template <int kStride>  // between rows
struct InShared {
  float* first;

  __device__ __forceinline__ float* at(const DistanceArgs&, int, int64_t, int64_t, int row, int column) const {
    return first + row * kStride + column;
  }
  __device__ __forceinline__ InShared moved(int row, int column) const { return {first + row * kStride + column}; }
};

// The same where layer and first image lie in shared memory too, to be read again behind the sums.
template <int kStride>
struct InTile : InShared<kStride> {
  const volatile int* index;
  const volatile int* n0;

  __device__ __forceinline__ int layer(int) const { return *index; }
  __device__ __forceinline__ int64_t image(int64_t) const { return *n0; }
};

// The warp's sums of kHeld numbers of each lane, with the bits of warp_sum and fewer shuffles: at every step a lane
// keeps half of its numbers and hands over the others. Lane l ends with the sums of the numbers from l * kHeld / 32 on.
template <int kStep, int kHeld, int kCount>
__device__ __forceinline__ void fold_lanes(float (&value)[kCount], int lane) {
  if constexpr (kStep > 0) {
    if constexpr (kHeld > 1) {
      const bool upper = (lane & kStep) != 0;
#pragma unroll
      for (int j = 0; j < kHeld / 2; ++j) {
        const float given = upper ? value[j] : value[j + kHeld / 2];
        const float kept = upper ? value[j + kHeld / 2] : value[j];
        value[j] = kept + __shfl_xor_sync(kAll, given, kStep);
      }
    } else {
      value[0] += __shfl_xor_sync(kAll, value[0], kStep);
    }
    fold_lanes<kStep / 2, (kHeld + 1) / 2>(value, lane);
  }
}

// Of the distances of a warp those that are marked. Behind the loops of the kernel, whose registers it may have.
template <bool kCosine, int kRows, int kColumns, class Place>
__device__ __forceinline__ void measure_again(const DistanceArgs& args, int index, int64_t n0, int64_t k0, int lane,
                                              Place place) {
  const DistanceLayer& layer = args.layer[index];
#pragma unroll 1
  for (int pair = 0; pair < kRows * kColumns; ++pair) {
    const int64_t n = n0 + pair / kColumns;
    const int64_t k = k0 + pair % kColumns;
    if (n >= args.images || k >= args.centroids) continue;
    float* out = place.at(args, index, n, k, pair / kColumns, pair % kColumns);
    if (*out != kMeasureAgain) continue;
    const float* feature = layer.features + n * layer.feature_stride;
    const float* centroid = layer.centroids + k * layer.centroid_stride;
    float f_scale = 1.0f;
    float c_scale = 1.0f;
    double f = 1.0;
    double c = 1.0;
    if constexpr (kCosine) {
      f_scale = feature_scales(args, index)[n];
      c_scale = centroid_scales(args, index)[k];
      f = wide_inverse_norm(feature, layer.channels, f_scale, lane);
      c = wide_inverse_norm(centroid, layer.channels, c_scale, lane);
    }
    const double squares = warp_sum(wide_difference(feature, f, centroid, c, layer.channels, lane, 32));
    __syncwarp();  // all of the warp have read the mark
    if (lane == 0) *out = kCosine ? finish_cosine(squares, f_scale, c_scale) : finish_l2(squares);
  }
}

// From squares to distances, those of a warp: kRows features from n0 on, kColumns centroids from k0 on, `squares` as
// fold_lanes leaves them. Past the end nothing is written.
template <bool kCosine, int kRows, int kColumns, class Place>
__device__ __forceinline__ void finish(const DistanceArgs& args, int index, int64_t n0, int64_t k0, int lane,
                                       const float* squares, Place place) {
  constexpr int kEach = kRows * kColumns < 32 ? 1 : kRows * kColumns / 32;  // sums of a lane
  constexpr int kSame = 32 * kEach / (kRows * kColumns);                    // lanes that hold the same
  bool lost = false;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int pair = lane / kSame * kEach + j;
    const int64_t n = n0 + pair / kColumns;
    const int64_t k = k0 + pair % kColumns;
    if (lane % kSame != 0 || n >= args.images || k >= args.centroids) continue;
    float distance = kMeasureAgain;
    if constexpr (kCosine) {
      const float f_scale = feature_scales(args, index)[n];
      const float c_scale = centroid_scales(args, index)[k];
      if (!(f_scale < 0.0f || c_scale < 0.0f))
        distance = finish_cosine(static_cast<double>(squares[j]), f_scale, c_scale);
    } else if (!lost_digits(static_cast<double>(squares[j]))) {
      distance = sqrtf(squares[j]);
    }
    lost |= distance == kMeasureAgain;
    *place.at(args, index, n, k, pair / kColumns, pair % kColumns) = distance;
  }
  if (!__any_sync(kAll, lost)) return;
  __syncwarp();  // the marks are written
  measure_again<kCosine, kRows, kColumns>(args, index, n0, k0, lane, place);
}

// For few images: a warp has kRows features from n0 on and kColumns centroids from k0 on. Those past the end repeat the
// last one and are not written.
template <bool kCosine, int kWidth, int kRows, int kColumns, class Place>
__device__ __forceinline__ void few_distances(const DistanceArgs& args, int index, int64_t n0, int64_t k0, int lane,
                                              Place place) {
  const DistanceLayer& layer = args.layer[index];
  const float* feature[kRows];
  const float* centroid[kColumns];
  [[maybe_unused]] float f_scale[kRows];
  [[maybe_unused]] float c_scale[kColumns];
  float sum[kRows * kColumns] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t n = n0 + r < args.images ? n0 + r : args.images - 1;
    feature[r] = layer.features + n * layer.feature_stride;
    if constexpr (kCosine) f_scale[r] = feature_scales(args, index)[n];
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int64_t k = k0 + c < args.centroids ? k0 + c : args.centroids - 1;
    centroid[c] = layer.centroids + k * layer.centroid_stride;
    if constexpr (kCosine) c_scale[c] = centroid_scales(args, index)[k];
  }
#pragma unroll 1
  for (int64_t i = int64_t{lane} * kWidth; i < layer.channels; i += 32 * kWidth) {
    Pack<float, kWidth> c[kColumns];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      c[k] = load<float, kWidth>(centroid[k] + i);
      if constexpr (kCosine)
        for (int j = 0; j < kWidth; ++j) c[k].item[j] *= c_scale[k];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      auto f = load<float, kWidth>(feature[r] + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if constexpr (kCosine) f.item[j] *= f_scale[r];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          float& into = sum[r * kColumns + k];
          into = add_square(into, f.item[j] - c[k].item[j]);
        }
      }
    }
  }
  fold_lanes<16, kRows * kColumns>(sum, lane);
  finish<kCosine, kRows, kColumns>(args, index, n0, k0, lane, sum, place);
}

constexpr int kRows = 4;  // of a block that way, and of each of its warps
constexpr int kColumns = 2;
constexpr int kCentroids = kColumns * kWarps;

// For many images: a block has kTile features by kTile centroids; kSlab of their channels at a time come into shared
// memory, the next ones while each warp works on its kPatch by kPatch. A lane adds up the same channels as above: the
// same bits.
constexpr int kTile = 32;
constexpr int kPatch = 8;
constexpr int kPatches = kTile / kPatch;
constexpr int kTileThreads = 32 * kPatches * kPatches;
constexpr int kSlab = 128;
constexpr int kVectors = 2 * kTile;                       // of a stage: features, then centroids
constexpr int kFetched = kVectors / (kTileThreads / 32);  // of a warp
constexpr int kTileMemory = 2 * kVectors * kSlab * static_cast<int>(sizeof(float));  // two stages
constexpr int64_t kFew = 8;

template <bool kCosine, class Place>
__device__ __forceinline__ void tile_distances(const DistanceArgs& args, int index, int64_t n0, int64_t k0,
                                               Place place) {
  extern __shared__ float4 memory[];
  // The four channels of lane l as two pairs, in [0][l] and [1][l]: half the registers, and no bank is asked twice.
  using Pair = Pack<float, 2>;
  auto* stages = reinterpret_cast<Pair(*)[kVectors][2][32]>(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row = warp / kPatches * kPatch;
  const int column = warp % kPatches * kPatch;
  const DistanceLayer& layer = args.layer[index];
  // The vectors that this warp fetches: features, or centroids; past the end the last one.
  const bool features = warp * kFetched < kTile;
  const int64_t stride = features ? layer.feature_stride : layer.centroid_stride;
  const int64_t last = (features ? args.images : args.centroids) - 1;
  const int64_t wanted = features ? n0 + warp * kFetched : k0 + warp * kFetched - kTile;
  const int64_t begin = wanted < last ? wanted : last;
  const float* base = (features ? layer.features : layer.centroids) + begin * stride;
  const int end = static_cast<int>(last - begin < kFetched ? last - begin : kFetched);
  const auto nth = [&](int j) { return j < end ? j : end; };
  const auto fetched = [&](int stage, int j, int half) -> Pair& {  // by this lane: its neighbours fetch the next ones
    return stages[stage][warp * kFetched + j][lane % 2][lane / 2 + 16 * half];
  };
  const int channels = static_cast<int>(layer.channels);  // no vector is longer
  const auto fetch = [&](int stage, int first) {
#pragma unroll 1
    for (int j = 0; j < kFetched; ++j) {  // rolled, since the sums need the registers
      const float* vector = base + nth(j) * stride;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = first + 64 * half + 2 * lane;
        const size_t missing = i < channels ? 0 : sizeof(Pair);  // zeros, which add nothing
        __pipeline_memcpy_async(&fetched(stage, j, half), vector + (missing ? 0 : i), sizeof(Pair), missing);
      }
    }
    __pipeline_commit();
  };
  float sum[kPatch * kPatch] = {};
  int stage = 0;
  fetch(stage, 0);
  for (int i = 0; i < channels; i += kSlab, stage = 1 - stage) {
    if (i + kSlab < channels) {
      fetch(1 - stage, i + kSlab);
      __pipeline_wait_prior(1);
    } else {
      __pipeline_wait_prior(0);
    }
    if constexpr (kCosine) {
      const float* scales = (features ? feature_scales(args, index) : centroid_scales(args, index)) + begin;
#pragma unroll 1
      for (int j = 0; j < kFetched; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) fetched(stage, j, k / 2).item[k % 2] *= scales[nth(j)];
      }
    }
    __syncthreads();  // the stage is complete
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      Pair c[kPatch];
#pragma unroll
      for (int k = 0; k < kPatch; ++k) c[k] = stages[stage][kTile + column + k][half][lane];
#pragma unroll
      for (int r = 0; r < kPatch; ++r) {
        const Pair f = stages[stage][row + r][half][lane];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int k = 0; k < kPatch; ++k) {
            float& into = sum[r * kPatch + k];
            into = add_square(into, f.item[j] - c[k].item[j]);
          }
        }
      }
    }
    __syncthreads();  // the stage has been read
  }
  fold_lanes<16, kPatch * kPatch>(sum, lane);
  finish<kCosine, kPatch, kPatch>(args, place.layer(index), place.image(n0) + row, k0 + column, lane, sum,
                                   place.moved(row, column));
}

inline bool wide_rows(const DistanceArgs& args) {
  for (int i = 0; i < args.layers; ++i) {
    const DistanceLayer& layer = args.layer[i];
    if (!aligned(layer.features) || !aligned(layer.centroids)) return false;
    if (layer.channels % 4 != 0 || layer.feature_stride % 4 != 0 || layer.centroid_stride % 4 != 0) return false;
  }
  return true;
}

}  // namespace
}  // namespace fastadv::cuda
