"""Activations as a part of the convolution before them: the same function; and when they must not be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv import backends
from fastadv.models import FaceModel, fold_batch_norms, freeze, load, prepare, shipped_names
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d
from fastadv.models.fused_activation import ActivatedForward, fuse_activations, fusible_activations
from fastadv.models.untied_bias import UntiedBiasConv2d
from fastadv.surrogates import FeatureDropout, StepKey


def fused_in(network: nn.Module) -> set[str]:
    """The convolutions that give the output of an activation."""
    return {
        name for name, module in network.named_modules() if isinstance(vars(module).get("forward"), ActivatedForward)
    }


def evaluated(network: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = network(leaf)
    return [y.detach(), torch.autograd.grad(y.square().sum() + y.sum(), leaf)[0]]


def fused_names(network: nn.Module, keep: tuple[str, ...] = (), shape: Any = (3, 8, 8)) -> set[str]:
    """The convolutions that are fused; the network then computes what it did, forwards and backwards."""
    freeze(network)
    made = copy.deepcopy(network)
    fuse_activations(made, fusible_activations(made, keep=keep, image_shape=shape))
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # the second time as well
        for a, b in zip(evaluated(made, x), evaluated(network, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in made.named_modules()] == [name for name, _ in network.named_modules()]
    assert fused_in(network) == set()
    return fused_in(made)


class Handing(nn.Conv2d):
    """Hands on what it reads, and thereby the gradient that it gets."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Changing(nn.Conv2d):
    """Changes what it reads."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.mul_(2))


class Net(nn.Module):
    """Two convolutions, their activations, and a forward pass given by the test."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.one, self.other, self.identity = nn.PReLU(3), nn.ReLU(inplace=True), nn.Identity()
        self.block, self.idle = nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Dropout(), nn.Flatten())
        self.handing, self.changing = Handing(3, 3, 1), Changing(3, 3, 1)
        self.run = run
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def unseen(y: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # as a C++ extension would
        return y * 1.0


RUNS: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str]]] = {
    "plain": (lambda m, x: m.other(m.b(m.one(m.a(x)))), {"a", "b"}),
    "through_an_identity": (lambda m, x: m.one(m.identity(m.a(x))), {"a"}),
    "convolution_read_twice": (lambda m, x: m.one(y := m.a(x)) + y, set()),
    "identity_read_twice": (lambda m, x: m.one(y := m.identity(m.a(x))) + y, set()),
    "result_read_twice": (lambda m, x: (y := m.one(m.a(x))) + m.other(m.b(y)), {"a", "b"}),
    "convolution_called_twice": (lambda m, x: m.one(m.a(m.a(x))), set()),
    "activation_called_twice": (lambda m, x: m.one(m.b(m.one(m.a(x)))), set()),
    "something_between": (lambda m, x: m.one(m.a(x) * 2), set()),
    "no_module": (lambda m, x: F.relu(m.a(x)), set()),
    "shape_read": (lambda m, x: m.one(y := m.a(x)).reshape(y.shape), set()),
    "bias_read_elsewhere": (lambda m, x: m.one(m.a(x)) * m.a.bias.sum(), set()),
    "branch_on_a_value": (lambda m, x: m.one(m.a(x)) if x.sum() > -1e9 else x, set()),
    "read_where_torch_does_not_see": (lambda m, x: m.one(y := m.a(x)) + unseen(y), set()),
    "result_changed_in_place": (lambda m, x: m.one(m.a(x)).mul_(2), {"a"}),
    "result_changed_in_place_by_a_layer": (lambda m, x: m.other(m.one(m.a(x))), {"a"}),
    "result_changed_in_place_behind_a_view": (lambda m, x: m.one(m.a(x)).flatten(1).mul_(2), {"a"}),
    "result_changed_in_place_behind_layers": (lambda m, x: m.idle(m.one(m.a(x))).mul_(2), {"a"}),
    "result_changed_in_place_by_a_convolution": (lambda m, x: m.changing(m.one(m.a(x))), {"a"}),
    "gradient_handed_on": (lambda m, x: m.other(m.b(x)) + m.handing(m.one(m.a(x))), {"a", "b"}),
    "gradient_shared_with_a_shortcut": (lambda m, x: m.b(y := m.one(m.a(x))) + y, {"a"}),
}


@pytest.mark.parametrize("case", RUNS)
def test_fuses_only_where_it_is_right(case: str) -> None:
    run, expected = RUNS[case]
    assert fused_names(Net(run)) == expected


def test_what_is_kept_hooked_or_shared_is_left_alone() -> None:
    plain = RUNS["through_an_identity"][0]
    assert fused_names(Net(plain), keep=("one",)) == {"a"}
    assert fused_names(Net(plain), keep=("a",)) == fused_names(Net(plain), keep=("identity",)) == set()
    for name in ("a", "one"):
        network = Net(plain)
        network.get_submodule(name).register_forward_hook(lambda *_: None)
        assert fused_names(network) == set()
    network = Net(plain)
    network.again = network.one
    assert fused_names(network) == set()
    block: Callable[[Any, Tensor], Tensor] = lambda m, x: m.one(m.block(x))  # noqa: E731
    assert fused_names(Net(block)) == {"block.0"}
    assert fused_names(Net(block), keep=("block",)) == set()


def test_an_activation_that_is_kept_gives_what_it_gave_and_its_gradient() -> None:
    network = freeze(Net(RUNS["plain"][0]))
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fuse_activations(network, fusible_activations(copy.deepcopy(network), keep=("one",), image_shape=(3, 8, 8)))
    seen: list[Tensor] = []
    results = []
    for each in (network, freeze(Net(RUNS["plain"][0]))):
        each.one.register_forward_hook(lambda _m, _i, y: seen.append(y))
        each.one.register_forward_hook(lambda _m, _i, y: y.register_hook(seen.append) and None)
        evaluated(each, x)
        results.append([value.detach().clone() for value in seen])
        seen.clear()
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("convolution", [nn.ConvTranspose2d(3, 3, 3), type("Other", (nn.Conv2d,), {})(3, 3, 3)])
def test_convolutions_of_another_kind(convolution: nn.Module) -> None:
    assert fused_names(nn.Sequential(convolution, nn.ReLU()).eval()) == set()


def test_a_bias_for_each_position_is_added_by_the_activation() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(4), nn.Conv2d(4, 4, 3)).eval()
    network[0].running_mean.normal_()
    folded = fold_batch_norms(freeze(copy.deepcopy(network)), image_shape=(3, 8, 8))
    assert isinstance(folded[1], UntiedBiasConv2d)
    assert fused_names(folded) == {"1"}
    fuse_activations(folded, fusible_activations(folded, image_shape=(3, 8, 8)))
    assert vars(folded[1])["forward"].adds_bias
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(folded(x), network(x))
    with pytest.raises(ValueError, match="input: expected shape"):
        folded(torch.rand(2, 3, 9, 9))


def test_a_network_whose_copies_share_modules_is_left_alone() -> None:
    network = Net(RUNS["plain"][0])
    network.__deepcopy__ = lambda memo: network
    assert fusible_activations(network, image_shape=(3, 8, 8)) == []
    assert fused_in(network) == set()


def test_a_network_that_cannot_run_is_left_alone() -> None:
    assert fusible_activations(Net(lambda m, x: m.one(m.a(x)) @ x[0, 0, 0, :1]), image_shape=(3, 8, 8)) == []


@pytest.mark.parametrize("name", ["mobilefacenet", "mobileface_v2", "iresnet18", "sphereface20", *shipped_names()])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prepared_network_has_the_bits_of_one_that_is_not_fused(name: str, precision: str) -> None:
    model = load(name, random_weights_seed=1).eval()
    fused, plain = prepare(model, precision=precision), prepare(model, precision=precision, fuse=False)
    assert fused_in(fused)
    assert not fused_in(plain)
    untied = any(isinstance(module, UntiedBiasConv2d) for module in plain.modules())
    x = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(0))
    for a, b in zip(evaluated(fused, x), evaluated(plain, x), strict=True):
        # a bias for each position is added in float32, and the sum rounded once
        torch.testing.assert_close(
            a, b, rtol=0, atol=0.05 * float(b.abs().max()) if untied and precision == "bf16" else 0
        )


def small(*layers: nn.Module) -> FaceModel:
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FaceModel(backbone, input_size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), name="m").eval()


def test_a_strided_depthwise_convolution_gets_its_twin_and_its_activation() -> None:
    model = small(nn.Conv2d(3, 3, 3, 2, groups=3), nn.ReLU6(), nn.Conv2d(3, 4, 1))
    prepared = prepare(model, precision="bf16")
    assert isinstance(prepared.backbone[0], FrozenDepthwiseConv2d)
    assert fused_in(prepared.backbone) == {"0"}
    x = torch.rand(2, 3, 8, 8)
    for a, b in zip(evaluated(prepared, x), evaluated(prepare(model, precision="bf16", fuse=False), x), strict=True):
        assert torch.equal(a, b)


def test_a_prepared_network_may_be_prepared_again_and_copied() -> None:
    model = small(nn.Conv2d(3, 3, 3, 2, groups=3), nn.PReLU(3), nn.Conv2d(3, 4, 1), nn.ReLU())
    prepared, x = prepare(model), torch.rand(2, 3, 8, 8)
    for again in (prepare(prepared), copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert fused_in(again.backbone) == {"0", "2"}
        assert all(map(torch.equal, evaluated(again, x), evaluated(prepared, x)))
        assert again.backbone[0].forward.convolution is again.backbone[0]
    half = prepare(prepared, precision="bf16")
    assert isinstance(half.backbone[0], FrozenDepthwiseConv2d)
    assert all(map(torch.equal, evaluated(half, x), evaluated(prepare(model, precision="bf16"), x)))
    assert fused_in(prepare(prepared, keep=("0",)).backbone) == {"2"}
    assert fused_in(prepare(prepared, fuse=False).backbone) == set()


def test_the_state_is_that_of_the_network_that_is_not_fused() -> None:
    model = load("iresnet18", random_weights_seed=1).eval()
    states = [prepare(model, fuse=fuse).state_dict() for fuse in (True, False)]
    assert list(states[0]) == list(states[1])
    assert all(map(torch.equal, states[0].values(), states[1].values()))


def test_without_a_kernel_the_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(nn.Conv2d(3, 3, 3), nn.PReLU(3)), torch.rand(2, 3, 8, 8)
    expected = evaluated(prepare(model), x)
    monkeypatch.setattr(backends, "resolve", lambda *_: "reference")
    plain = prepare(model)
    assert fused_in(plain) == set()
    assert type(plain.backbone[1]) is nn.PReLU
    assert all(map(torch.equal, evaluated(plain, x), expected))


def test_images_of_any_memory_order() -> None:
    model = prepare(small(nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(4), nn.Conv2d(4, 4, 3), nn.ReLU6()))
    x = torch.rand(2, 3, 16, 16)[..., ::2, ::2]
    expected = evaluated(model, x.contiguous())
    for arranged in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().mT):
        for a, b in zip(evaluated(model, arranged), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_against_float64() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(4)),
        *(nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3, groups=4), nn.LeakyReLU(0.3)),
    )
    for norm in (network[0], network[2]):
        norm.running_mean.normal_()
    network[3].weight.data.copy_(torch.tensor([-0.5, 0.0, 0.25, 1.5]))
    model, x = small(*network), torch.rand(2, 3, 8, 8)
    prepared = prepare(model)
    assert fused_in(prepared.backbone) == {"1", "4", "6"}
    for a, b in zip(evaluated(prepared, x), evaluated(copy.deepcopy(model).double(), x.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_it_compiles_for_any_number_of_images() -> None:
    layers = (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(4), nn.Conv2d(4, 4, 3), nn.ReLU())
    model, x = prepare(small(*layers)), torch.rand(2, 3, 8, 8)
    assert len(fused_in(model)) == 2
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in (x, torch.cat([x, x])):
        for a, b in zip(evaluated(compiled, batch), evaluated(model, batch), strict=True):
            torch.testing.assert_close(a, b)


def test_masks_and_readers_of_convolutions_get_them_bare() -> None:
    model = load("sphereface20", random_weights_seed=1).eval()
    assert not fused_in(prepare(model, fuse=False))
    x, key = torch.rand(2, *model.image_shape), StepKey(seed=5, ids=torch.arange(2), ticks=torch.zeros(2).long())
    results = []
    for each in (model, prepare(model)):
        masked = FeatureDropout(rate=0.1).bind(each)
        assert not fused_in(masked.model)
        results.append(evaluated(lambda t, masked=masked: masked(t, key), x))
    assert all(map(torch.equal, *results))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["mobilefacenet", "iresnet18", "sphereface20", "synth-vgg"])
def test_on_cuda_a_prepared_network_computes_what_the_cpu_does(name: str, precision: str) -> None:
    model = load(name, random_weights_seed=1).eval()
    x = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(0))
    expected = evaluated(prepare(model, precision=precision), x)
    ready = prepare(copy.deepcopy(model).to("cuda"), precision=precision)
    fused = [vars(ready.get_submodule(name))["forward"] for name in fused_in(ready)]
    assert fused
    assert all(each.adds_bias or each.convolution.bias is None for each in fused)
    made = evaluated(ready, x.cuda())
    tolerance = {"fp32": 1e-3, "bf16": 0.1}[precision]
    for a, b in zip(made, expected, strict=True):
        assert (a.cpu() - b).norm() <= tolerance * b.norm()
    for a, b in zip(evaluated(ready.cpu(), x), expected, strict=True):  # a network that is moved back
        assert (a - b).norm() <= tolerance * b.norm()
