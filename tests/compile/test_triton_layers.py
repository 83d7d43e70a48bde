"""The Triton kernels of the layer operations compile for the GPUs we support, with exact divisions and roots."""

import importlib.util

import pytest
from ptx import compiled, inexact

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
from fastadv.kernels.triton import average_pool, centroid_distances, knn_score, relative_distances

F, N, S = "*fp32", "i64", "i32"
# of two layers, the second of which may be larger than 32 bits count
layers = {"features": (F, F), "centroids_of": (F, F), "layer_channels": (S, S), "feature_strides": (S, N),
          "centroid_strides": (S, N)}
tiles = {"BLOCK_K": centroid_distances.BLOCK_K, "BLOCK_C": centroid_distances.BLOCK_C}
for cc in (80, 90):
    target = GPUTarget("cuda", cc, 32)
    for kind in ("fp32", "bf16", "fp16"):
        maps = {"maps": (f"*{kind}",) * 2, "channels": (S, S), "positions": (S, S), "image_strides": (S, N),
                "strides": (S, N), "columns": (S, S), "p_out": F, "tiles": S, "row": S}
        for together, blocks in ((False, average_pool.APART), (True, average_pool.TOGETHER)):
            build(f"pool {together} {kind} sm_{cc}", average_pool.average_pool_kernel, maps,
                  {"TOGETHER": together, "BLOCK_C": blocks[0], "BLOCK_P": blocks[1]}, target)
    build(f"scales sm_{cc}", centroid_distances.scales_kernel, {**layers, "p_scales": F, "centroids": S},
          {"BLOCK_C": tiles["BLOCK_C"]}, target)
    for metric, scales in (("l2", {}), ("cosine", {"p_scales": F})):
        build(f"distances {metric} sm_{cc}", centroid_distances.distances_kernel,
              {**layers, **scales, "p_out": F, "centroids": S, "vectors": S, "out_stride": N}, tiles, target)
        build(f"gradient {metric} sm_{cc}", centroid_distances.gradient_kernel,
              {**layers, **scales, "columns": (S, S), "p_grad": F, "p_distances": F, "p_out": F, "centroids": S,
               "vectors": S, "tiles": S, "grad_stride": N, "out_stride": N}, tiles, target)
        for choose in (False, True):
            build(f"relative {metric} {choose} sm_{cc}", relative_distances.relative_kernel,
                  {**layers, **scales, "p_own": "*i64", "p_seen": "*fp64", "p_out": F, "centroids": S, "vectors": S,
                   "part": S, "parts": S, "out_stride": N}, {**tiles, "CHOOSE": choose}, target)
    for choose in (False, True):
        build(f"reading {choose} sm_{cc}", relative_distances.finish_kernel,
              {"p_own": "*i64", "p_seen": "*fp64", "p_out": F, "centroids": S, "parts": S, "out_stride": N},
              {"CHOOSE": choose, "BLOCK": relative_distances.MOST_PARTS}, target)
    for weighting in range(3):
        build(f"score {weighting} sm_{cc}", knn_score.knn_score_kernel,
              {"p_distances": F, "p_labels": "*i64", "p_predicted": "*i64", "p_out": F, "neighbours": S,
               "distance_stride": N, "label_stride": N},
              {"WEIGHTING": weighting, "BLOCK": knn_score.BLOCK}, target)
"""


@pytest.fixture(scope="module")
def ptx():
    return compiled(SCRIPT)


def test_every_kernel_compiles_for_every_target(ptx):
    for target in ("sm_80", "sm_90"):
        assert sum(name.endswith(target) for name in ptx) == 2 * 3 + 1 + 2 * 2 + 2 * 2 + 2 + 3
    for name, text in ptx.items():
        assert f".target {name.split()[-1]}" in text


def test_nothing_is_fused_or_approximate(ptx):
    for name, text in ptx.items():
        assert not inexact(text), name


def test_divisions_and_roots_round_to_nearest(ptx):
    assert "div.rn.f32" in ptx["pool False fp32 sm_80"]
    assert "sqrt.rn.f32" in ptx["distances l2 sm_80"]
    assert "div.rn.f32" in ptx["gradient l2 sm_80"]
    assert "div.rn.f64" in ptx["score 2 sm_80"]
    assert "div.rn.f64" in ptx["reading True sm_80"]
