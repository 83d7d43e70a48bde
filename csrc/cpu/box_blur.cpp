// Compiled once per instruction set, see sign_step.cpp.
#include "common/box_blur.h"

#include "cpu/kernels.h"

namespace fastadv::cpu::FASTADV_ISA {
namespace {

template <class T>
void blur_row(const BoxBlurArgs& args, int64_t index) {
  const int64_t here = index % args.rows;
  const int64_t row = args.row;
  const int64_t inner = args.inner;
  const T* __restrict middle = static_cast<const T*>(args.x) + index * row;
  const T* __restrict upper = here > 0 ? middle - row : middle;
  const T* __restrict lower = here + 1 < args.rows ? middle + row : middle;
  T* __restrict out = static_cast<T*>(args.out) + index * row;
  const auto column = [=](int64_t i) { return sum3(to_float(upper[i]), to_float(middle[i]), to_float(lower[i])); };
  const auto border = [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      from_float(mean9(column(i >= inner ? i - inner : i), column(i), column(i + inner < row ? i + inner : i)), out[i]);
  };
  const int64_t last = row - inner;  // where the last pixel begins
  if (last <= inner) return border(0, row);
  border(0, inner);
  for (int64_t i = inner; i < last; ++i) from_float(mean9(column(i - inner), column(i), column(i + inner)), out[i]);
  border(last, row);
}

}  // namespace

void box_blur_task(const BoxBlurArgs& args, int64_t index) {
  switch (args.type) {
    case kFloat32: return blur_row<float>(args, index);
    case kBFloat16: return blur_row<BFloat16>(args, index);
    default: return blur_row<Float16>(args, index);
  }
}

}  // namespace fastadv::cpu::FASTADV_ISA
