"""`prepare` and the folding: the same function, made fast; and when it must not fold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.core.errors import ArgumentError
from fastadv.models import FaceModel, fold_batch_norms, in_precision, load, prepare, shipped_names

IRESNETS = ("iresnet18", "iresnet34", "iresnet50", "iresnet100")


def randomise_batch_norms(module: nn.Module, *, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            with torch.no_grad():
                for tensor in (norm.running_var, norm.weight):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (norm.running_mean, norm.bias):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(4))


def batch_norms(module: nn.Module) -> list[str]:
    return [n for n, m in module.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


EACH_IRESNET = [*IRESNETS[:3], pytest.param(IRESNETS[3], marks=pytest.mark.slow)]


# test_architectures.py has the networks of other layouts and image sizes.
@pytest.mark.parametrize("name", ["mobilefacenet", "mobileface_v2", "edgeface_xs", *EACH_IRESNET, *shipped_names()])
def test_prepared_model_computes_the_same(name: str) -> None:
    model = load(name, random_weights_seed=1)
    randomise_batch_norms(model)
    prepared = prepare(model)
    x = images(1)
    with torch.no_grad():
        expected, got = model.features(x), prepared.features(x)
    assert (got - expected).norm() <= 1e-5 * expected.norm()
    assert not batch_norms(prepared)


@pytest.mark.parametrize("name", ["mobilefacenet", "mobileface_v2", "edgeface_xs", "iresnet18"])
def test_bf16_is_close_and_comes_back_in_float32(name: str) -> None:
    model = load(name, random_weights_seed=1)
    randomise_batch_norms(model)
    prepared = prepare(model, precision="bf16")
    assert prepared.dtype == torch.bfloat16
    x = images().requires_grad_()
    y = prepared(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    with torch.no_grad():
        assert ((y * model(images())).sum(1) > 0.999).all()
    assert torch.equal(prepare(prepared, precision="bf16")(images()), y)


@pytest.mark.parametrize("name", ["mobilefacenet", "mobileface_v2", "edgeface_xs", "iresnet18", "synth-vgg"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_another_precision_of_a_prepared_model_is_that_of_the_original(name: str, channels_last: bool) -> None:
    model = load(name) if name in shipped_names() else load(name, random_weights_seed=1)
    randomise_batch_norms(model)
    with torch.no_grad():
        for slopes in (m.weight for m in model.modules() if isinstance(m, nn.PReLU)):
            slopes.uniform_(-0.3, 0.6)  # no numbers of bfloat16
    layers = model.layers[1:3]
    ready = prepare(model, channels_last=channels_last, keep=layers)
    for precision in ("bf16", "fp32"):
        expected = prepare(model, precision=precision, channels_last=channels_last, keep=layers)
        got = in_precision(ready, precision, channels_last=channels_last)
        found = []
        for each in (expected, got):
            x = images(1).requires_grad_()
            y = each(x)
            found.append((y, *torch.autograd.grad(y[:, 0].sum(), x)))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)
        assert got.precision == precision
        states = (expected.state_dict(), got.state_dict())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert ready.dtype == torch.float32  # is left as it is
    assert torch.equal(ready(images(1)), expected(images(1)))  # of "fp32", which is also what `ready` is


def test_another_precision_is_refused_as_by_prepare() -> None:
    ready = prepare(load("synth-mobile"))
    with pytest.raises(ValueError, match=r"precision: expected one of fp32, tf32, bf16, got 'fp16'"):
        in_precision(ready, "fp16")
    with pytest.raises(ValueError, match="precision: expected a model on a CUDA device with 'tf32', got one on 'cpu'"):
        in_precision(ready, "tf32")
    with pytest.raises(ValueError, match=r"prepared: expected a model prepared in 'fp32', got one in 'bf16'"):
        in_precision(in_precision(ready, "bf16"), "fp32")


# As counted in the tables of the architectures: all that there are. An IR-ResNet has one behind each convolution and
# linear layer, and one before the first convolution of each block and before the linear layer.
FOLDED = {
    "mobilefacenet": 51,
    "mobileface_v2": 38,
    "edgeface_xs": 0,
    "iresnet18": 22 + 8 + 1,
    "iresnet50": 54 + 24 + 1,
    "se_iresnet50": 53 + 24 + 1,
    "ir_se50": 29 + 24 + 1,
    "se_resnet50": 53,
    "inception_resnet_v1": 112,
    "sphereface20": 0,
    "mobilenet_v1": 29 + 1,
    "synth-mobile": 23,
    "synth-resnet": 16 + 6 + 1,
    "synth-vgg": 6,
    "synth-shuffle": 30,
}


@pytest.mark.parametrize("name", FOLDED)
def test_how_many_batch_norms_are_folded(name: str) -> None:
    model = load(name, random_weights_seed=1)
    assert len(batch_norms(model)) == FOLDED[name]
    fold_batch_norms(model.backbone, image_shape=model.image_shape)
    assert not batch_norms(model)


def test_gradient_of_the_prepared_model() -> None:
    model = load("mobileface_v2", random_weights_seed=1)
    randomise_batch_norms(model)
    x = images().requires_grad_()
    expected, got = (torch.autograd.grad(m(x)[:, :9].sum(), x)[0] for m in (model, prepare(model)))
    assert (got - expected).norm() <= 1e-4 * expected.norm()


def test_the_original_is_left_alone() -> None:
    model = load("mobileface_v2", random_weights_seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.backbone.conv1.weight.grad = torch.ones(32, 3, 3, 3)
    prepared = prepare(model, precision="bf16")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p.requires_grad for p in model.parameters())
    assert model.precision == "fp32"
    assert prepared.precision == "bf16"
    assert not any(p.requires_grad or p.grad is not None for p in prepared.parameters())
    assert not any(module.training for module in prepared.modules())


def test_layout() -> None:
    model = load("iresnet18", random_weights_seed=1)
    assert prepare(model).backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert prepare(model, channels_last=False).backbone.layer1[0].conv1.weight.is_contiguous()


def test_folding_can_be_switched_off() -> None:
    model = load("mobileface_v2", random_weights_seed=1)
    assert batch_norms(prepare(model, fold=False)) == batch_norms(model)


def test_taps_see_what_they_saw() -> None:
    model = load("mobilefacenet", random_weights_seed=1)
    randomise_batch_norms(model)

    def tapped(m: FaceModel) -> list[Tensor]:
        outputs: list[Tensor] = []
        hooks = [
            m.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, out: outputs.append(out))
            for layer in m.layers
        ]
        with torch.no_grad():
            m(images())
        for hook in hooks:
            hook.remove()
        return outputs

    for expected, got in zip(tapped(model), tapped(prepare(model)), strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_a_head_is_prepared_too() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(4, 6)
    model = FaceModel(backbone, input_size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), name="m", head=head).eval()
    prepared = prepare(model, precision="bf16")
    x = torch.rand(2, 3, 8, 8)
    assert prepared.logits(x).dtype == torch.float32
    assert not any(p.requires_grad for p in prepared.parameters())
    torch.testing.assert_close(prepared.logits(x), model.logits(x), rtol=0.05, atol=0.02)


# -- when it must not fold --


class Net(nn.Module):
    """A convolution, a batch norm, and a forward pass given by the test."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.seq = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.run = run
        randomise_batch_norms(self)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def untraceable(x: Tensor) -> Tensor:
    return x if x.sum() > -1e9 else -x  # a branch on a value


def unseen(y: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # as a C++ extension would
        return y * 1.0


RUNS: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str]]] = {
    # what runs, and the batch norms that may be folded
    "plain": (lambda m, x: m.seq(m.bn(m.conv(x))), {"bn", "seq.1"}),
    "convolution_read_twice": (lambda m, x: m.seq(m.bn(y := m.conv(x)) + y), {"seq.1"}),
    "convolution_called_twice": (lambda m, x: m.seq(m.bn(m.conv(m.conv(x)))), {"seq.1"}),
    "batch_norm_called_twice": (lambda m, x: m.bn(m.seq(m.bn(m.conv(x)))), {"seq.1"}),
    "something_between": (lambda m, x: m.seq(m.bn(F.relu(m.conv(x)))), {"bn", "seq.1"}),
    "weight_read_elsewhere": (lambda m, x: m.seq(m.bn(m.conv(x))) * m.conv.weight.sum(), {"seq.1"}),
    "inside_of_a_container_read": (lambda m, x: m.seq(x) + m.seq[0](x), set()),
    "untraceable": (lambda m, x: m.seq(untraceable(m.bn(m.conv(x)))), {"seq.1"}),
    "untraceable_and_read_inside": (lambda m, x: untraceable(m.seq(x) + m.seq[0](x)), set()),
    "before_the_convolution": (lambda m, x: m.conv(m.bn(x)), {"bn"}),
    "branch_on_a_shape": (lambda m, x: m.seq(m.bn(m.conv(x)) if len(x) else x), {"bn", "seq.1"}),
    "loop_over_the_images": (
        lambda m, x: torch.stack([m.seq(m.bn(m.conv(x)))[i] for i in range(len(x))]),
        {"bn", "seq.1"},
    ),
    "in_place": (lambda m, x: m.seq(m.bn(m.conv(x)).relu_().add_(x)), {"bn", "seq.1"}),
    "convolution_changed_in_place": (lambda m, x: m.seq(m.bn(m.conv(x).relu_())), {"bn", "seq.1"}),
    "shape_of_the_convolution_read": (lambda m, x: m.seq(m.bn(y := m.conv(x)).reshape(y.shape)), {"seq.1"}),
    "through_an_identity": (lambda m, x: m.seq(m.bn(m.conv(x).contiguous())), {"bn", "seq.1"}),
    "read_where_torch_does_not_see": (lambda m, x: m.seq(m.bn(y := m.conv(x))) + unseen(y), set()),
    "another_way_for_other_values": (lambda m, x: m.seq(m.bn(m.conv(x)) if x.max() < 99 else m.conv(x)), {"seq.1"}),
}


@pytest.mark.parametrize("case", RUNS)
def test_folds_only_where_it_is_right(case: str) -> None:
    run, foldable = RUNS[case]
    network = Net(run).double()
    folded = fold_batch_norms(copy.deepcopy(network), image_shape=(3, 8, 8))
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-12, atol=1e-12)
    assert set(batch_norms(network)) - set(batch_norms(folded)) == foldable


def test_a_backbone_that_cannot_run_is_refused_by_name_and_is_not_folded() -> None:
    model = FaceModel(Net(lambda m, x: m.bn(m.conv(x)) @ x[0, 0, 0, :1]), mean=(0,) * 3, std=(1,) * 3, name="m").eval()
    with pytest.raises(ArgumentError, match="model: expected a network that takes two images .* got 'm' that fails"):
        prepare(model)
    assert batch_norms(fold_batch_norms(model.backbone)) == batch_norms(model.backbone)


class Counting(nn.Module):
    """Counts its calls, and keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.calls, self.last = 0, None
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, x
        self.seen += len(x)
        return self.bn(self.conv(x))


def test_folding_runs_a_copy_and_leaves_nothing_behind() -> None:
    network = Counting().eval()
    assert batch_norms(fold_batch_norms(network)) == []
    assert (network.calls, network.last, float(network.seen)) == (0, None, 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class Shared(nn.Module):
    """One convolution under two names, with a batch norm after each."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 3, 1)
        self.first = nn.Sequential(conv, nn.BatchNorm2d(3))
        self.second = nn.Sequential(conv, nn.BatchNorm2d(3))
        randomise_batch_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class UntraceableShared(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return untraceable(super().forward(x))


@pytest.mark.parametrize("network", [Shared().eval(), UntraceableShared().eval()], ids=["traced", "walked"])
def test_a_shared_convolution_is_not_folded(network: nn.Module) -> None:
    folded = fold_batch_norms(copy.deepcopy(network), image_shape=(3, 4, 4))
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(folded(x), network(x))
    assert len(batch_norms(folded)) == 2


def test_a_tapped_convolution_is_not_folded() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    model = FaceModel(backbone, input_size=(5, 5), mean=(0, 0, 0), std=(1, 1, 1), name="m", layers=("0",)).eval()
    assert batch_norms(prepare(model)) == ["backbone.1"]


def test_a_hooked_convolution_is_not_folded() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    backbone[0].register_forward_hook(lambda *_: None)
    assert batch_norms(fold_batch_norms(backbone)) == ["1"]


def test_a_batch_norm_without_statistics_is_not_folded() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert batch_norms(fold_batch_norms(backbone)) == ["1"]


def test_linear_and_batch_norm_without_affine() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.BatchNorm1d(5, affine=False)).eval()
    network[2].running_mean.normal_()
    network[2].running_var.uniform_(0.5, 2)
    folded = fold_batch_norms(copy.deepcopy(network), image_shape=(3, 2, 2))
    x = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(folded(x), network(x))
    assert not batch_norms(folded)


# -- what it refuses --


def test_refuses_training_mode() -> None:
    model = load("mobileface_v2", random_weights_seed=0)
    with pytest.raises(
        ValueError, match="model: expected one in evaluation mode, got one that is in training mode, .*call .eval"
    ):
        prepare(model.train())
    model.eval()
    model.backbone.bn1.train()
    with pytest.raises(ValueError, match=r"got one whose submodule 'backbone\.bn1' is in training mode"):
        prepare(model)


def test_refuses_other_precisions() -> None:
    model = load("mobileface_v2", random_weights_seed=0)
    with pytest.raises(ValueError, match=r"precision: expected one of fp32, tf32, bf16, got 'fp16'"):
        prepare(model, precision="fp16")
    with pytest.raises(ValueError, match="precision: expected a model on a CUDA device with 'tf32', got one on 'cpu'"):
        prepare(model, precision="tf32")
    with pytest.raises(ValueError, match=r"model: expected one that is not rounded for 'fp32', got .* in bf16"):
        prepare(prepare(model, precision="bf16"))


def test_refuses_a_bare_module() -> None:
    with pytest.raises(TypeError, match=r"model: expected a FaceModel, got Linear"):
        prepare(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_is_a_mark_on_cuda() -> None:
    model = load("mobileface_v2", random_weights_seed=0, device="cuda")
    prepared = prepare(model, precision="tf32")
    assert prepared.precision == "tf32"
    assert prepared.dtype == torch.float32
