// box_blur: the mean of the 3 x 3 pixels around each pixel, the border repeated. The arithmetic, for C++ and CUDA.
#pragma once

#include "common/types.h"

namespace fastadv {

// A plane of contiguous images has rows of W elements; channels-last images are one plane with rows of W * C elements
// whose neighbours to the left and right are C elements away.
struct BoxBlurArgs {
  const void* x;
  void* out;  // laid out like x
  int type;
  int64_t planes;
  int64_t rows;
  int64_t row;    // elements of a row
  int64_t inner;  // elements between neighbours of a row
};

static FASTADV_HD float sum3(float a, float b, float c) { return (a + b) + c; }

static FASTADV_HD float mean9(float left, float middle, float right) { return sum3(left, middle, right) / 9.0f; }

}  // namespace fastadv
