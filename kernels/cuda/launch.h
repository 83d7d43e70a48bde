// Every CUDA launcher, declared once for the .cu file that defines it and the binding that calls it. A launcher takes
// its stream, never synchronises, allocates nothing and returns a cudaError_t as int.
#pragma once

#include <cstdint>

namespace fastadv {

struct SignStepArgs;
struct MomentumStepArgs;
struct FeatureDropoutArgs;
struct FeatureDropoutBnPreluArgs;
struct AddNoiseArgs;
struct BoxBlurArgs;
struct PoolArgs;
struct DistanceArgs;
struct RelativeArgs;
struct KnnScoreArgs;

namespace cuda {

constexpr int64_t kChunk = 2048;  // elements of an image that one block works on; Python's workspace follows it

int probe();  // 0 when a device can be used
int swap_device(int device, int* before);
const char* error_text(int status);

int sign_step(SignStepArgs args, void* stream);
int momentum_step(MomentumStepArgs args, void* stream);
int feature_dropout(const FeatureDropoutArgs& args, void* stream);
int feature_dropout_bn_prelu(const FeatureDropoutBnPreluArgs& args, void* stream);
int add_noise(const AddNoiseArgs& args, void* stream);
int box_blur(const BoxBlurArgs& args, void* stream);
int average_pool(PoolArgs args, void* stream);
int centroid_distances(const DistanceArgs& args, void* stream);
int centroid_gradient(const DistanceArgs& args, void* stream);
int relative_distances(const RelativeArgs& args, void* stream);
int knn_score(const KnnScoreArgs& args, void* stream);

}  // namespace cuda
}  // namespace fastadv
