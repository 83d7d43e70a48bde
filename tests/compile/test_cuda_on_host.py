"""The CUDA source of the masks, compiled for the CPU and run thread by thread: which elements, not how fast.

The kernels share nothing between threads, so that one thread after the other gives what a GPU gives.
"""

import ctypes
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastadv import ops
from fastadv.testing.cases import arrange
from fastadv.testing.tolerances import assert_same_bits

KERNELS = Path(__file__).parents[2] / "kernels"
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SEED, TICK, LAYER, RATE = 11, 7, 3, 0.3
SHAPES = [(2, 16, 4, 4), (2, 8, 7, 7), (2, 64, 14, 14), (3, 24, 7, 7), (2, 5, 3, 3), (2, 8, 4, 2), (2, 16, 1, 1)]
SHAPES += [(1, 33, 9, 11), (1, 8, 3, 1), (2, 40, 6, 6), (2, 3, 23, 1)]

RUNTIME = """
#pragma once
#include <cstdint>
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
struct Index { unsigned x; };
inline thread_local Index blockIdx, threadIdx, gridDim;
using cudaStream_t = void*;
constexpr int cudaErrorInvalidValue = 1;
inline int cudaGetLastError() { return 0; }
inline void __syncthreads() {}
template <class T> T __shfl_xor_sync(unsigned, T value, int) { return value; }
template <class T> void atomicAdd(T* to, T value) { *to += value; }
template <class Kernel> void one_by_one(unsigned grid, unsigned threads, Kernel kernel) {
  gridDim.x = grid;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel();
}
"""

ENTRY = """
#include "cuda/feature_dropout.cu"
#include "cuda/feature_dropout_bn_prelu.cu"
extern "C" int run(const void* x, const void* grad, void* out, const int64_t* ids, uint32_t threshold, float factor,
                   int type, const int64_t* sizes, const float* scale, const float* shift, const float* slope,
                   float ceiling, int from_result, int untied) {
  using namespace fastadv;
  const PhiloxKey key = {ids, nullptr, nullptr, SEED, TICK, 0, LAYER};
  const BatchLayout layout = {sizes[0], sizes[1], sizes[2], static_cast<int>(sizes[3]), {0, 0}};
  const FeatureDropoutArgs dropout = {x, out, key, threshold, factor, type, layout};
  if (scale == nullptr) return cuda::feature_dropout(dropout, nullptr);
  return cuda::feature_dropout_bn_prelu({dropout, grad, scale, shift, slope, 0.0f, 1, ceiling, from_result, untied},
                                        nullptr);
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The entry of the compiled source."""
    compiler = shutil.which("c++")
    if compiler is None or not KERNELS.is_dir():
        pytest.skip("needs a C++ compiler and the kernels' source")
    folder = tmp_path_factory.mktemp("cuda")
    shutil.copytree(KERNELS, folder, dirs_exist_ok=True)
    for source in (folder / "cuda").glob("*.cu*"):
        text = source.read_text().replace("#pragma unroll", "")
        text = re.sub(
            r"(\w+<[^<>;]*>)<<<grid, kThreads, 0, stream>>>\((.*?)\);",
            r"one_by_one(grid, kThreads, [&] { \1(\2); });",
            text,
        )
        source.write_text(text)
    (folder / "cuda_runtime.h").write_text(RUNTIME)
    (folder / "entry.cpp").write_text(ENTRY)
    numbers = [f"-D{name}={value}" for name, value in (("SEED", SEED), ("TICK", TICK), ("LAYER", LAYER))]
    options = ["-O1", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", f"-I{folder}", *numbers]
    subprocess.run([compiler, *options, folder / "entry.cpp", "-o", folder / "entry.so"], check=True)
    return ctypes.CDLL(str(folder / "entry.so")).run


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_source_gives_the_bits_of_the_reference(shape, dtype, layout, run):
    x, grad, out = (arrange(torch.randn(shape).to(dtype), layout) for _ in range(3))
    channels_last = not x.is_contiguous()
    ids = torch.arange(shape[0]) * 2**33 + 5
    parameters = {name: torch.randn(shape[1]) for name in ("scale", "shift", "slope")}
    each_position = torch.empty_strided(shape[1:], x.stride()[1:]).normal_()
    sizes = torch.tensor([shape[0], shape[1], shape[2] * shape[3], int(channels_last)])

    def made(seen, grad=None, fused=None, ceiling=None, from_result=False, masked=True):
        arrays = [
            None if t is None else ctypes.c_void_p(t.data_ptr()) for t in (seen, grad, out, ids if masked else None)
        ]
        rate = RATE if masked else 0
        numbers = [ctypes.c_uint32(round(rate * 2**16)), ctypes.c_float(1 / (1 - rate)), TYPES[dtype]]
        rest = [ctypes.c_void_p(t.data_ptr()) for t in (fused or {}).values()] or [None] * 3
        limit = ctypes.c_float(float("nan") if ceiling is None else ceiling)
        flags = (int(from_result), int(fused is not None and fused["shift"].dim() > 1))
        assert run(*arrays, *numbers, ctypes.c_void_p(sizes.data_ptr()), *rest, limit, *flags) == 0
        return out.clone()

    key = {"seed": SEED, "ids": ids, "tick": TICK, "layer": LAYER, "rate": RATE, "rescale": True}
    assert_same_bits(made(x), ops.feature_dropout(x, backend="reference", **key))
    leaf = x.detach().requires_grad_(True)
    forms = [(None, "input"), (0.6, "input"), (0.6, "result")]
    for (ceiling, keep), masked, tied in itertools.product(forms, (True, False), (True, False)):
        fused = {**parameters, "slope": parameters["slope"].abs()} if keep == "result" else dict(parameters)
        fused |= {} if tied else {"shift": each_position}
        options = {"ceiling": ceiling, "keep": keep, "backend": "reference", **(key if masked else {})}
        y = ops.feature_dropout_bn_prelu(leaf, **fused, **options)
        assert_same_bits(made(x, None, fused, ceiling, masked=masked), y.detach())
        (expected,) = torch.autograd.grad(y, leaf, grad)
        seen = y.detach() if keep == "result" else x
        assert_same_bits(made(seen, grad, fused, ceiling, keep == "result", masked), expected)
