// What a face detector computes at every window, beside its convolutions.
#pragma once

#include <cstdint>

namespace fastadv {

// The summed-area table of a picture: a row and a column of zeros, then the sums of what is above and left of a pixel.
struct SummedAreaArgs {
  const uint8_t* picture;  // (height, width, 3)
  int32_t* table;          // (height + 1, width + 1, 4)
  int64_t height;
  int64_t width;
};

// Means over the cells of rectangles of pictures, by summed-area tables.
struct AreaMeansArgs {
  const int32_t* table;    // sums of red, green, blue, and a number that is not read, modulo 2^32
  const int64_t* windows;  // (windows, 6): where a picture's table begins, its stride; left, top, right, bottom
  const int32_t* before;   // (windows, width): the column of the table where a cell begins
  const int32_t* behind;   // the same, where it ends
  const float* share;      // the same: 1 / (128 times the cell's columns)
  float* out;              // (windows, rows, width, 3)
  int64_t height;          // cells of a rectangle from top to bottom
  int64_t width;           // cells from left to right
  int64_t first;           // the first row of cells that is computed
  int64_t rows;            // how many of them are
};

// x = prelu(x), the channels of a pixel together.
struct PreluArgs {
  float* x;  // (pixels, channels)
  const float* slopes;
  int64_t pixels;
  int64_t channels;
};

constexpr int64_t kPreluPixels = 1024;  // of a task

// Numbers of a row of pixels that are pooled together.
constexpr int64_t kPooled = 4096;

// How many results have their pixels among as many numbers, and how many pixels these are.
static inline int64_t pooled_together(int64_t channels) { return (kPooled / channels - 1) / 2; }
static inline int64_t pooled_pixels(int64_t channels) { return 2 * pooled_together(channels) + 1; }

// The maximum of prelu(x) over windows of 2 x 2 or 3 x 3 pixels, two apart; the last ones may reach over the border.
struct PreluMaxPoolArgs {
  const float* x;       // (images, height, width, channels)
  const float* slopes;  // those of `pooled_pixels` pixels
  float* out;           // (images, tall, wide, channels)
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t size;  // 2 or 3
  int64_t tall;
  int64_t wide;
};

}  // namespace fastadv
