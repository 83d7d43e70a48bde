"""The Triton kernels of depthwise convolutions compile for the GPUs we support, in the shapes of our networks."""

import importlib.util

import pytest
from ptx import compiled, inexact

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

SCRIPT = """
import torch
from fastadv.kernels.triton import depthwise_conv

sizes = ("channels", "height", "width", "rows", "columns", "across", "tiles", "slope_step")
# Of MobileFaceNet: channels, kernel, stride, padding, size of the input, activations.
layers = ((64, 3, 1, 1, 56, ("relu6", "prelu")), (128, 3, 2, 1, 56, ("relu6", "relu")), (512, 7, 1, 0, 7, ("none",)))
for cc in (80, 90):
    target = GPUTarget("cuda", cc, 32)
    # Everything in float32 for one target; of the rest, which differ in loads and stores only, one.
    for kind in ("fp32", "bf16") if cc == 80 else ("bf16",):
        full = (kind, cc) == ("fp32", 80)
        for channels, kernel, stride, padding, size, activations in layers if full else layers[:2]:
            whole = (size + 2 * padding - kernel) // stride + 1
            weight = torch.empty(kernel, kernel, channels, device="meta")
            for name in activations if full else activations[:1]:
                for backward, side in ((False, whole), (True, size)):
                    out = torch.empty(1, channels, side, side, device="meta")
                    fixed = depthwise_conv.constants(weight, out, stride, (padding, padding), backward=backward)
                    own = ["p_made" if backward and name != "none" else "p_bias"] + ["p_slope"] * (name == "prelu")
                    pointers = dict.fromkeys(("p_x", "p_weight", "p_out", *own), f"*{kind}")
                    code = depthwise_conv.CODES[name]
                    codes = {"DERIVATIVE": code * backward, "ACTIVATION": code * (not backward)}
                    build(f"{kernel} {stride} {name} {backward} {kind} sm_{cc}", depthwise_conv.depthwise_conv_kernel,
                          {**pointers, **dict.fromkeys(sizes, "i32")}, {**fixed, **codes}, target)
"""


@pytest.fixture(scope="module")
def made():
    return compiled(SCRIPT)


def test_every_kernel_compiles_for_every_target(made):
    for target, count in (("sm_80", 10 + 4), ("sm_90", 4)):
        texts = [text for name, text in made.items() if name.endswith(target)]
        assert len(texts) == count
        assert all(f".target {target}" in text for text in texts)


def test_nothing_is_approximate(made):
    for name, text in made.items():
        assert not inexact(text), name
