// Compiled once per instruction set, see sign_step.cpp. The derivative of distances to centroids: a product of the
// weights (images, centroids) with the differences (centroids, channels), which are made in registers. Centroids whose
// weight is zero for every image of a group are passed over: of an attack on a gallery nearly all.
#include "common/centroid_distances.h"

#include "cpu/float_parts.h"
#include "cpu/kernels.h"
#include "cpu/sums.h"
#include "cpu/unroll.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int64_t kImages = kGradientImages;
constexpr int64_t kWidth = kGradientChannels;
constexpr int64_t kTerms = 64;  // centroids whose sum stays in float32

// How many images, and registers of channels, have their sums in registers at once.
#if defined(__AVX512F__)
constexpr int64_t kGroup = 4;
constexpr int64_t kColumns = 2;
#else
constexpr int64_t kGroup = 2;
constexpr int64_t kColumns = 2;
#endif

// sum + weight * difference, fused where the hardware does it.
inline Part add_product(Part sum, float weight, Part difference) {
#if defined(__AVX512F__)
  return (Part)_mm512_fmadd_ps(_mm512_set1_ps(weight), (__m512)difference, (__m512)sum);
#elif defined(__AVX2__)
  return (Part)_mm256_fmadd_ps(_mm256_set1_ps(weight), (__m256)difference, (__m256)sum);
#else
  return sum + weight * difference;
#endif
}

// A block of centroids: those that count for a group of images, with a weight for each of these.
struct Terms {
  int64_t count;
  const float* row[kTerms];
  float scale[kTerms];
  float weight[kTerms][kGroup];
};

// What a task works on: kImages images by kWidth channels, behind which there are zeros.
struct Tile {
  alignas(64) float unit[kImages][kWidth];
  alignas(64) double total[kImages][kWidth];
  alignas(64) float weight[kImages][kTerms];
  alignas(64) float padded[kTerms][kPart];  // the last channels of a block's centroids, where they fill no register
  double weighted[kImages][kLanes];         // cosine: sum_k w_k d_k, centroid k in lane k mod 16
};

// Adds sum_k w_k (f - c_k) for kG images and kC registers of channels to their totals.
template <bool kScaled, int64_t kG, int64_t kC>
void add_terms(const Terms& terms, int64_t offset, Tile& tile, int64_t image, int64_t channel) {
  Part unit[kG][kC];
  Part sum[kG][kC];
  FASTADV_UNROLL
  for (int64_t n = 0; n < kG; ++n) {
    FASTADV_UNROLL
    for (int64_t i = 0; i < kC; ++i) {
      unit[n][i] = *reinterpret_cast<const LoosePart*>(tile.unit[image + n] + channel + i * kPart);
      sum[n][i] = Part{};
    }
  }
  for (int64_t k = 0; k < terms.count; ++k) {
    const float* row = terms.row[k] + offset;
    FASTADV_UNROLL
    for (int64_t i = 0; i < kC; ++i) {
      Part centroid = *reinterpret_cast<const LoosePart*>(row + i * kPart);
      if (kScaled) centroid = centroid * terms.scale[k];
      FASTADV_UNROLL
      for (int64_t n = 0; n < kG; ++n) sum[n][i] = add_product(sum[n][i], terms.weight[k][n], unit[n][i] - centroid);
    }
  }
  FASTADV_UNROLL
  for (int64_t n = 0; n < kG; ++n) {
    FASTADV_UNROLL
    for (int64_t i = 0; i < kC; ++i) {
      double* total = tile.total[image + n] + channel + i * kPart;
      for (int64_t lane = 0; lane < kPart; ++lane) total[lane] += static_cast<double>(sum[n][i][lane]);
    }
  }
}

// All channels of a tile for kG images.
template <bool kScaled, int64_t kG>
void add_block(Terms& terms, int64_t width, Tile& tile, int64_t image, const int64_t* place) {
  int64_t i = 0;
  for (; i + kColumns * kPart <= width; i += kColumns * kPart) add_terms<kScaled, kG, kColumns>(terms, i, tile, image, i);
  for (; i + kPart <= width; i += kPart) add_terms<kScaled, kG, 1>(terms, i, tile, image, i);
  if (i == width) return;
  for (int64_t k = 0; k < terms.count; ++k) terms.row[k] = tile.padded[place[k]];
  add_terms<kScaled, kG, 1>(terms, 0, tile, image, i);
}

// The block of centroids [begin, begin + count) of one layer, and which channels of it.
struct Block {
  const DistanceArgs& args;
  const DistanceLayer& layer;
  const float* c_scales;
  int index;
  int64_t first;
  int64_t width;
  int64_t begin;
  int64_t count;

  const float* centroid(int64_t k) const { return layer.centroids + (begin + k) * layer.centroid_stride + first; }
};

// The weights of one image; those of extreme distances are zero, and what they would add is added here.
template <bool kCosine>
void weigh(const Block& block, int64_t image, int64_t at, Tile& tile) {
  const float* __restrict grad = block.args.grad + distance_row(block.args, image, block.index) + block.begin;
  const float* __restrict distances = block.args.distances + distance_row(block.args, image, block.index) + block.begin;
  float* __restrict weight = tile.weight[at];
  if (kCosine) {
    double* __restrict weighted = tile.weighted[at];
    for (int64_t k = 0; k < block.count; ++k) weight[k] = weight_cosine(grad[k], block.c_scales[block.begin + k]);
    const int64_t whole = block.count / kLanes * kLanes;
    for (int64_t k = 0; k < whole; k += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane)
        weighted[lane] += static_cast<double>(weight[k + lane]) * static_cast<double>(distances[k + lane]);
    for (int64_t k = whole; k < block.count; ++k)
      weighted[k - whole] += static_cast<double>(weight[k]) * static_cast<double>(distances[k]);
    return;
  }
  int found = 0;
  for (int64_t k = 0; k < block.count; ++k) {
    weight[k] = weight_l2(grad[k], distances[k]);
    found |= static_cast<int>(extreme(distances[k]));
  }
  if (__builtin_expect(found == 0, 1)) return;
  for (int64_t k = 0; k < block.count; ++k) {
    if (!extreme(distances[k])) continue;
    weight[k] = 0.0f;
    for (int64_t i = 0; i < block.width; ++i)
      tile.total[at][i] += static_cast<double>(grad[k] * ((tile.unit[at][i] - block.centroid(k)[i]) / distances[k]));
  }
}

// Adds a block for kG images from `at` on of the tile.
template <bool kCosine, int64_t kG>
void add_group(const Block& block, int64_t at, Tile& tile) {
  int needed[kTerms] = {};
  for (int64_t n = 0; n < kG; ++n)
    for (int64_t k = 0; k < block.count; ++k) needed[k] |= static_cast<int>(tile.weight[at + n][k] != 0.0f);
  Terms terms;
  int64_t place[kTerms];
  terms.count = 0;
  for (int64_t k = 0; k < block.count; ++k) {
    const float scale = kCosine ? block.c_scales[block.begin + k] : 1.0f;
    if (needed[k] == 0 && scale == scale) continue;  // a centroid that is no number makes no number of the derivative
    const int64_t next = terms.count++;
    place[next] = k;
    terms.row[next] = block.centroid(k);
    terms.scale[next] = scale;
    for (int64_t n = 0; n < kG; ++n) terms.weight[next][n] = tile.weight[at + n][k];
  }
  if (terms.count > 0) add_block<kCosine, kG>(terms, block.width, tile, at, place);
}

// One image in double, by the cosine.
__attribute__((noinline, cold)) void wide_gradient(const DistanceArgs& args, int index, int64_t n, int64_t first,
                                                   int64_t width) {
  const DistanceLayer& layer = args.layer[index];
  const float* feature = layer.features + n * layer.feature_stride;
  const double f_scale = wide_inverse_norm(feature, layer.channels, feature_scales(args, index)[n]);
  const float* grad = args.grad + distance_row(args, n, index);
  const float* distances = args.distances + distance_row(args, n, index);
  double total[kWidth] = {};
  double weighted = 0.0;
  for (int64_t k = 0; k < args.centroids; ++k) {
    const float* centroid = layer.centroids + k * layer.centroid_stride;
    const float given = centroid_scales(args, index)[k];
    const double c_scale = wide_inverse_norm(centroid, layer.channels, given);
    const double weight = static_cast<double>(weight_cosine(grad[k], given));
    weighted += weight * static_cast<double>(distances[k]);
    for (int64_t i = 0; i < width; ++i)
      total[i] += weight * (static_cast<double>(feature[first + i]) * f_scale -
                            static_cast<double>(centroid[first + i]) * c_scale);
  }
  float* out = args.out + n * args.row + layer.column + first;
  for (int64_t i = 0; i < width; ++i) {
    const double unit = static_cast<double>(feature[first + i]) * f_scale;
    out[i] = static_cast<float>((total[i] - weighted * unit) * f_scale);
  }
}

// Channels [first, first + width) of the derivative for `images` images from `from` on.
template <bool kCosine>
void gradient_tile(const DistanceArgs& args, int index, int64_t from, int64_t images, int64_t first, int64_t width) {
  const DistanceLayer& layer = args.layer[index];
  const float* c_scales = kCosine ? centroid_scales(args, index) : nullptr;
  const float* f_scales = kCosine ? feature_scales(args, index) : nullptr;
  Tile tile;
  const int64_t whole = width / kPart * kPart;
  for (int64_t n = 0; n < images; ++n) {
    const float* feature = layer.features + (from + n) * layer.feature_stride + first;
    const float scale = kCosine ? f_scales[from + n] : 1.0f;
    for (int64_t i = 0; i < kWidth; ++i) {
      tile.unit[n][i] = i < width ? feature[i] * scale : 0.0f;
      tile.total[n][i] = 0.0;
    }
    for (int64_t lane = 0; kCosine && lane < kLanes; ++lane) tile.weighted[n][lane] = 0.0;
  }
  for (int64_t k = 0; k < kTerms; ++k)
    for (int64_t i = 0; i < kPart; ++i) tile.padded[k][i] = 0.0f;
  bool odd_centroid = false;
  for (int64_t begin = 0; begin < args.centroids; begin += kTerms) {
    const Block block{args, layer, c_scales, index, first, width, begin, smaller(args.centroids - begin, kTerms)};
    for (int64_t k = 0; kCosine && k < block.count; ++k) odd_centroid |= c_scales[begin + k] < 0.0f;
    if (odd_centroid) break;
    for (int64_t k = 0; whole < width && k < block.count; ++k)
      for (int64_t i = whole; i < width; ++i) tile.padded[k][i - whole] = block.centroid(k)[i];
    for (int64_t n = 0; n < images; ++n) weigh<kCosine>(block, from + n, n, tile);
    int64_t n = 0;
    for (; n + kGroup <= images; n += kGroup) add_group<kCosine, kGroup>(block, n, tile);
    for (; n < images; ++n) add_group<kCosine, 1>(block, n, tile);
  }
  for (int64_t n = 0; n < images; ++n) {
    const float f_scale = kCosine ? f_scales[from + n] : 1.0f;
    if (kCosine && (odd_centroid || f_scale < 0.0f)) {
      wide_gradient(args, index, from + n, first, width);
      continue;
    }
    const double weighted = kCosine ? fold(tile.weighted[n]) : 0.0;
    float* out = args.out + (from + n) * args.row + layer.column + first;
    for (int64_t i = 0; i < width; ++i)
      out[i] = kCosine ? finish_gradient_cosine(tile.total[n][i], weighted, tile.unit[n][i], f_scale)
                       : static_cast<float>(tile.total[n][i]);
  }
}

}  // namespace

void centroid_gradient_task(const DistanceArgs& args, int64_t task) {
  const int index = layer_of(args, task);
  const DistanceLayer& layer = args.layer[index];
  const int64_t spans = parts(layer.channels, layer.tile);
  const int64_t local = task - layer.first_task;
  const int64_t from = local / spans * kImages;
  const int64_t first = local % spans * layer.tile;
  const int64_t images = smaller(args.images - from, kImages);
  const int64_t width = smaller(layer.channels - first, layer.tile);
  if (args.metric == kMetricCosine) gradient_tile<true>(args, index, from, images, first, width);
  else gradient_tile<false>(args, index, from, images, first, width);
}

}  // namespace fastadv::cpu::FASTADV_ISA
