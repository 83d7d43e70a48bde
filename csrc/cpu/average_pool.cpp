// Compiled once per instruction set, see sign_step.cpp. Means of the channels of feature maps.
#include "common/average_pool.h"

#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int64_t kWidth = 1024;    // channels added up together where they lie together
constexpr int64_t kPositions = 64;  // positions whose sum stays in float32

// A block as the sum reads it. The conversion of float16 vectorises on its own, but not inside the sum.
template <class T>
const T* prepared(const T* values, int64_t, float*) {
  return values;
}

const float* prepared(const Float16* __restrict values, int64_t size, float* __restrict into) {
  for (int64_t i = 0; i < size; ++i) into[i] = to_float(values[i]);
  return into;
}

template <class T>
double run_sum(const T* values, int64_t size) {
  float buffer[kSumBlock];
  double total = 0.0;
  for (int64_t begin = 0; begin < size; begin += kSumBlock) {
    const int64_t length = smaller(size - begin, kSumBlock);
    const int64_t whole = length / kLanes * kLanes;
    const auto* __restrict block = prepared(values + begin, length, buffer);
    float lane[kLanes] = {};
    for (int64_t i = 0; i < whole; i += kLanes)
      for (int k = 0; k < kLanes; ++k) lane[k] += to_float(block[i + k]);
    for (int64_t i = whole; i < length; ++i) lane[i - whole] += to_float(block[i]);
    total += static_cast<double>(fold(lane));
  }
  return total;
}

template <class T>
void positions_together(const PoolLayer& layer, const PoolTask& task, const T* map, float* out) {
  for (int64_t c = 0; c < task.count; ++c)
    out[c] = mean_of(run_sum(map + c * layer.stride_c, layer.positions), layer.positions);
}

// Up to kWidth channels; four positions are added before they touch the sums.
template <class T>
void together_span(const PoolLayer& layer, int64_t width, const T* map, float* __restrict out) {
  const int64_t stride = layer.stride_p;
  double total[kWidth] = {};
  for (int64_t begin = 0; begin < layer.positions; begin += kPositions) {
    const int64_t end = smaller(layer.positions, begin + kPositions);
    float sum[kWidth] = {};
    int64_t p = begin;
    for (; p + 4 <= end; p += 4) {
      const T* __restrict a = map + p * stride;
      const T* __restrict b = a + stride;
      const T* __restrict c = b + stride;
      const T* __restrict d = c + stride;
      const auto add = [&](int64_t i) {
        sum[i] += (to_float(a[i]) + to_float(b[i])) + (to_float(c[i]) + to_float(d[i]));
      };
      // What comes 16 positions later is fetched now: left alone, the processor does not see through four rows.
      constexpr int64_t kLine = static_cast<int64_t>(64 / sizeof(T));
      const int64_t ahead = 16 * stride;
      const int64_t whole = width / kLine * kLine;
      for (int64_t i = 0; i < whole; i += kLine) {
        __builtin_prefetch(a + i + ahead, 0, 2);
        __builtin_prefetch(b + i + ahead, 0, 2);
        __builtin_prefetch(c + i + ahead, 0, 2);
        __builtin_prefetch(d + i + ahead, 0, 2);
        for (int64_t k = 0; k < kLine; ++k) add(i + k);
      }
      for (int64_t i = whole; i < width; ++i) add(i);
    }
    for (; p < end; ++p) {
      const T* __restrict a = map + p * stride;
      for (int64_t i = 0; i < width; ++i) sum[i] += to_float(a[i]);
    }
    for (int64_t i = 0; i < width; ++i) total[i] += static_cast<double>(sum[i]);
  }
  for (int64_t i = 0; i < width; ++i) out[i] = mean_of(total[i], layer.positions);
}

template <class T>
void pool_typed(const PoolArgs& args, int64_t index) {
  const PoolLayer& layer = args.layer[layer_of(args, index)];
  const PoolTask task = pool_task(layer, index);
  const T* map = static_cast<const T*>(layer.map) + task.image * layer.stride_n + task.first * layer.stride_c;
  float* out = args.out + task.image * args.row + layer.column + task.first;
  if (!channels_together(layer)) return positions_together(layer, task, map, out);
  for (int64_t begin = 0; begin < task.count; begin += kWidth)
    together_span(layer, smaller(kWidth, task.count - begin), map + begin, out + begin);
}

}  // namespace

void average_pool_task(const PoolArgs& args, int64_t task) {
  switch (args.type) {
    case kFloat32: return pool_typed<float>(args, task);
    case kBFloat16: return pool_typed<BFloat16>(args, task);
    default: return pool_typed<Float16>(args, task);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
