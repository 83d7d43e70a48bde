"""DFANet's masks against hooks that multiply by the same masks in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.models import FaceModel, freeze, load, prepare
from fastadv.ops.reference.mask import keep_mask
from fastadv.surrogates.feature_dropout import FeatureDropout, MaskedModel
from fastadv.surrogates.key import StepKey

RATE, SEED = 0.1, 11


def step_key(count: int, *, first: int = 0, tick: int = 5, seed: int = SEED) -> StepKey:
    ids = torch.arange(first, first + count) * 2**33 + 1
    return StepKey(seed=seed, ids=ids, ticks=torch.arange(tick, tick + count))


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor in (layer.running_var, layer.weight):
                    if tensor is not None:
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (layer.running_mean, layer.bias):
                    if tensor is not None:
                        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
            if isinstance(layer, nn.PReLU):
                layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) - 0.3)
    return module


def untraceable(x: Tensor) -> Tensor:
    return x if x.sum() > -1e9 else -x  # a branch on a value


class Net(nn.Module):
    """Everything that can follow a convolution."""

    def __init__(self, enter: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = enter
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn1, self.relu6 = nn.BatchNorm2d(8), nn.ReLU6()
        self.project = nn.Conv2d(8, 12, 1)
        self.bn2 = nn.BatchNorm2d(12)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12))
        self.before, self.bare, self.prelu = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, padding=1), nn.PReLU()
        self.rectified = nn.Sequential(nn.Conv2d(12, 12, 3), nn.BatchNorm2d(12, affine=False), nn.ReLU(inplace=True))
        self.swish = nn.Sequential(nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12), nn.Hardswish())
        self.read_twice, self.bn3 = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)
        self.called_twice = nn.Sequential(nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12))
        self.positions = nn.Conv2d(2, 12, 1)
        self.register_buffer("table", torch.rand(1, 2, 6, 6))
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(12 * 36, 7), nn.BatchNorm1d(7))
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.enter(x))
        x = self.bn2(self.project(self.relu6(self.bn1(self.depthwise(x))))) + self.shortcut(x)
        x = self.prelu(self.bare(self.before(x)))
        x = self.swish(self.rectified(x)) + self.positions(self.table)
        y = self.read_twice(x)
        x = F.relu(self.bn3(y)) + torch.tanh(y)
        return self.out(self.called_twice(self.called_twice(x)))


SIZE = (16, 16)


def net(enter: Callable[[Tensor], Tensor] = lambda x: x, **options: Any) -> FaceModel:
    return FaceModel(
        Net(enter), input_size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.3, 0.3, 0.3), name="resnet-like", **options
    ).eval()


def zoo(name: str) -> FaceModel:
    model = load(name, random_weights_seed=1)
    randomise(model.backbone)
    return model


MODELS: dict[str, Callable[[], FaceModel]] = {
    "net": net,
    "untraceable": lambda: net(untraceable),
    "synth-mobile": lambda: zoo("synth-mobile"),
    "synth-resnet": lambda: zoo("synth-resnet"),
    "synth-shuffle": lambda: zoo("synth-shuffle"),
    "edgeface_xs": lambda: zoo("edgeface_xs"),
    "mobileface_v2": lambda: zoo("mobileface_v2"),
}


def naive(model: FaceModel, key: StepKey, *, rate: float, factor: float = 1.0, first_layer: int = 1) -> FaceModel:
    """The model in float64 with a hook on each convolution that multiplies by the reference's mask."""
    made = freeze(copy.deepcopy(model).double())
    layers = [module for module in made.backbone.modules() if isinstance(module, nn.Conv2d)]
    for i, layer in enumerate(layers):

        def mask(module: nn.Module, inputs: Any, output: Tensor, number: int = first_layer + i) -> Tensor:
            output = output.expand(len(key.ids), *output.shape[1:])
            keep = keep_mask(output, key.ids, key.seed, key.ticks, number, round(rate * 2**16))
            return output * keep * factor

        layer.register_forward_hook(mask)
    return made


def images(model: FaceModel, count: int = 3, seed: int = 4) -> Tensor:
    return torch.rand(count, 3, *model.input_size, generator=torch.Generator().manual_seed(seed))


def both(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of a fixed combination of it."""
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    weights = torch.rand(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    return y.detach(), torch.autograd.grad((y * weights).sum(), leaf)[0]


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (got.double() - expected.double()).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("name", MODELS)
def test_is_the_network_with_masked_convolutions(name):
    model = MODELS[name]()
    key, x = step_key(3), images(model)
    masked = FeatureDropout(rate=RATE).bind(model, first_layer=40)
    y, gradient = both(lambda v: masked.features(v, key), x)
    expected, expected_gradient = both(naive(model, key, rate=RATE, first_layer=40).features, x.double())
    near(y, expected, 1e-5)
    near(gradient, expected_gradient, 1e-4)
    assert (expected - model.features(x)).norm() > 0.01 * expected.norm()


def test_rescale():
    model = net()
    key, x = step_key(3), images(model)
    masked = FeatureDropout(rate=0.2, rescale=True).bind(model)
    y, gradient = both(lambda v: masked.features(v, key), x)
    expected, expected_gradient = both(naive(model, key, rate=0.2, factor=1 / 0.8).features, x.double())
    near(y, expected, 1e-5)
    near(gradient, expected_gradient, 1e-4)


def test_contiguous_layout():
    model = net()
    key, x = step_key(3), images(model)
    y = FeatureDropout(rate=RATE).bind(model, channels_last=False).features(x, key)
    near(y, naive(model, key, rate=RATE).features(x.double()), 1e-5)


@pytest.mark.parametrize("name", ["net", "synth-mobile", "mobileface_v2"])
def test_bf16(name):
    model = MODELS[name]()
    key, x = step_key(3), images(model)
    masked = FeatureDropout(rate=RATE).bind(model, precision="bf16")
    y, gradient = both(lambda v: masked.features(v, key), x)
    assert y.dtype == gradient.dtype == torch.float32
    expected, expected_gradient = both(naive(model, key, rate=RATE).features, x.double())
    assert bool((F.cosine_similarity(y.double(), expected) > 0.999).all())
    assert bool((F.cosine_similarity(gradient.double().flatten(1), expected_gradient.flatten(1)) > 0.95).all())


def test_embeddings_and_logits():
    head = nn.Linear(7, 5)
    model = net(head=head)
    key, x = step_key(3), images(model)
    masked = FeatureDropout(rate=RATE).bind(model)
    features = masked.features(x, key)
    torch.testing.assert_close(masked(x, key), F.normalize(features, dim=1))
    torch.testing.assert_close(masked.logits(x, key), head(features))
    with pytest.raises(
        ValueError, match="head: expected a class head for logits, got 'resnet-like' without one; build the FaceMod"
    ):
        FeatureDropout(rate=RATE).bind(net()).logits(x, key)


# -- what a mask hangs on --


def test_slot_neighbours_and_order_change_no_bit():
    model = load("synth-mobile")
    masked = FeatureDropout().bind(model)
    key, x = step_key(4), images(model, 4)
    y, gradient = both(lambda v: masked.features(v, key), x)
    for rows in ([3, 1, 0, 2], [2, 2, 2, 2]):
        part = StepKey(seed=SEED, ids=key.ids[rows], ticks=key.ticks[rows])
        again, other = both(lambda v, part=part: masked.features(v, part), x[rows])
        assert torch.equal(again, y[rows])
        if len(set(rows)) == 4:
            # the combination of outputs is one of the slot, so only its own image keeps the gradient
            weights = torch.rand(4, 128, generator=torch.Generator().manual_seed(9))
            leaf = x[rows].requires_grad_()
            (other,) = torch.autograd.grad((masked.features(leaf, part) * weights[rows]).sum(), leaf)
            assert torch.equal(other, gradient[rows])
    one = StepKey(seed=SEED, ids=key.ids[2:3], ticks=key.ticks[2:3])
    torch.testing.assert_close(masked.features(x[2:3], one), y[2:3], rtol=1e-4, atol=1e-5)


def test_source_and_target_share_the_subnetwork():
    """With one key, two images that are equal give equal features; with another tick, id or seed, they do not."""
    model = load("synth-resnet")
    masked = FeatureDropout().bind(model)
    x, key = images(model, 2), step_key(2)
    with torch.no_grad():
        target = masked(x, key)
    assert torch.equal(masked(x, key), target)
    for other in (step_key(2, tick=6), step_key(2, first=7), step_key(2, seed=12)):
        assert bool(((masked(x, other) - target).norm(dim=1) > 1e-3).all())


def test_first_layer_separates_models():
    model = net()
    key, x = step_key(2), images(model, 2)
    first = FeatureDropout(rate=RATE).bind(model)
    second = FeatureDropout(rate=RATE).bind(model, first_layer=1 + first.layers_used)
    assert first.layers_used == 10 == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert not torch.allclose(first.features(x, key), second.features(x, key), rtol=1e-3)


@pytest.mark.parametrize("name", ["net", "synth-mobile"])
def test_rate_0_is_the_prepared_model(name):
    model = MODELS[name]()
    x = images(model)
    masked = FeatureDropout(rate=0).bind(model)
    for got, expected in zip(
        both(lambda v: masked.features(v, step_key(3)), x), both(prepare(model).features, x), strict=True
    ):
        assert torch.equal(got, expected)


# -- what is stored, and what is fused --


def saved_bytes(function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """The memory that the backward pass keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x.clone().requires_grad_())
    assert y.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", ["synth-mobile", "synth-resnet", "synth-vgg", "mobileface_v2", "mobilefacenet"])
def test_no_mask_is_stored(name):
    model = load(name, random_weights_seed=0)
    x, key = images(model, 2), step_key(2)
    masked = FeatureDropout(rate=RATE).bind(model)
    plain = saved_bytes(prepare(model).features, x)
    assert saved_bytes(lambda v: masked.features(v, key), x) <= 1.05 * plain


def test_batch_norms_are_fused_or_folded():
    masked = FeatureDropout(rate=RATE).bind(net())
    left = [name for name, module in masked.model.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["bn3", "called_twice.1"]
    assert not any(isinstance(module, nn.BatchNorm1d | nn.ReLU6 | nn.PReLU) for module in masked.model.modules())
    assert not any(parameter.requires_grad for parameter in masked.model.parameters())


def test_the_original_is_left_alone():
    model = net()
    x = images(model)
    before = model.features(x)
    FeatureDropout(rate=0.5).bind(model)
    assert torch.equal(model.features(x), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("layer", ["stem.0", "stem.1", "stem.2", "bn1", "rectified"])
def test_taps_see_what_they_name(layer):
    model = net(layers=(layer,))
    key, x = step_key(3), images(model)

    def tapped(m: FaceModel, run: Callable[[], Any]) -> Tensor:
        seen: list[Tensor] = []
        handle = m.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.append(out))
        run()
        handle.remove()
        return seen[0].detach()

    masked, reference = FeatureDropout(rate=RATE).bind(model), naive(model, key, rate=RATE)
    got = tapped(masked.model, lambda: masked.features(x, key))
    near(got, tapped(reference, lambda: reference.features(x.double())), 1e-5)


def test_a_layer_with_a_hook_is_not_fused():
    model = net()
    model.backbone.stem[1].register_forward_hook(lambda _m, _i, out: 2 * out)
    key, x = step_key(3), images(model)
    masked = FeatureDropout(rate=RATE).bind(model)
    near(masked.features(x, key), naive(model, key, rate=RATE).features(x.double()), 1e-5)


def test_a_layer_with_two_names_is_not_fused():
    """Only one of the names could be replaced, and the forward pass may read the other."""
    model = net()
    model.backbone._modules = {"first_name": model.backbone.stem[1], **model.backbone._modules}
    key, x = step_key(3), images(model)
    masked = FeatureDropout(rate=RATE).bind(model)
    near(masked.features(x, key), naive(model, key, rate=RATE).features(x.double()), 1e-5)


# -- errors --


def test_refuses_models():
    value = FeatureDropout(rate=RATE)
    with pytest.raises(TypeError, match="model: expected a FaceModel, got Linear"):
        value.bind(nn.Linear(2, 2))  # type: ignore[arg-type]
    linear = FaceModel(nn.Flatten(), input_size=(2, 2), mean=(0, 0, 0), std=(1, 1, 1), name="m").eval()
    with pytest.raises(
        ValueError, match=r"model: expected a backbone with nn\.Conv2d to drop features of, got 'm' without"
    ):
        value.bind(linear)
    with pytest.raises(ValueError, match="model: expected one in evaluation mode, got one that is in training mode"):
        value.bind(net().train())
    with pytest.raises(ValueError, match="precision: expected one of"):
        value.bind(net(), precision="fp16")


@pytest.mark.parametrize("first", [0, 3991])
def test_refuses_layers_of_others(first):
    with pytest.raises(ValueError, match=rf"in \[1, 3990\] for the 10 convolutions of 'resnet-like', got {first}"):
        FeatureDropout(rate=RATE).bind(net(), first_layer=first)


def test_refuses_keys():
    model = net()
    masked: MaskedModel = FeatureDropout(rate=RATE).bind(model)
    x = images(model)
    with pytest.raises(TypeError, match="key: expected a StepKey, got int"):
        masked.features(x, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"key: expected ids of shape \(3,\), one per image, got \(2,\)"):
        masked.features(x, step_key(2))
    short = StepKey(seed=1, ids=torch.arange(3), ticks=torch.arange(2))
    with pytest.raises(ValueError, match=r"key: expected ticks of shape \(3,\), one per image, got \(2,\)"):
        masked.features(x, short)
    with pytest.raises(RuntimeError, match="the masks need a key: call the MaskedModel"):
        masked.model(x)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_graph_draws_the_masks_of_its_ticks(precision):
    model = load("synth-mobile", device="cuda")
    masked = FeatureDropout().bind(model, precision=precision)
    x = images(model, 4).cuda()
    ids, ticks = torch.arange(4, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")

    def run() -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()  # of the stream it is used on
        y = masked(leaf, StepKey(seed=1, ids=ids, ticks=ticks))
        return y, torch.autograd.grad(y[:, :9].sum(), leaf)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = run()
    seen = []
    for tick in (0, 5, 11):
        ticks.copy_(torch.arange(tick, tick + 4))
        graph.replay()
        for got, expected in zip(captured, run(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        seen.append(captured[0].clone())
    assert not torch.allclose(seen[0], seen[1])
