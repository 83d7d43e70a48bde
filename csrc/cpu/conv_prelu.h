// A small network: convolutions, each with an activation and the maximum of neighbours.
#pragma once

#include <cstdint>

namespace fastadv {

// A layer. out = max_pool(prelu(bias + x * weights)), the convolution without padding, one pixel a step. Channels are
// filled up to whole sixteens with zeros: `padded` of them.
struct ConvPreluArgs {
  const float* x;        // (images, height, width, taken)
  const float* bias;     // (padded)
  const float* slopes;   // (padded)
  const float* weights;  // (side, side, taken, padded)
  float* out;            // (images, tall, wide, channels)
  float* scratch;        // `conv_scratch` numbers that no other thread uses
  int64_t height;
  int64_t width;
  int64_t taken;  // channels of x
  int64_t channels;
  int64_t padded;
  int64_t side;  // of the weights
  int64_t pool;  // 1, or the side of windows two apart whose maximum is taken; the last may reach over the border
  int64_t tall;
  int64_t wide;
};

// One row of the convolution, and as many pooled ones as a result is made of.
static inline int64_t conv_scratch(const ConvPreluArgs& args) {
  return (args.width - args.side + 1 + args.pool * args.wide) * args.padded;
}

constexpr int64_t kConvRows = 16;    // rows of the result in a task
constexpr int64_t kConvPixels = 48;  // pixels of the only row in a task

}  // namespace fastadv
