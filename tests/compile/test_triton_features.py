"""The Triton kernels of the feature and noise operations compile for the GPUs we support, and keep every bit."""

import importlib.util

import ptx
import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
from fastadv.kernels.triton import add_noise, box_blur, feature_dropout, feature_dropout_bn_prelu

key = {"p_ids": "*i64", "seed": "i64", "tick": "i32", "tick_step": "i32", "layer": "i32"}
held = {"p_seed": "*i64", "p_tick": "*i64"}
sizes = dict.fromkeys(("size", "channels", "plane", "chunks", "channel_chunks"), "i32")
drop = {"threshold": "i64", "factor": "fp32"}
affine = {"p_scale": "*fp32", "p_shift": "*fp32", "slope": "fp32", "slope_step": "i32"}
blur = {"total": "i32", "rows": "i32", "row": "i32", "inner": "i32"}
noise = {"p_x": "*fp32", "p_origin": "*fp32", "scale": "fp32", "lo": "fp32", "hi": "fp32"}
orders = (("contiguous", False, True), ("channels_last", True, True), ("odd", True, False))
for cc in (80, 90):
    target = GPUTarget("cuda", cc, 32)
    # Every memory order in float32 for one target; of the rest, which differ in loads and stores only, one.
    for kind in ("fp32", "bf16", "fp16") if cc == 80 else ("fp32",):
        maps = {"p_x": f"*{kind}", "p_out": f"*{kind}"}
        build(f"blur {kind} sm_{cc}", box_blur.box_blur_kernel, {**maps, **blur}, {"WIDE": False, "BLOCK": 1024},
              target)
        for name, channels_last, whole in orders if (kind, cc) == ("fp32", 80) else orders[:1]:
            shape = {"CHANNELS_LAST": channels_last, "WHOLE": whole, "BLOCK": 1024, "GROUPS": 16, "CHANNELS": 64}
            build(f"dropout {name} {kind} sm_{cc}", feature_dropout.feature_dropout_kernel,
                  {**maps, **key, **held, **drop, **sizes}, shape, target)
            fused = feature_dropout_bn_prelu.feature_dropout_bn_prelu_kernel
            both_ways = {**maps, "p_grad": f"*{kind}", **key, **held, **drop, **affine}
            build(f"backward {name} {kind} sm_{cc}", fused, {**both_ways, "p_slope": "*fp32", **sizes},
                  {**shape, "FROM_RESULT": False, "UNTIED": False}, target)
            if kind == "fp32":
                build(f"forward {name} sm_{cc}", fused, {**maps, **key, **drop, **affine, **sizes},
                      {**shape, "FROM_RESULT": False, "UNTIED": False}, target)
                build(f"result {name} sm_{cc}", fused, {**both_ways, "ceiling": "fp32", **sizes},
                      {**shape, "FROM_RESULT": True, "UNTIED": False}, target)
                unmasked = {n: t for n, t in both_ways.items() if n not in ("p_ids", *held)}
                build(f"unmasked {name} sm_{cc}", fused, {**unmasked, "p_slope": "*fp32", **sizes},
                      {**shape, "FROM_RESULT": False, "UNTIED": True}, target)
                for gaussian in (False, True):
                    build(f"noise {gaussian} {name} sm_{cc}", add_noise.add_noise_kernel,
                          {**noise, **key, **held, "p_scale": "*fp32", **sizes}, {**shape, "GAUSSIAN": gaussian},
                          target)
"""


@pytest.fixture(scope="module")
def made():
    return ptx.compiled(SCRIPT)


def test_every_kernel_compiles_for_every_target(made):
    for target, count in (("sm_80", 3 + 7 * 3 + 2 * 2), ("sm_90", 1 + 7)):
        texts = [text for name, text in made.items() if name.endswith(target)]
        assert len(texts) == count
        assert all(f".target {target}" in text for text in texts)


def test_no_bit_is_lost(made):
    for name, text in made.items():
        assert not ptx.inexact(text), name


def test_divisions_and_roots_round_to_nearest(made):
    assert "div.rn.f32" in made["blur fp32 sm_80"]
    assert "sqrt.rn.f32" in made["noise True contiguous sm_80"]
