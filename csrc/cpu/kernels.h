// The CPU kernels: one function per pass, called once per (image, chunk). Each exists once per instruction set, in a
// namespace of that name; FASTADV_PICK chooses at run time.
#pragma once

#include <cstdint>

#include "common/add_noise.h"
#include "common/average_pool.h"
#include "common/box_blur.h"
#include "common/centroid_distances.h"
#include "common/feature_dropout_bn_prelu.h"
#include "common/knn_score.h"
#include "common/momentum_step.h"
#include "common/philox.h"
#include "common/relative_distances.h"
#include "common/sign_step.h"
#include "cpu/all_within.h"
#include "cpu/conv_prelu.h"
#include "cpu/face_windows.h"
#include "cpu/trajectory_score.h"

#if defined(__x86_64__) || defined(_M_X64)
#define FASTADV_X86 1
#else
#define FASTADV_X86 0
#endif

namespace fastadv::cpu {
// Of a task of the derivative of distances: its images, and at most so many channels.
constexpr int64_t kGradientImages = 32;
constexpr int64_t kGradientChannels = 128;
}  // namespace fastadv::cpu

#define FASTADV_CPU_KERNELS(isa)                                            \
  namespace fastadv::cpu::isa {                                             \
  void sign_step_task(const SignStepArgs& args, int64_t task);              \
  void momentum_reduce_task(const MomentumStepArgs& args, int64_t task);    \
  void momentum_sign_task(const MomentumStepArgs& args, int64_t task);      \
  void momentum_velocity_task(const MomentumStepArgs& args, int64_t task);  \
  void momentum_move_task(const MomentumStepArgs& args, int64_t task);      \
  void momentum_project_task(const MomentumStepArgs& args, int64_t task);   \
  void philox_task(const PhiloxArgs& args, int64_t task);                   \
  void add_noise_task(const AddNoiseArgs& args, int64_t task);              \
  void box_blur_task(const BoxBlurArgs& args, int64_t index);               \
  void feature_dropout_task(const FeatureDropoutArgs& args, int64_t task);  \
  void feature_dropout_bn_prelu_task(const FeatureDropoutBnPreluArgs& args, int64_t task); \
  void average_pool_task(const PoolArgs& args, int64_t task);               \
  void centroid_scales_task(const DistanceArgs& args, int64_t task);        \
  void centroid_distances_task(const DistanceArgs& args, int64_t task);     \
  void centroid_gradient_task(const DistanceArgs& args, int64_t task);      \
  void relative_own_task(const RelativeArgs& args, int64_t image);          \
  void relative_distances_task(const RelativeArgs& args, int64_t task);     \
  void relative_finish_task(const RelativeArgs& args, int64_t image);       \
  void knn_score_task(const KnnScoreArgs& args, int64_t row);               \
  void standardise_task(const TrajectoryScoreArgs& args, int64_t row);      \
  void project_task(const TrajectoryScoreArgs& args, int64_t task);         \
  void score_task(const TrajectoryScoreArgs& args, int64_t group);          \
  void all_within_task(const AllWithinArgs& args, int64_t task);            \
  void conv_prelu_task(const ConvPreluArgs& args, int64_t task);            \
  void summed_area_task(const SummedAreaArgs& args, int64_t picture);       \
  void area_means_task(const AreaMeansArgs& args, int64_t window);          \
  }

FASTADV_CPU_KERNELS(baseline)
#if FASTADV_X86
FASTADV_CPU_KERNELS(avx2)
FASTADV_CPU_KERNELS(avx512)
#define FASTADV_PICK(isa, name)                           \
  ((isa) == ::fastadv::cpu::kAvx512 ? ::fastadv::cpu::avx512::name \
   : (isa) == ::fastadv::cpu::kAvx2 ? ::fastadv::cpu::avx2::name   \
                                    : ::fastadv::cpu::baseline::name)
#else
#define FASTADV_PICK(isa, name) (static_cast<void>(isa), &::fastadv::cpu::baseline::name)
#endif
