#include "common/box_blur.h"

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace fastadv::cuda {
namespace {

template <class T>
struct Rows {
  const T* upper;
  const T* middle;
  const T* lower;

  template <int kWidth>
  __device__ __forceinline__ void columns(int64_t i, float (&sums)[kWidth]) const {
    const auto a = load<T, kWidth>(upper + i);
    const auto b = load<T, kWidth>(middle + i);
    const auto c = load<T, kWidth>(lower + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sums[k] = sum3(to_float(a.item[k]), to_float(b.item[k]), to_float(c.item[k]));
  }
};

// A thread makes kWidth neighbours of a row. Their neighbours to the left and right are `inner` elements away: whole
// packs (kInner = 0), or kInner elements, which lie in this pack and the ones beside it. Index: what positions are
// divided in; 64 bits are slow.
template <class T, int kWidth, int kInner, class Index>
__global__ void __launch_bounds__(kThreads) box_blur_kernel(const BoxBlurArgs args) {
  static_assert(kInner <= kWidth, "the packs beside this one hold the neighbours");
  const int64_t packs = args.row / kWidth;
  const int64_t items = args.planes * args.rows * packs;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items; item += step) {
    const int64_t index = static_cast<Index>(item) / static_cast<Index>(packs);
    const int64_t i = (item - index * packs) * kWidth;
    const int64_t here = static_cast<Index>(index) % static_cast<Index>(args.rows);
    const T* middle = static_cast<const T*>(args.x) + index * args.row;
    const Rows<T> rows = {here > 0 ? middle - args.row : middle, middle,
                          here + 1 < args.rows ? middle + args.row : middle};
    const int64_t apart = kInner == 0 ? args.inner : kWidth;
    const bool first = i < apart;
    const bool last = i + apart >= args.row;
    float center[kWidth], before[kWidth], after[kWidth], left[kWidth], right[kWidth];
    rows.template columns<kWidth>(i, center);
    rows.template columns<kWidth>(first ? i : i - apart, before);
    rows.template columns<kWidth>(last ? i : i + apart, after);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if constexpr (kInner == 0) {
        left[k] = before[k];
        right[k] = after[k];
      } else {  // at the border, where there is no pack beside this one, an element is its own neighbour
        constexpr int kRest = kWidth - kInner;
        left[k] = k >= kInner ? center[k >= kInner ? k - kInner : 0] : first ? center[k] : before[(k + kRest) % kWidth];
        right[k] = k < kRest ? center[k < kRest ? k + kInner : 0] : last ? center[k] : after[(k + kInner) % kWidth];
      }
    }
    Pack<T, kWidth> made;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) from_float(mean9(left[k], center[k], right[k]), made.item[k]);
    store<T, kWidth>(static_cast<T*>(args.out) + index * args.row + i, made);
  }
}

template <class T, int kPack, class Index>
void launch(const BoxBlurArgs& args, cudaStream_t stream) {
  const bool wide = aligned(args.x) && aligned(args.out) && args.row % kPack == 0;
  const int64_t elements = args.planes * args.rows * args.row;
  const auto grid = [&](int width) { return grid_for((elements / width + kThreads - 1) / kThreads); };
  if (wide && args.inner % kPack == 0) {
    box_blur_kernel<T, kPack, 0, Index><<<grid(kPack), kThreads, 0, stream>>>(args);
  } else if (wide && args.inner == 1) {
    box_blur_kernel<T, kPack, 1, Index><<<grid(kPack), kThreads, 0, stream>>>(args);
  } else if (wide && args.inner == 3) {  // colours, channels-last
    box_blur_kernel<T, kPack, 3, Index><<<grid(kPack), kThreads, 0, stream>>>(args);
  } else {
    box_blur_kernel<T, 1, 0, Index><<<grid(1), kThreads, 0, stream>>>(args);
  }
}

template <class T, int kPack>
void blur(const BoxBlurArgs& args, cudaStream_t stream) {
  if (args.planes * args.rows * args.row < int64_t{1} << 32) return launch<T, kPack, uint32_t>(args, stream);
  launch<T, kPack, int64_t>(args, stream);
}

}  // namespace

int box_blur(const BoxBlurArgs& args, void* stream) {
  auto* on = static_cast<cudaStream_t>(stream);
  switch (args.type) {
    case kFloat32: blur<float, 4>(args, on); break;
    case kBFloat16: blur<BFloat16, 8>(args, on); break;
    default: blur<Float16, 8>(args, on);
  }
  return cudaGetLastError();
}

}  // namespace fastadv::cuda
