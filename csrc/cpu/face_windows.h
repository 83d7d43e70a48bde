// What a face detector computes beside its networks.
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

}  // namespace fastadv
