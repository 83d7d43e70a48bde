"""A mask that writes where it reads changes no bit of a network's output or gradient."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from fastadv import backends
from fastadv.models import FaceModel, load, prepare
from fastadv.models.fused_depthwise import FusedDepthwiseConv2d, fuse_depthwise
from fastadv.surrogates import FeatureDropout, StepKey, masks
from fastadv.surrogates.feature_dropout import MaskedModel
from fastadv.testing.tolerances import assert_same_bits

NETWORKS = ["mobilefacenet", "mobileface_v2", "edgeface_xs", "iresnet18", "synth-mobile", "synth-shuffle", "synth-vgg"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_network_and_gradient(name, precision, monkeypatch):
    model = load(name) if name.startswith("synth") else load(name, random_weights_seed=0)
    x = torch.rand(3, 3, *model.input_size, generator=torch.Generator().manual_seed(1))
    key = StepKey(seed=5, ids=torch.tensor([3, 4, 3]), ticks=torch.tensor([0, 7, 0]))

    def evaluated() -> tuple[Tensor, Tensor, Tensor]:
        masked = FeatureDropout(rate=0.2).bind(model, precision=precision)
        leaf = x.clone().requires_grad_(True)
        y = masked(leaf, key)
        (gradient,) = torch.autograd.grad(y[:, :7].sum(), leaf)
        with torch.no_grad():
            return y.detach(), gradient, masked(x, key)

    in_place = evaluated()
    with monkeypatch.context() as patch:
        patch.setattr(masks, "_CONVOLUTIONS", ())
        apart = evaluated()
    for one, other in zip(in_place, apart, strict=True):
        assert_same_bits(one, other)
    assert_same_bits(in_place[0], in_place[2])
    assert bool((in_place[1] != 0).any())


@pytest.mark.skipif(not (importlib.util.find_spec("triton") and backends.interpreted()), reason="needs the interpreter")
@pytest.mark.parametrize("activations", [True, False])
def test_behind_a_depthwise_convolution_whose_activation_is_fused_or_not(activations, monkeypatch):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.ReLU6(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten())
    model = FaceModel(nn.Sequential(*layers), input_size=(6, 6), mean=(0.5,) * 3, std=(0.1,) * 3, name="m").eval()
    x = torch.rand(3, 3, 6, 6)
    key = StepKey(seed=5, ids=torch.tensor([3, 4, 3]), ticks=torch.tensor([0, 7, 0]))

    def evaluated() -> tuple[Tensor, Tensor]:
        ready, draw = prepare(model, fold=False), masks.Draw()
        fuse_depthwise(ready.backbone, ready.image_shape, activations=activations)
        assert type(ready.backbone[0]) is FusedDepthwiseConv2d
        used = masks.install(ready, draw, rate=0.2, rescale=False, first_layer=1)
        leaf = x.clone().requires_grad_(True)
        y = MaskedModel(model=ready, rate=0.2, layers_used=used, draw=draw)(leaf, key)
        return y.detach(), torch.autograd.grad(y[:, :7].sum(), leaf)[0]

    in_place = evaluated()
    monkeypatch.setattr(masks, "_CONVOLUTIONS", ())
    for one, other in zip(in_place, evaluated(), strict=True):
        assert_same_bits(one, other)
    assert bool((in_place[1] != 0).any())
