// Compiled once per instruction set, see sign_step.cpp. A detector's network, from distances to a logit.
#include "cpu/trajectory_score.h"

#include "cpu/float_parts.h"
#include "cpu/kernels.h"
#include "cpu/sums.h"
#include "cpu/unroll.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

constexpr int64_t kTerms = 256;  // products whose sum stays in float32

// How many times sixteen sums of a row are made at once.
#if defined(__AVX512F__)
constexpr int64_t kTogether = 4;
#else
constexpr int64_t kTogether = 1;
#endif
constexpr int64_t kParts = kTogether * kLanes / kPart;

// Rows that are multiplied with the same weights while these are in registers.
template <int64_t kRows>
struct Rows {
  const float* x[kRows];      // numbers of the row
  const float* start[kRows];  // what the sums begin with, or null
  float* out[kRows];
};

// out[column ...] = start[column ...] + sum_k x[k] weights[k][column ...] for kParts registers of columns. Every sum is
// made in the order of k, whatever is computed beside it.
template <int64_t kRows, int64_t kCount>
void multiply(const Rows<kRows>& rows, int64_t terms, const float* weights, int64_t width, int64_t column) {
  double total[kRows][kCount * kPart];
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < kCount * kPart; ++i)
      total[r][i] = rows.start[r] == nullptr ? 0.0 : static_cast<double>(rows.start[r][column + i]);
  for (int64_t begin = 0; begin < terms; begin += kTerms) {
    const int64_t end = smaller(terms, begin + kTerms);
    Part sum[kRows][kCount];
    FASTADV_UNROLL
    for (int64_t r = 0; r < kRows; ++r) {
      FASTADV_UNROLL
      for (int64_t i = 0; i < kCount; ++i) sum[r][i] = Part{};
    }
    for (int64_t k = begin; k < end; ++k) {
      const float* weight = weights + k * width + column;
      Part w[kCount];
      FASTADV_UNROLL
      for (int64_t i = 0; i < kCount; ++i) w[i] = *reinterpret_cast<const LoosePart*>(weight + i * kPart);
      FASTADV_UNROLL
      for (int64_t r = 0; r < kRows; ++r) {
        const Part x = rows.x[r][k] - Part{};  // in every lane; a sum with zero would be an addition
        FASTADV_UNROLL
        for (int64_t i = 0; i < kCount; ++i) sum[r][i] += x * w[i];
      }
    }
    for (int64_t r = 0; r < kRows; ++r) {
      float lane[kCount * kPart];
      FASTADV_UNROLL
      for (int64_t i = 0; i < kCount; ++i) *reinterpret_cast<LoosePart*>(lane + i * kPart) = sum[r][i];
      for (int64_t i = 0; i < kCount * kPart; ++i) total[r][i] += static_cast<double>(lane[i]);
    }
  }
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t i = 0; i < kCount * kPart; ++i) rows.out[r][column + i] = static_cast<float>(total[r][i]);
}

// Columns [first, last), whole registers of sixteen lanes.
template <int64_t kRows>
void multiply_columns(const Rows<kRows>& rows, int64_t terms, const float* weights, int64_t width, int64_t first,
                      int64_t last) {
  int64_t column = first;
  for (; column + kParts * kPart <= last; column += kParts * kPart)
    multiply<kRows, kParts>(rows, terms, weights, width, column);
  for (; column < last; column += kLanes) multiply<kRows, kLanes / kPart>(rows, terms, weights, width, column);
}

// `count` rows, at most kScoreRows; of a few, the last is computed again until they are all there.
template <class RowAt>
void multiply_rows(int64_t count, RowAt row_at, int64_t terms, const float* weights, int64_t width, int64_t first,
                   int64_t last) {
  const auto fill = [&](auto& rows, int64_t size) {
    for (int64_t r = 0; r < size; ++r) row_at(smaller(r, count - 1), rows.x[r], rows.start[r], rows.out[r]);
  };
  if (count == 1) {
    Rows<1> rows;
    fill(rows, 1);
    return multiply_columns(rows, terms, weights, width, first, last);
  }
  Rows<kScoreRows> rows;
  fill(rows, kScoreRows);
  multiply_columns(rows, terms, weights, width, first, last);
}

float dot(const float* a, const float* b, int64_t size) {
  double lane[kLanes] = {};
  for (int64_t i = 0; i < size; ++i) lane[i % kLanes] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<float>(fold(lane));
}

void finish(const TrajectoryScoreArgs& args, int64_t image, const float* hidden) {
  const float* whole = args.whole == nullptr ? nullptr : args.whole + image * args.row;
  const bool broken = whole != nullptr && (!__builtin_isfinite(whole[0]) || !__builtin_isfinite(whole[1]) ||
                                           !__builtin_isfinite(whole[2]));
  const float score = broken ? __builtin_nanf("") : dot(hidden, args.last, args.hidden) + args.last_bias;
  args.out[image] = score;
  if (args.flags != nullptr) args.flags[image] = !(score < args.threshold);
}

// c = sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c).
void step(const float* __restrict gates, float* __restrict cell, float* __restrict output, int64_t lanes) {
  for (int64_t i = 0; i < lanes; ++i) {
    const float kept = sigmoid_of(gates[lanes + i]) * cell[i];
    const float added = sigmoid_of(gates[i]) * tanh_of(gates[2 * lanes + i]);
    cell[i] = kept + added;
    output[i] = sigmoid_of(gates[3 * lanes + i]) * tanh_of(cell[i]);
  }
}

void recur(const TrajectoryScoreArgs& args, int64_t first, int64_t count) {
  const auto part = [&](int64_t r, int64_t which) { return args.state + ((first + r) * 6 + which) * args.lanes; };
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = 0; i < 2 * args.lanes; ++i) part(r, 4)[i] = 0.0f;
  for (int64_t layer = 0; layer < args.layers; ++layer) {
    const auto row_at = [&](int64_t r, const float*& x, const float*& start, float*& out) {
      x = part(r, 5);
      start = args.projected + ((first + r) * args.layers + layer) * args.width;
      out = part(r, 0);
    };
    multiply_rows(count, row_at, args.hidden, args.recurrent, args.width, 0, args.width);
    for (int64_t r = 0; r < count; ++r) step(part(r, 0), part(r, 4), part(r, 5), args.lanes);
  }
  for (int64_t r = 0; r < count; ++r) finish(args, first + r, part(r, 5));
}

void activate(const TrajectoryScoreArgs& args, int64_t image) {
  float* sums = args.projected + image * args.layers * args.width;
  for (int64_t i = 0; i < args.hidden; ++i) {
    double total = static_cast<double>(args.bias[i]);
    for (int64_t layer = 0; layer < args.layers; ++layer) total += static_cast<double>(sums[layer * args.width + i]);
    const float value = static_cast<float>(total);
    sums[i] = args.kind == kPerceptron && value < 0.0f ? 0.0f : value;
  }
  finish(args, image, sums);
}

}  // namespace

void standardise_task(const TrajectoryScoreArgs& args, int64_t row) {
  float* __restrict values = args.values + row * args.classes;
  const float* __restrict mean = args.mean + row % args.layers * args.classes;
  const float* __restrict scale = args.scale + row % args.layers * args.classes;
  for (int64_t i = 0; i < args.classes; ++i) values[i] = (values[i] - mean[i]) / scale[i];
}

void project_task(const TrajectoryScoreArgs& args, int64_t task) {
  const bool recurrent = args.kind == kRecurrent;
  const int64_t segments = recurrent ? 1 : args.layers;  // each has weights of its own
  const int64_t rows = recurrent ? args.images * args.layers : args.images;
  const int64_t groups = parts(rows, kScoreRows);
  const int64_t first = task % groups * kScoreRows;
  const int64_t segment = task / groups % segments;
  const int64_t column = task / groups / segments * kScoreColumns;
  const auto row_at = [&](int64_t r, const float*& x, const float*& start, float*& out) {
    const int64_t row = (first + r) * segments + segment;
    x = args.values + row * args.classes;
    start = recurrent ? args.bias : nullptr;
    out = args.projected + row * args.width;
  };
  multiply_rows(smaller(rows - first, kScoreRows), row_at, args.classes,
                args.first + segment * args.classes * args.width, args.width, column,
                smaller(args.width, column + kScoreColumns));
}

void score_task(const TrajectoryScoreArgs& args, int64_t group) {
  const int64_t first = group * kScoreRows;
  const int64_t count = smaller(args.images - first, kScoreRows);
  if (args.kind == kRecurrent) return recur(args, first, count);
  for (int64_t r = 0; r < count; ++r) activate(args, first + r);
}

}  // namespace fastadv::cpu::FASTADV_ISA
