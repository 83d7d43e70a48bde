"""Folded batch norms in prepared models, and for those who use them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from batch_norms import batch_norms, both, error, randomised
from torch import Tensor, nn

import fastadv as fa
from fastadv.attacks.feature_goals import MatchFeatures
from fastadv.attacks.optimisation_catalog import df
from fastadv.models import FaceModel, load, prepare
from fastadv.models.outputs import at_layer, output_of
from fastadv.models.untied_bias import UntiedBiasConv2d
from fastadv.studies.detection.features import extract


@pytest.mark.parametrize("name", ["iresnet50", "ir_se50"])
def test_the_error_of_a_prepared_network_is_that_of_float32(name: str) -> None:
    model = load(name, random_weights_seed=1)
    randomised(model)
    for activation in model.modules():
        if isinstance(activation, nn.PReLU):  # without its kink, where rounding decides which derivative is taken
            nn.init.ones_(activation.weight)
    x = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(4))
    got, plain = both(prepare(model).features, x), both(model.features, x)
    expected = both(copy.deepcopy(model).double().features, x.double())
    assert not batch_norms(prepare(model))
    for prepared, single, exact in zip(got, plain, expected, strict=True):
        assert error(prepared, exact) <= max(1e-6, 3 * error(single, exact))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bits_do_not_depend_on_the_slot(precision: str) -> None:
    ready = prepare(load("synth-resnet"), precision=precision)
    assert sum(isinstance(module, UntiedBiasConv2d) for module in ready.modules()) == len(ready.layers)
    x = torch.rand(5, 3, 112, 112, generator=torch.Generator().manual_seed(3)).to(memory_format=torch.channels_last)
    order = torch.tensor([3, 0, 4, 2, 1])
    weights = torch.rand(1, 128, generator=torch.Generator().manual_seed(4))

    def evaluated(batch: Tensor) -> tuple[Tensor, Tensor]:
        leaf = batch.clone().requires_grad_()
        y = ready(leaf)
        return y.detach(), torch.autograd.grad((y * weights).sum(), leaf)[0]

    for one, other in zip(evaluated(x), evaluated(x[order]), strict=True):
        assert torch.equal(one[order], other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(precision: str) -> None:
    net = load("synth-resnet", device="cuda")
    ready = prepare(net, precision=precision)
    assert not batch_norms(ready)
    x = torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(3)).cuda()
    with torch.no_grad():
        assert error(ready(x), net.double()(x.double())) < 2e-2


class Before(nn.Module):
    """A batch norm that nothing can be folded into but the convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(8))
        self.bn, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, 2, 1)
        self.fc = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(self.bn(self.stem(x))).flatten(1))


def model(**options: Any) -> FaceModel:
    network = randomised(Before())
    return FaceModel(network, input_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, name="m", **options).eval()


def pictures(seed: int = 0) -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer", ["stem", "bn", "conv"])
def test_a_prepared_model_keeps_what_it_is_told_to(layer: str) -> None:
    x = pictures()
    expected = output_of(model(), at_layer(layer), x)
    for ready in (prepare(model(), keep=(layer,)), prepare(model(layers=(layer,)))):
        torch.testing.assert_close(output_of(ready, at_layer(layer), x), expected, rtol=1e-5, atol=1e-5)
        assert batch_norms(ready) == (["backbone.bn"] if layer == "bn" else [])
    assert batch_norms(prepare(model())) == []


def test_an_attack_on_a_layer_compares_what_the_layer_gives() -> None:
    net, guides = model(), pictures(seed=2)
    with torch.no_grad():
        features = output_of(net, at_layer("bn"), guides)
        far = (output_of(net, at_layer("bn"), pictures()) - features).norm(dim=1)
    made = fa.run(df(eps=8 / 255, steps=5), MatchFeatures(features, layer="bn"), net, pictures())
    torch.testing.assert_close(made.score_before, far, rtol=1e-3, atol=1e-3)  # of images at 8 bits
    assert bool((made.score_after < 0.95 * made.score_before).all())


def test_features_of_a_study_are_those_of_the_layer() -> None:
    net = model(head=nn.Linear(12, 5))
    made = extract(net, ("bn",), ["a", "b", "c", "d"], pictures())
    with torch.no_grad():
        expected = net.backbone.bn(net.backbone.stem((pictures() - 0.5) / 0.5)).mean((2, 3))
    torch.testing.assert_close(made.values[0], expected, rtol=1e-5, atol=1e-5)
