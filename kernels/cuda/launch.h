// Every CUDA launcher, declared once for the .cu file that defines it and the binding that calls it. A launcher takes
// its stream, never synchronises, allocates nothing and returns a cudaError_t as int.
#pragma once

#include <cstdint>

namespace fastadv {

struct SignStepArgs;
struct MomentumStepArgs;

namespace cuda {

constexpr int64_t kChunk = 2048;  // elements of an image that one block works on; Python's workspace follows it

int probe();  // 0 when a device can be used
int swap_device(int device, int* before);
const char* error_text(int status);

int sign_step(SignStepArgs args, void* stream);
int momentum_step(MomentumStepArgs args, void* stream);

}  // namespace cuda
}  // namespace fastadv
