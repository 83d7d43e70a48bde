"""The skip gradient method against its closed form, and on real architectures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastadv.models import FaceModel, load, prepare
from fastadv.surrogates.feature_dropout import FeatureDropout
from fastadv.surrogates.key import StepKey
from fastadv.surrogates.skip_gradient import ScaledGradient, SkipGradient

SIZE = (2, 2)
WIDTH = 3 * 4


class Linear(nn.Module):
    """Residual blocks without nonlinearities: ``x + W x``, one with a projection, and one inside of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64) for _ in range(6)]
        self.w1, self.w2, self.projection, self.w3, self.outer, self.inner = layers

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = x + self.w1(x)
        y = self.w3(self.w2(x))
        y += self.projection(x)
        z = self.outer(y)
        return y + (z + self.inner(z))


def face_model(backbone: nn.Module, size: tuple[int, int] = SIZE) -> FaceModel:
    return FaceModel(backbone, input_size=size, mean=(0, 0, 0), std=(1, 1, 1), name="m").eval()


def gradient(model: FaceModel, x: Tensor, g: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model.features(leaf), leaf, g)[0]


@pytest.mark.parametrize("gamma", [0.3, 0.75, 1.0])
def test_closed_form(gamma):
    backbone = Linear()
    model = SkipGradient(gamma=gamma).bind(face_model(backbone))
    x, g = torch.rand(2, 3, *SIZE, dtype=torch.float64), torch.rand(2, WIDTH, dtype=torch.float64)
    assert torch.equal(model.features(x), face_model(backbone).features(x))
    one = torch.eye(WIDTH, dtype=torch.float64)
    w = {name: layer.weight.detach() for name, layer in backbone.named_children()}
    jacobian = one + gamma * w["w1"]
    jacobian = (w["projection"] + gamma * w["w3"] @ w["w2"]) @ jacobian
    jacobian = (one + gamma * (one + gamma * w["inner"]) @ w["outer"]) @ jacobian
    expected = (g @ jacobian).view(2, 3, *SIZE)
    torch.testing.assert_close(gradient(model, x, g), expected, rtol=1e-12, atol=1e-13)


def test_the_original_is_left_alone():
    original = face_model(Linear())
    x, g = torch.rand(1, 3, *SIZE, dtype=torch.float64), torch.ones(1, WIDTH, dtype=torch.float64)
    before = gradient(original, x, g)
    made = SkipGradient().bind(original)
    assert torch.equal(gradient(original, x, g), before)
    assert not any(isinstance(module, ScaledGradient) for module in original.modules())
    assert not torch.allclose(gradient(made, x, g), before)
    assert not any(module.training for module in made.modules())


BRANCHES = {"mobilefacenet": 12, "iresnet18": 8, "edgeface_xs": 21, "synth-resnet": 6}


@pytest.mark.parametrize("name", BRANCHES)
def test_architectures_keep_their_bits(name):
    model = load(name, random_weights_seed=3)
    made = SkipGradient().bind(model)
    assert sum(isinstance(module, ScaledGradient) for module in made.modules()) == BRANCHES[name]
    x = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(made(x), model(x))


@pytest.mark.parametrize("name", ["synth-mobile", "iresnet18"])
def test_composes_with_prepare(name):
    model = load(name, random_weights_seed=None if name.startswith("synth") else 0)
    made = prepare(SkipGradient().bind(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    x, g = torch.rand(2, 3, 112, 112), torch.rand(2, model.embedding_size)
    expected = gradient(SkipGradient().bind(model), x, g)
    assert (gradient(made, x, g) - expected).norm() <= 1e-4 * expected.norm()
    # and the other way round
    other = SkipGradient().bind(prepare(model))
    assert (gradient(other, x, g) - expected).norm() <= 1e-4 * expected.norm()


def test_composes_with_feature_dropout():
    model = load("synth-resnet")
    x, g = torch.rand(2, 3, 112, 112), torch.rand(2, 128)
    key = StepKey(seed=3, ids=torch.arange(2), ticks=torch.tensor([5, 6]))

    def run(surrogate: FaceModel) -> tuple[Tensor, Tensor]:
        masked = FeatureDropout(rate=0.1).bind(surrogate)
        leaf = x.clone().requires_grad_()
        y = masked.features(leaf, key)
        return y.detach(), torch.autograd.grad(y, leaf, g)[0]

    plain, same, scaled = run(model), run(SkipGradient(gamma=1.0).bind(model)), run(SkipGradient().bind(model))
    assert torch.equal(same[0], plain[0])
    assert torch.equal(scaled[0], plain[0])
    torch.testing.assert_close(same[1], plain[1])
    assert (scaled[1] - plain[1]).norm() > 0.1 * plain[1].norm()


def test_can_be_given_twice():
    backbone = Linear()
    once = SkipGradient(gamma=0.25).bind(face_model(backbone))
    twice = SkipGradient(gamma=0.5).bind(SkipGradient(gamma=0.5).bind(face_model(backbone)))
    x, g = torch.rand(1, 3, *SIZE, dtype=torch.float64), torch.ones(1, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(gradient(twice, x, g), gradient(once, x, g))


def test_only_taps_that_are_still_called_are_left():
    model = load("synth-resnet")
    assert SkipGradient().bind(model).layers == ()
    named = FaceModel(
        model.backbone, mean=(0, 0, 0), std=(1, 1, 1), name="m", layers=("layer1.0", "layer1.0.bn3")
    ).eval()
    assert SkipGradient().bind(named).layers == ("layer1.0.bn3",)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_refuses_models():
    with pytest.raises(TypeError, match="model: expected a FaceModel, got Linear"):
        SkipGradient().bind(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="model: expected residual branches to skip the gradient of, got 'synth-vgg' without"
    ):
        SkipGradient().bind(load("synth-vgg"))
    with pytest.raises(ValueError, match="model: expected a backbone that can be traced, .*, got 'm', which cannot"):
        SkipGradient().bind(face_model(Branching()))
    with pytest.raises(
        ValueError, match=r"model: expected one in evaluation mode, got 'm' in training mode; call \.eval\(\)"
    ):
        SkipGradient().bind(face_model(Linear()).train())


@pytest.mark.parametrize("gamma", [0.0, 1.1, float("nan"), "0.3"])
def test_refuses_gamma(gamma):
    with pytest.raises(ValueError, match="gamma: expected a number in"):
        SkipGradient(gamma=gamma)
