"""Networks whose output for an image hangs on its neighbours or on chance are refused, by the name of the part."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastadv as fa
from fastadv.core.errors import ArgumentError
from fastadv.models import fixed_batches, load, prepare
from fastadv.models.independence import check_independent

SIZE = (16, 16)


def wrapped(*parts: nn.Module, head: nn.Module | None = None) -> fa.FaceModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), *parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12))
    return fa.FaceModel(net, input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, name="mine", head=head).eval()


class Does(nn.Module):
    """A function of the batch between the layers."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Around(nn.Module):
    """A container whose own code, between two layers, is at fault."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.dropout(self.one(x), 0.2))


class Counts(nn.Module):
    """A layer that changes with the number of its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (
            [nn.BatchNorm2d(8, track_running_stats=False)],
            r"company of other images.*'backbone\.1' \(BatchNorm2d\).*runn",
        ),
        ([nn.ReLU(), Does(lambda y: y - y.mean(0))], r"company of other images.*'backbone\.2' \(Does\)"),
        ([Does(lambda y: y / y.abs().amax())], r"company of other images.*'backbone\.1' \(Does\)"),
        ([Does(lambda y: y.sort(0).values)], r"company of other images.*'backbone\.1' \(Does\)"),
        ([Does(lambda y: y + 0.01 * y.roll(1, 0))], r"company of other images.*'backbone\.1' \(Does\)"),
        ([Does(lambda y: F.dropout(y, 0.1))], r"another output each time.*'backbone\.1' \(Does\).*training=self"),
        ([Does(lambda y: y + 0.01 * torch.randn_like(y))], r"another output each time.*'backbone\.1' \(Does\)"),
        ([Around()], r"another output each time.*'backbone\.1' \(Around\)"),
        ([Counts()], r"another output each time.*'backbone\.1' \(Counts\)"),
    ],
)
def test_neighbours_and_chance_are_refused_by_the_name_of_the_part(parts, text):
    model = wrapped(*parts)
    before = torch.get_rng_state()
    with pytest.raises(ArgumentError, match=text):
        prepare(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())
    x = torch.rand(2, 3, *SIZE)
    with pytest.raises(ArgumentError, match=text):
        fa.run(fa.attacks.fgsm(), fa.Impersonate(x.roll(1, 0), threshold=0.9), model, x)


def test_a_head_is_a_part_of_the_network():
    with pytest.raises(ArgumentError, match=r"'head\.0' \(BatchNorm1d\)"):
        prepare(wrapped(head=nn.Sequential(nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, 3))))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_bfloat16_too(precision):
    with pytest.raises(ArgumentError, match="company of other images"):
        prepare(wrapped(nn.BatchNorm2d(8, track_running_stats=False)), precision=precision)
    prepare(wrapped(nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.Dropout(0.5)), precision=precision)


@pytest.mark.parametrize("name", ["synth-mobile", "synth-resnet", "synth-vgg", "synth-shuffle"])
def test_networks_that_treat_images_alone_pass(name):
    prepare(load(name))


def test_rounding_and_numbers_that_are_not_finite_pass():
    prepare(wrapped(Does(lambda y: y + 1e-7 * y.mean(0))))
    prepare(wrapped(Does(lambda y: y * torch.inf)))
    prepare(wrapped(Does(torch.zeros_like)))


def test_a_model_is_looked_at_once():
    passes: list[int] = []
    model = wrapped(Does(lambda y: (passes.append(len(y)), y)[1]))
    prepare(prepare(model, fold=False))
    assert passes.count(2) == 2  # two images, twice
    prepare(model)
    assert passes.count(2) == 2


def test_a_network_that_cannot_take_two_images_is_named():
    model = wrapped(Does(lambda y: y.view(1, 8, 7, 7).expand(len(y), -1, -1, -1)))
    with pytest.raises(ArgumentError, match=r"two images of input_size=\(16, 16\), got 'mine' that fails: "):
        check_independent(model)
    with pytest.raises(
        ArgumentError, match=r"head: expected a module that takes the 12 features of 'mine', .* fails: mat1"
    ):
        prepare(wrapped(head=nn.Linear(13, 4)))
    with pytest.raises(ArgumentError, match=r"head: expected an output of shape \(N, K\) with N=2, got \(2, 3, 4\)"):
        prepare(wrapped(head=nn.Unflatten(1, (3, 4))))


def test_embeddings_in_fixed_batches_are_those_of_float32_whatever_the_callers_modes():
    ready, x = prepare(load("synth-mobile")), torch.rand(3, 3, 112, 112)
    plain = fixed_batches(ready, x, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(fixed_batches(ready, x, 4), plain)
