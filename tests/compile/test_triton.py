"""The Triton kernels compile for the GPUs we support, and the PTX keeps what the interpreter cannot show."""

import importlib.util
import re

import pytest
from ptx import compiled, inexact

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
from fastadv.kernels.triton import momentum_step, sign_step

scalars = dict.fromkeys(("alpha", "eps", "mu", "lo", "hi"), "fp32")
for cc in (80, 90):
    target = GPUTarget("cuda", cc, 32)
    for grad in ("fp32", "bf16", "fp16"):
        images = {"p_x": "*fp32", "p_grad": f"*{grad}", "p_origin": "*fp32"}
        optional = {"p_alpha": "*fp32", "p_eps": "*fp32", "p_active": "*u8", "p_stats": "*i64"}
        sizes = {"size": "i64", "chunks": "i32"}
        own = {k: v for k, v in scalars.items() if k != "mu"}
        build(f"sign {grad} sm_{cc}", sign_step.sign_step_kernel, {**images, **optional, **own, **sizes},
              {"BLOCK": sign_step.BLOCK}, target)
        build(f"sign {grad} sm_{cc} plain", sign_step.sign_step_kernel, {**images, **own, **sizes},
              {"BLOCK": sign_step.BLOCK}, target)
        more = {"p_velocity": "*fp32", "p_read": "*fp64", "p_write": "*fp64", "chunk": "i32", **sizes}
        # Every pass and norm in float32; of the other types, which differ in the load only, one pass.
        full = grad == "fp32" and cc == 80
        for which in range(5) if grad == "fp32" else (1,):
            for norm in (0, 1) if full else (1,):
                build(f"momentum {which} {norm} {grad} sm_{cc}", momentum_step.momentum_kernel,
                      {**images, **optional, **scalars, **more},
                      {"PASS": which, "NORM": norm, "CHUNKS": 32, "BLOCK": momentum_step.BLOCK}, target)
"""


@pytest.fixture(scope="module")
def ptx():
    return compiled(SCRIPT)


def test_every_kernel_compiles_for_every_target(ptx):
    assert sum("sm_80" in name for name in ptx) == 3 * 2 + 10 + 2
    assert sum("sm_90" in name for name in ptx) == 3 * 2 + 5 + 2
    for name, text in ptx.items():
        assert f".target {name.split()[-1] if 'plain' not in name else name.split()[-2]}" in text


def test_clipping_keeps_a_nan_and_nothing_is_fused_or_approximate(ptx):
    for name, text in ptx.items():
        assert not inexact(text), name


def test_divisions_and_roots_round_to_nearest(ptx):
    assert "sqrt.rn.f64" in ptx["momentum 1 1 fp32 sm_80"]
    assert "div.rn.f32" in ptx["momentum 1 0 fp32 sm_80"]


def test_addresses_are_64_bits_wide(ptx):
    for name, text in ptx.items():
        assert re.search(r"\.address_size 64", text), name
