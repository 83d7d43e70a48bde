// relative_distances: an image's distances to the classes of a layer, reduced to five numbers relative to one of them
// while they are computed. What C++ and CUDA share.
#pragma once

#include "common/centroid_distances.h"

namespace fastadv {

constexpr int64_t kReading = 5;  // own, nearest other, ratio, rank, own minus mean

// The classes are walked in parts of a multiple of kPartClasses, and in at most kMostParts: how sums are cut depends on
// the number of classes alone. ops/layers.py has the same numbers.
constexpr int64_t kPartClasses = 64;
constexpr int64_t kMostParts = 256;

struct ReadingParts {
  int64_t part;  // classes of one, but for the last
  int64_t parts;
};

static inline ReadingParts reading_parts(int64_t classes) {
  const int64_t part = parts(classes, kPartClasses * kMostParts) * kPartClasses;
  return {part, parts(classes, part)};
}

// Of an image's distances to the classes of a part. A NaN is in the sum alone.
struct Seen {
  double sum;
  double least;
  double second;  // the next one, equal to `least` where two are
  double place;   // how many are nearer than the own class; while that is looked for, the index of the nearest
};

struct RelativeArgs {
  DistanceArgs distances;  // out: (images, all_layers, kReading)
  Seen* seen;              // (all_layers, parts, images)
  int64_t* own;            // (images,); `choose`: written
  int64_t part;            // as reading_parts() has them
  int64_t parts;
  bool choose;             // the own class is the nearest one of this launch's only layer
};

static FASTADV_HD Seen nothing_seen() {
  const double most = static_cast<double>(from_bits(0x7f800000u));
  return {0.0, most, most, 0.0};
}

// In either order the same but for the rounding of the sum.
static FASTADV_HD Seen merged(const Seen& a, const Seen& b, bool choose) {
  const bool lower = b.least < a.least;
  const double least = lower ? b.least : a.least;
  const double other = lower ? a.least : b.least;
  const double second = b.second < a.second ? b.second : a.second;
  const bool first = lower || (b.least == a.least && b.place < a.place);
  const double place = !choose ? a.place + b.place : first ? b.place : a.place;
  return {a.sum + b.sum, least, other < second ? other : second, place};
}

static FASTADV_HD Seen* seen_of(const RelativeArgs& args, int layer, int64_t part) {
  return args.seen + ((args.distances.first_layer + layer) * args.parts + part) * args.distances.images;
}

static FASTADV_HD float* reading_of(const RelativeArgs& args, int64_t image, int layer) {
  return args.distances.out + (image * args.distances.all_layers + args.distances.first_layer + layer) * kReading;
}

// The five numbers of an image and a layer from what was seen of all classes; the first is there unless `choose`.
static FASTADV_HD void finish_reading(const RelativeArgs& args, int64_t image, int layer, const Seen& seen) {
  float* out = reading_of(args, image, layer);
  const bool none = seen.least > 3.5e38;  // no distance is a finite number
  if (args.choose) {
    args.own[image] = static_cast<int64_t>(seen.place);
    out[0] = static_cast<float>(none ? seen.sum : seen.least);
  }
  const double own = static_cast<double>(out[0]);
  double other = own == seen.least ? seen.second : seen.least;
  if (seen.sum != seen.sum) other = seen.sum;
  const double others = static_cast<double>(args.distances.centroids - 1);
  out[1] = static_cast<float>(other);
  out[2] = own == other ? 0.5f : static_cast<float>(own / (own + other));
  out[3] = own != own ? out[0] : args.choose ? 0.0f : static_cast<float>(seen.place / others);
  out[4] = static_cast<float>(own - (seen.sum - own) / others);
}

}  // namespace fastadv
