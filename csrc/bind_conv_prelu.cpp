#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/conv_prelu.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/sums.h"
#include "pointers.h"
#include "registration.h"

// A network of such layers in one call: calls of its layers alone would wait for Python's lock more than they compute.
namespace fastadv {
namespace {

using Task = void (*)(const ConvPreluArgs&, int64_t);

// A layer that sees all of a map is a matrix: the images are the pixels of one row, and some of them a task.
void run(Task task, ConvPreluArgs args, int64_t images, int64_t threads) {
  const bool matrix = args.pool == 1 && args.height == args.side && args.width == args.side;
  if (matrix) {
    args.taken *= args.side * args.side;
    args.side = args.height = 1;
    args.width = args.wide = std::min(kConvPixels, images);
  }
  const int64_t tasks = matrix ? (images + kConvPixels - 1) / kConvPixels
                               : images * ((args.tall + kConvRows - 1) / kConvRows);
  const int64_t size = conv_scratch(args);
  threads = std::min(threads, tasks);
  const std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(threads * size)]);
  cpu::parallel(threads, static_cast<int>(threads), [&](int64_t thread) {
    ConvPreluArgs own = args;
    own.scratch = scratch.get() + thread * size;
    for (int64_t index = thread; index < tasks; index += threads) {
      if (matrix) {
        const int64_t first = index * kConvPixels;
        own.x = args.x + first * args.taken;
        own.out = args.out + first * args.channels;
        own.width = own.wide = std::min(kConvPixels, images - first);
      }
      task(own, matrix ? 0 : index);
    }
  });
}

// `layers`: for each the address of (2 + side * side * taken, padded) numbers: bias, slopes, weights; then channels, side
// and pool.
void cpu_conv_prelu(Address x, Address out, int64_t images, int64_t height, int64_t width, int64_t taken,
                    const std::vector<int64_t>& layers, int threads, int isa) {
  cpu::check_isa(isa);
  const Task task = FASTADV_PICK(isa, conv_prelu_task);
  pybind11::gil_scoped_release release;
  const auto* from = pointer<const float>(x);
  std::unique_ptr<float[]> kept;
  if (images * height * width * taken < cpu::kSerialElements / 16) threads = 1;
  for (size_t i = 0; i < layers.size(); i += 4) {
    const int64_t channels = layers[i + 1], side = layers[i + 2], pool = layers[i + 3];
    const int64_t padded = (channels + cpu::kLanes - 1) / cpu::kLanes * cpu::kLanes;
    const auto made = [&](int64_t length) { return pool == 1 ? length - side + 1 : (length - side + 4 - pool) / 2; };
    const int64_t tall = made(height), wide = made(width);
    std::unique_ptr<float[]> own;
    if (i + 4 < layers.size()) own.reset(new float[static_cast<size_t>(images * tall * wide * channels)]);
    float* to = own ? own.get() : pointer<float>(out);
    const auto* numbers = pointer<const float>(static_cast<Address>(layers[i]));
    run(task, {from, numbers, numbers + padded, numbers + 2 * padded, to, nullptr, height, width, taken, channels, padded,
               side, pool, tall, wide},
        images, threads);
    kept = std::move(own);
    from = to;
    height = tall;
    width = wide;
    taken = channels;
  }
}

}  // namespace

FASTADV_REGISTER(m) { m.def("cpu_conv_prelu", &cpu_conv_prelu); }

}  // namespace fastadv
