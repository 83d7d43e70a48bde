"""Names, sizes and numbers of parameters of published checkpoints, written down from the publications' own code.

No weights are needed. Each publication is a table of layers below; the networks must have its tensors and no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastadv.core.notices import Notice
from fastadv.models import load

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
CHANNELS = (64, 128, 256, 512)


def conv(name: str, inputs: int, outputs: int, kernel: int, *, groups: int = 1, bias: bool = False) -> Shapes:
    found: Shapes = {f"{name}.weight": (outputs, inputs // groups, kernel, kernel)}
    return {**found, f"{name}.bias": (outputs,)} if bias else found


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    found: Shapes = {f"{name}.weight": (outputs, inputs)}
    return {**found, f"{name}.bias": (outputs,)} if bias else found


def norm(name: str, channels: int, *, affine: bool = True) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var") if affine else ("running_mean", "running_var")
    return {**{f"{name}.{part}": (channels,) for part in parts}, f"{name}.num_batches_tracked": ()}


def each(name: str, channels: int, *parts: str) -> Shapes:
    """One number a channel for each of these parts."""
    return {f"{name}.{part}": (channels,) for part in parts}


def iresnet(depth: int) -> Shapes:
    """insightface's arcface_torch, MagFace and ElasticFace: `iresnet.py`."""
    found = {**conv("conv1", 3, 64, 3), **norm("bn1", 64), **each("prelu", 64, "weight")}
    inputs = 64
    for stage, (outputs, repeats) in enumerate(zip(CHANNELS, BLOCKS[depth], strict=True), start=1):
        for i in range(repeats):
            at = f"layer{stage}.{i}"
            found |= norm(f"{at}.bn1", inputs) | conv(f"{at}.conv1", inputs, outputs, 3) | norm(f"{at}.bn2", outputs)
            found |= each(f"{at}.prelu", outputs, "weight") | conv(f"{at}.conv2", outputs, outputs, 3)
            found |= norm(f"{at}.bn3", outputs)
            if i == 0:
                found |= conv(f"{at}.downsample.0", inputs, outputs, 1) | norm(f"{at}.downsample.1", outputs)
            inputs = outputs
    return found | norm("bn2", 512) | linear("fc", 512 * 7 * 7, 512) | norm("features", 512)


def body(depth: int, *, middle: bool) -> Shapes:
    """`net.py` of AdaFace (with a batch norm in the middle of a block); `model_irse.py` of face.evoLVe (without)."""
    found = {**conv("input_layer.0", 3, 64, 3), **norm("input_layer.1", 64), **each("input_layer.2", 64, "weight")}
    inputs, number = 64, 0
    for outputs, repeats in zip(CHANNELS, BLOCKS[depth], strict=True):
        for _ in range(repeats):
            at, k = f"body.{number}.res_layer", 2
            found |= norm(f"{at}.0", inputs) | conv(f"{at}.1", inputs, outputs, 3)
            if middle:
                found |= norm(f"{at}.2", outputs)
                k = 3
            found |= each(f"{at}.{k}", outputs, "weight") | conv(f"{at}.{k + 1}", outputs, outputs, 3)
            found |= norm(f"{at}.{k + 2}", outputs)
            if inputs != outputs:
                shortcut = f"body.{number}.shortcut_layer"
                found |= conv(f"{shortcut}.0", inputs, outputs, 1) | norm(f"{shortcut}.1", outputs)
            inputs, number = outputs, number + 1
    end = norm("output_layer.0", 512) | linear("output_layer.3", 512 * 7 * 7, 512)
    return found | end | norm("output_layer.4", 512, affine=not middle)


def mobilefacenet() -> Shapes:
    """`MobileFaceNet(512)` in `model.py` of TreB1eN/InsightFace_Pytorch."""

    def block(name: str, inputs: int, outputs: int, kernel: int, *, groups: int = 1, prelu: bool = True) -> Shapes:
        found = conv(f"{name}.conv", inputs, outputs, kernel, groups=groups) | norm(f"{name}.bn", outputs)
        return found | each(f"{name}.prelu", outputs, "weight") if prelu else found

    def depthwise(name: str, inputs: int, outputs: int, groups: int) -> Shapes:
        found = block(f"{name}.conv", inputs, groups, 1) | block(f"{name}.conv_dw", groups, groups, 3, groups=groups)
        return found | block(f"{name}.project", groups, outputs, 1, prelu=False)

    found = block("conv1", 3, 64, 3) | block("conv2_dw", 64, 64, 3, groups=64) | depthwise("conv_23", 64, 64, 128)
    for name, channels, groups, count in (("conv_3", 64, 128, 4), ("conv_4", 128, 256, 6), ("conv_5", 128, 256, 2)):
        for i in range(count):
            found |= depthwise(f"{name}.model.{i}", channels, channels, groups)
    found |= depthwise("conv_34", 64, 128, 256) | depthwise("conv_45", 128, 128, 512) | block("conv_6_sep", 128, 512, 1)
    found |= block("conv_6_dw", 512, 512, 7, groups=512, prelu=False)
    return found | linear("linear", 512, 512, bias=False) | norm("bn", 512)


def cosface(units: tuple[int, ...]) -> Shapes:
    """`sphere(type=20)` and `sphere(type=64)` in `net.py` of MuggleWang/CosFace_pytorch."""
    found: Shapes = {}
    for stage, (inputs, outputs, count) in enumerate(zip((3, 64, 128, 256), CHANNELS, units, strict=True), start=1):
        found |= conv(f"layer{stage}.0", inputs, outputs, 3, bias=True) | each(f"layer{stage}.1", outputs, "weight")
        for i in range(2, count + 2):
            for part in "12":
                found |= conv(f"layer{stage}.{i}.conv{part}", outputs, outputs, 3)
                found |= each(f"layer{stage}.{i}.prelu{part}", outputs, "weight")
    return found | linear("fc", 512 * 7 * 6, 512)


def edgeface(dims: tuple[int, ...], depths: tuple[int, ...], heads: int, gamma: float | None = None) -> Shapes:
    """timm's EdgeNeXt with 512 outputs; with gamma each linear layer as the `LoRaLin` of otroshi/edgeface."""

    def full(name: str, inputs: int, outputs: int) -> Shapes:
        if gamma is None:
            return linear(name, inputs, outputs)
        rank = max(2, int(min(inputs, outputs) * gamma))
        return linear(f"{name}.linear1", inputs, rank, bias=False) | linear(f"{name}.linear2", rank, outputs)

    def layer_norm(name: str, channels: int) -> Shapes:
        return each(name, channels, "weight", "bias")

    def mlp(name: str, channels: int) -> Shapes:
        return full(f"{name}.mlp.fc1", channels, 4 * channels) | full(f"{name}.mlp.fc2", 4 * channels, channels)

    found = conv("stem.0", 3, dims[0], 4, bias=True) | layer_norm("stem.1", dims[0])
    for i, (channels, depth) in enumerate(zip(dims, depths, strict=True)):
        if i:
            found |= layer_norm(f"stages.{i}.downsample.0", dims[i - 1])
            found |= conv(f"stages.{i}.downsample.1", dims[i - 1], channels, 2, bias=True)
        for j in range(depth):
            at = f"stages.{i}.blocks.{j}"
            found |= each(at, channels, "gamma") | layer_norm(f"{at}.norm", channels) | mlp(at, channels)
            if i and j == depth - 1:  # the attention block
                scales = (2, 3, 4)[i - 1]
                width = math.ceil(channels / scales)
                for k in range(scales - 1):
                    found |= conv(f"{at}.convs.{k}", width, width, 3, groups=width, bias=True)
                if i == 1:
                    found |= conv(f"{at}.pos_embd.token_projection", 64, channels, 1, bias=True)
                found |= layer_norm(f"{at}.norm_xca", channels) | each(at, channels, "gamma_xca")
                found |= {f"{at}.xca.temperature": (heads, 1, 1)}
                found |= full(f"{at}.xca.qkv", channels, 3 * channels) | full(f"{at}.xca.proj", channels, channels)
            else:
                found |= conv(f"{at}.conv_dw", channels, channels, (3, 5, 7, 9)[i], groups=channels, bias=True)
    found |= layer_norm("head.norm", dims[-1]) | full("head.fc", dims[-1], 512)
    return {f"model.{name}": shape for name, shape in found.items()}


# the table of a publication, and its number of parameters in millions where the publication or a list of models has it
PUBLISHED: dict[str, tuple[Callable[[], Shapes], float | None]] = {
    "iresnet18": (partial(iresnet, 18), 24.02),  # insightface's model zoo
    "iresnet50": (partial(iresnet, 50), 43.59),
    "iresnet100": (partial(iresnet, 100), 65.15),
    "magface_iresnet18": (partial(iresnet, 18), 24.02),
    "magface_iresnet50": (partial(iresnet, 50), 43.59),
    "magface_iresnet100": (partial(iresnet, 100), 65.15),
    "ir50": (partial(body, 50, middle=False), None),
    "ir100": (partial(body, 100, middle=False), None),
    "adaface_ir18": (partial(body, 18, middle=True), None),
    "adaface_ir50": (partial(body, 50, middle=True), None),
    "adaface_ir101": (partial(body, 100, middle=True), None),
    "mobilefacenet_linear": (mobilefacenet, None),
    # without its fc on 112×112 images, 24.5 M (yakhyo/face-recognition): 512·7 rows less
    "cosface_sphere20": (partial(cosface, (1, 2, 4, 1)), 24.50 - 512 * 7 * 512 / 1e6),
    "cosface_sphere64": (partial(cosface, (3, 7, 16, 3)), None),
    "edgeface_base": (partial(edgeface, (80, 160, 288, 584), (3, 3, 9, 3), 8), 18.23),  # the README of otroshi/edgeface
    "edgeface_s_gamma_05": (partial(edgeface, (48, 96, 160, 304), (3, 3, 9, 3), 8, 0.5), 3.65),
    "edgeface_xs": (partial(edgeface, (32, 64, 100, 192), (3, 3, 9, 3), 4), 2.24),
    "edgeface_xs_gamma_06": (partial(edgeface, (32, 64, 100, 192), (3, 3, 9, 3), 4, 0.6), 1.77),
    "edgeface_xxs": (partial(edgeface, (24, 48, 88, 168), (2, 2, 6, 2), 4), 1.24),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor]]:
    return request.param, load(request.param, random_weights_seed=0).backbone.state_dict()


def test_names_and_sizes_are_the_published_ones(published: tuple[str, dict[str, Tensor]]) -> None:
    name, state = published
    assert {key: tuple(value.shape) for key, value in state.items()} == PUBLISHED[name][0]()


def test_the_number_of_parameters_is_the_published_one(published: tuple[str, dict[str, Tensor]]) -> None:
    name, state = published
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(value.numel() for key, value in state.items() if not key.endswith(buffers))
    expected = PUBLISHED[name][1]
    assert expected is None or round(count / 1e6, 2) == pytest.approx(expected, abs=0.011)


# -- as the files wrap them --


def halved(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value.half() if value.is_floating_point() else value for key, value in state.items()}


def test_adaface_checkpoints_load(tmp_path: Path) -> None:
    """Of Lightning: `state_dict` with `model.`, beside the head."""
    state = load("adaface_ir18", random_weights_seed=1).backbone.state_dict()
    head = {"head.kernel": torch.zeros(512, 7), **{f"head.{part}": torch.ones(1) for part in ("t", "batch_mean")}}
    torch.save({"state_dict": {**halved(state, "model."), **head}, "callbacks": {}}, tmp_path / "adaface.ckpt")
    with pytest.warns(Notice, match=r"3 left out: head\.kernel \(512, 7\)"):
        loaded = load("adaface_ir18", tmp_path / "adaface.ckpt").backbone.state_dict()
    (tmp_path / "adaface.ckpt").unlink()
    torch.testing.assert_close(loaded["body.3.res_layer.4.weight"], state["body.3.res_layer.4.weight"].half().float())


def test_magface_checkpoints_load(tmp_path: Path) -> None:
    """`state_dict` with `features.module.`, beside the class weights and the optimiser."""
    state = load("magface_iresnet18", random_weights_seed=1).backbone.state_dict()
    inner = {**halved(state, "features.module."), "module.fc.weight": torch.zeros(512, 7)}
    torch.save({"epoch": 25, "arch": "iresnet18", "state_dict": inner, "optimizer": {}}, tmp_path / "magface.pth")
    with pytest.warns(Notice, match=r"1 left out: module\.fc\.weight \(512, 7\)"):
        loaded = load("magface_iresnet18", tmp_path / "magface.pth").backbone.state_dict()
    (tmp_path / "magface.pth").unlink()
    torch.testing.assert_close(loaded["fc.weight"], state["fc.weight"].half().float())


# -- what a gamma means --


def test_low_rank_layers_are_the_product_of_their_parts() -> None:
    model = load("edgeface_xs_gamma_06", random_weights_seed=0)
    layer = model.backbone.get_submodule("model.stages.1.blocks.2.xca.qkv")
    x = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    first, second = layer.linear1.weight, layer.linear2.weight
    assert first.shape == (38, 64)  # int(0.6 · 64)
    expected = x.double() @ (second.double() @ first.double()).T + layer.linear2.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-6)
