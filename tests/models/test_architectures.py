"""The networks named in published checkpoints: names, sizes, colours, blocks, heads, and what `prepare` makes of them.

No published weights are needed: names and parameter counts are compared with what the publications say, and blocks with
closed forms.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastadv.core.notices import Notice
from fastadv.models import CheckpointError, FaceModel, load, prepare

NAMES = (
    "se_iresnet50",
    "ir_se50",
    "se_resnet50",
    "inception_resnet_v1",
    "sphereface20",
    "mobilenet_v1",
    "ir50",
    "adaface_ir18",
    "magface_iresnet18",
    "mobilefacenet_linear",
    "cosface_sphere20",
)
EARLIER = NAMES[:6]  # of the others test_published_names.py compares the names
BGR = (
    "se_iresnet50",
    "ir_se50",
    "se_resnet50",
    "sphereface20",
    "adaface_ir18",
    "magface_iresnet18",
    "mobilefacenet_linear",
)


def randomise_batch_norms(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for scale in (norm.running_var, norm.weight):
                if scale is not None:
                    scale.data.copy_(torch.rand(scale.shape, generator=generator) + 0.5)
            for shift in (norm.running_mean, norm.bias):
                if shift is not None:
                    shift.data.copy_(torch.randn(shift.shape, generator=generator) * 0.2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# One network at a time: tests that take `model` are run network by network.
@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> FaceModel:
    made = load(request.param, random_weights_seed=0)
    randomise_batch_norms(made)
    return made


@pytest.fixture(scope="module")
def prepared(model: FaceModel) -> FaceModel:
    return prepare(model)


@pytest.fixture(scope="module")
def images(model: FaceModel) -> Tensor:
    return noise(1, 3, *model.input_size)


# -- what is published --

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def bn(*names: str) -> list[str]:
    return [f"{name}.{part}" for name in names for part in BN]


def affine(*names: str) -> list[str]:
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def se_iresnet_names(*, middle_norm: bool) -> list[str]:
    """`IR_SE_50` of AdaFace (with a batch norm in the middle) and of InsightFace_Pytorch (without)."""
    names = ["input_layer.0.weight", *bn("input_layer.1"), "input_layer.2.weight"]
    for i in range(24):
        block = f"body.{i}.res_layer"
        if middle_norm:
            names += [*bn(f"{block}.0"), f"{block}.1.weight", *bn(f"{block}.2"), f"{block}.3.weight"]
            names += [f"{block}.4.weight", *bn(f"{block}.5")]
            names += [f"{block}.se_block.fc1.weight", f"{block}.se_block.fc2.weight"]
        else:
            names += [*bn(f"{block}.0"), f"{block}.1.weight", f"{block}.2.weight"]
            names += [f"{block}.3.weight", *bn(f"{block}.4")]
            names += [f"{block}.5.fc1.weight", f"{block}.5.fc2.weight"]
        if i in (3, 7, 21):  # the channels change
            names += [f"body.{i}.shortcut_layer.0.weight", *bn(f"body.{i}.shortcut_layer.1")]
    names += [*bn("output_layer.0"), *affine("output_layer.3")]
    return names + [f"output_layer.4.{part}" for part in (BN[2:] if middle_norm else BN)]


def se_resnet_names() -> list[str]:
    """`senet50` of VGGFace2-pytorch, less `fc`."""
    names = ["conv1.weight", *bn("bn1")]
    for stage, repeats in enumerate((3, 4, 6, 3), start=1):
        for i in range(repeats):
            block = f"layer{stage}.{i}"
            for part in "123":
                names += [f"{block}.conv{part}.weight", *bn(f"{block}.bn{part}")]
            names += affine(f"{block}.conv4", f"{block}.conv5")
            if i == 0:
                names += [f"{block}.downsample.0.weight", *bn(f"{block}.downsample.1")]
    return names


def inception_names() -> list[str]:
    """`InceptionResnetV1` of facenet-pytorch, less `logits`."""
    basic = [f"conv2d_{part}" for part in ("1a", "2a", "2b", "3b", "4a", "4b")]
    residual = []
    for repeat, count, branches in (("repeat_1", 5, (2, 3)), ("repeat_2", 10, (3,)), ("repeat_3", 5, (3,))):
        blocks = [f"{repeat}.{i}" for i in range(count)] + (["block8"] if repeat == "repeat_3" else [])
        for block in blocks:
            residual.append(f"{block}.conv2d")
            basic.append(f"{block}.branch0")
            basic += [f"{block}.branch{b}.{i}" for b, length in enumerate(branches, start=1) for i in range(length)]
    basic += ["mixed_6a.branch0", *(f"mixed_6a.branch1.{i}" for i in range(3))]
    basic += [f"mixed_7a.branch{b}.{i}" for b, length in enumerate((2, 2, 3)) for i in range(length)]
    names = [*affine(*residual), "last_linear.weight", *bn("last_bn")]
    for block in basic:
        names += [f"{block}.conv.weight", *bn(f"{block}.bn")]
    return names


def sphereface_names() -> list[str]:
    """`sphere20a` of sphereface_pytorch, less `fc6`."""
    numbers = [f"{stage}_{i}" for stage, count in ((1, 3), (2, 5), (3, 9), (4, 3)) for i in range(1, count + 1)]
    return [*affine(*(f"conv{n}" for n in numbers)), *(f"relu{n}.weight" for n in numbers), *affine("fc5")]


def mobilenet_names() -> list[str]:
    """`MobileNetV1` of arcface-pytorch, less the prefix `arcface.`."""
    names = ["stage1.0.0.weight", *bn("stage1.0.1")]
    for block in [*(f"stage1.{i}" for i in range(1, 6)), *(f"stage2.{i}" for i in range(6)), "stage3.0", "stage3.1"]:
        names += [f"{block}.0.weight", *bn(f"{block}.1"), f"{block}.3.weight", *bn(f"{block}.4")]
    return [*names, "sep.weight", *bn("sep_bn"), "prelu.weight", *bn("bn2"), *affine("linear"), *bn("features")]


PUBLISHED_NAMES: dict[str, Callable[[], list[str]]] = {
    "se_iresnet50": partial(se_iresnet_names, middle_norm=True),
    "ir_se50": partial(se_iresnet_names, middle_norm=False),
    "se_resnet50": se_resnet_names,
    "inception_resnet_v1": inception_names,
    "sphereface20": sphereface_names,
    "mobilenet_v1": mobilenet_names,
}

# Of ArcFace's ResNet-50 (43.59 M: insightface's model zoo), what SE adds (two 1×1 convolutions a block, reduction 16),
# and what the IR_SE_50 lack: the middle batch norms, and the projection of the first block.
R50 = 43_590_848
BLOCKS = ((3, 64), (4, 128), (14, 256), (3, 512))
SE = sum(count * 2 * c * c // 16 for count, c in BLOCKS)
MIDDLE = sum(count * 2 * c for count, c in BLOCKS)
PROJECTION = 64 * 64 + 2 * 64

PARAMETERS = {
    "se_iresnet50": R50 + SE - PROJECTION - 2 * 512,  # and its last batch norm has no weights
    "ir_se50": R50 + SE - PROJECTION - MIDDLE,
    # SE-ResNet-50 with ImageNet's 1,000 classes: 28,088,024 (imgclsmob's list of models), less these.
    "se_resnet50": 28_088_024 - (2048 * 1000 + 1000),
    # A summary of facenet-pytorch's network without logits; Open Model Zoo lists 23.469 M with the batch norms folded.
    "inception_resnet_v1": 23_482_624,
    # Convolutions by Liu et al. 2017, table 2, with biases and one slope a channel; fc5. The same network on 112×112
    # images, without the biases of the residual units, is listed with 24.5 M (yakhyo/face-recognition).
    "sphereface20": sum(
        (9 * a * c + c + c) + 2 * units * (9 * c * c + c + c)
        for a, c, units in ((3, 64, 1), (64, 128, 2), (128, 256, 4), (256, 512, 1))
    )
    + (512 * 7 * 6 * 512 + 512),
    # MobileNet with 1,000 classes: 4,231,976 (Howard et al. 2017: 4.2 M; Keras's summary), less these, and the end:
    # 1×1 convolution and BN, PReLU, BN, fully connected, BN.
    "mobilenet_v1": 4_231_976
    - (1024 * 1000 + 1000)
    + (1024 * 512 + 2 * 512 + 512 + 2 * 512 + (512 * 49 * 512 + 512) + 2 * 512),
}


@pytest.mark.parametrize("model", EARLIER, indirect=True)
def test_published_names_are_those_of_the_backbone(model: FaceModel) -> None:
    state = model.backbone.state_dict()
    assert sorted(state) == sorted(PUBLISHED_NAMES[model.name]())


@pytest.mark.parametrize("model", EARLIER, indirect=True)
def test_parameter_count(model: FaceModel) -> None:
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[model.name]


SHAPES = {
    "se_iresnet50": {"body.23.res_layer.se_block.fc1.weight": (32, 512, 1, 1), "output_layer.3.weight": (512, 25088)},
    "ir_se50": {"body.3.res_layer.3.weight": (128, 128, 3, 3), "body.0.res_layer.5.fc2.weight": (64, 4, 1, 1)},
    "se_resnet50": {"layer2.0.conv1.weight": (128, 256, 1, 1), "layer4.2.conv4.weight": (128, 2048, 1, 1)},
    "inception_resnet_v1": {
        "repeat_2.3.branch1.1.conv.weight": (128, 128, 1, 7),
        "repeat_3.0.branch1.2.conv.weight": (192, 192, 3, 1),
        "repeat_1.4.conv2d.weight": (256, 96, 1, 1),
        "last_linear.weight": (512, 1792),
    },
    "sphereface20": {"conv3_1.weight": (256, 128, 3, 3), "relu4_3.weight": (512,), "fc5.weight": (512, 21504)},
    "mobilenet_v1": {"stage2.0.0.weight": (256, 1, 3, 3), "stage3.1.3.weight": (1024, 1024, 1, 1)},
}


def test_published_shapes(model: FaceModel) -> None:
    state = model.backbone.state_dict()
    for key, shape in SHAPES.get(model.name, {}).items():
        assert state[key].shape == shape


# Channels, height, width of the taps, with their number.
TAPS = {
    "se_iresnet50": ((3, 64, 56, 56), (4, 128, 28, 28), (14, 256, 14, 14), (3, 512, 7, 7)),
    "ir_se50": ((3, 64, 56, 56), (4, 128, 28, 28), (14, 256, 14, 14), (3, 512, 7, 7)),
    "se_resnet50": ((3, 256, 56, 56), (4, 512, 28, 28), (6, 1024, 14, 14), (3, 2048, 7, 7)),
    "inception_resnet_v1": ((5, 256, 17, 17), (11, 896, 8, 8), (7, 1792, 3, 3)),
    "sphereface20": ((2, 64, 56, 48), (3, 128, 28, 24), (5, 256, 14, 12), (2, 512, 7, 6)),
    "mobilenet_v1": (
        (1, 32, 112, 112),
        (1, 64, 112, 112),
        (2, 128, 56, 56),
        (2, 256, 28, 28),
        (6, 512, 14, 14),
        (2, 1024, 7, 7),
    ),
    "ir50": ((3, 64, 56, 56), (4, 128, 28, 28), (14, 256, 14, 14), (3, 512, 7, 7)),
    "adaface_ir18": ((2, 64, 56, 56), (2, 128, 28, 28), (2, 256, 14, 14), (2, 512, 7, 7)),
    "magface_iresnet18": ((2, 64, 56, 56), (2, 128, 28, 28), (2, 256, 14, 14), (2, 512, 7, 7)),
    "mobilefacenet_linear": ((5, 64, 28, 28), (7, 128, 14, 14), (3, 128, 7, 7)),
    "cosface_sphere20": ((2, 64, 56, 48), (3, 128, 28, 24), (5, 256, 14, 12), (2, 512, 7, 6)),
}


def tapped(model: FaceModel, images: Tensor) -> list[tuple[str, Tensor]]:
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        model.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, out, at=layer: seen.append((at, out)))
        for layer in model.layers
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_taps_run_in_order_and_once_and_have_the_published_sizes(model: FaceModel, images: Tensor) -> None:
    seen = tapped(model, images)
    assert tuple(layer for layer, _ in seen) == model.layers
    expected = [shape for count, *shape in TAPS[model.name] for _ in range(count)]
    assert [list(out.shape[1:]) for _, out in seen] == expected


def test_residual_units_are_additions_in_the_trace(model: FaceModel) -> None:
    """What an attack on the residual branches looks for."""
    graph = fx.symbolic_trace(model.backbone).graph
    added = [node for node in graph.nodes if node.op == "call_function" and node.target is operator.add]
    units = {"se_iresnet50": 24, "ir_se50": 24, "se_resnet50": 16, "inception_resnet_v1": 21, "sphereface20": 8}
    units |= {"ir50": 24, "adaface_ir18": 8, "magface_iresnet18": 8, "mobilefacenet_linear": 12, "cosface_sphere20": 8}
    assert len(added) == units.get(model.name, 0)


# -- what `prepare` makes of them --


def test_folding_keeps_the_features_and_the_taps(model: FaceModel, prepared: FaceModel, images: Tensor) -> None:
    with torch.no_grad():
        expected, got = model.features(images), prepared.features(images)
    assert (got - expected).norm() <= 1e-5 * expected.norm()
    for (_, a), (_, b) in zip(tapped(model, images), tapped(prepared, images), strict=True):
        assert (b - a).norm() <= 1e-5 * a.norm()


def test_every_batch_norm_is_folded(prepared: FaceModel) -> None:
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in prepared.backbone.modules())


def test_channels_last_is_kept_from_the_image_to_the_gradient(prepared: FaceModel) -> None:
    strayed: list[str] = []

    def hook(name: str, out: object) -> None:
        if isinstance(out, Tensor) and out.dim() == 4 and not out.is_contiguous(memory_format=torch.channels_last):
            strayed.append(name)

    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: hook(name, out))
        for name, module in prepared.named_modules()
    ]
    x = noise(2, 3, *prepared.input_size).contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(prepared(x)[:, :8].sum(), x)
    for handle in hooks:
        handle.remove()
    assert strayed == []
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).norm(dim=1).min() > 0


# -- colours --


def entering(model: FaceModel, images: Tensor) -> Tensor:
    """What the first convolution reads."""
    first = next(m for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    seen: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def test_the_first_convolution_reads_what_the_published_code_feeds(model: FaceModel, images: Tensor) -> None:
    levels = images.double() * 255
    order = [2, 1, 0] if model.name in BGR else [0, 1, 2]
    mean, divisor = {
        "se_resnet50": ((91.4953, 103.8827, 131.0912), 1.0),
        "inception_resnet_v1": ((127.5,) * 3, 128.0),
        "sphereface20": ((127.5,) * 3, 128.0),
        "magface_iresnet18": ((0.0,) * 3, 255.0),
    }.get(model.name, ((127.5,) * 3, 127.5))
    expected = (levels[:, order] - torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)) / divisor
    if model.name == "sphereface20":
        expected = expected[..., 8:104]  # the published network takes 112 x 96
    torch.testing.assert_close(entering(model, images).double(), expected, rtol=1e-5, atol=1e-5)


# -- blocks, in closed form --


def fresh(name: str, block: str) -> nn.Module:
    network = load(name, random_weights_seed=0)
    randomise_batch_norms(network)
    return network.backbone.get_submodule(block).requires_grad_(False)


def constant_branch(norm: nn.Module, values: Tensor) -> None:
    """Makes a block's branch, up to and including this batch norm, give `values` per channel everywhere."""
    norm.weight.zero_()
    norm.bias.copy_(values)


@pytest.mark.parametrize(
    ("name", "last"), [("se_iresnet50", "res_layer.5"), ("ir_se50", "res_layer.4")], ids=["paper", "published"]
)
def test_se_ir_blocks(name: str, last: str) -> None:
    body = fresh(name, "body")
    c = torch.linspace(-2, 2, 64)
    for i in (0, 1):
        block = body[i]
        constant_branch(block.get_submodule(last), c)
        gate = block.res_layer[-1]
        w1, w2 = gate.fc1.weight.flatten(1), gate.fc2.weight.flatten(1)
        branch = c * torch.sigmoid(w2 @ (w1 @ c).relu())  # the mean of a constant is the constant
        x = noise(2, 64, 6, 6) - 0.5
        shortcut = x if i else x[:, :, ::2, ::2]
        torch.testing.assert_close(block(x), shortcut + branch.view(64, 1, 1), rtol=1e-5, atol=1e-5)


def test_the_papers_block_is_bn_conv_bn_prelu_conv_bn() -> None:
    def kinds(name: str) -> list[str]:
        layers = load(name, random_weights_seed=0).backbone.get_submodule("body.5.res_layer")
        return [type(layer).__name__ for layer in layers][:-1]

    paper = ["BatchNorm2d", "Conv2d", "BatchNorm2d", "PReLU", "Conv2d", "BatchNorm2d"]
    assert kinds("se_iresnet50") == paper
    assert kinds("ir_se50") == paper[:2] + paper[3:]


def test_se_resnet_blocks() -> None:
    for at, shortcut_of in (("layer1.1", lambda _b, x: x), ("layer2.0", lambda b, x: b.downsample(x))):
        block = fresh("se_resnet50", at)
        channels = block.bn3.num_features
        c = torch.linspace(-2, 2, channels)
        constant_branch(block.bn3, c)
        hidden = (block.conv4.weight.flatten(1) @ c + block.conv4.bias).relu()
        gate = torch.sigmoid(block.conv5.weight.flatten(1) @ hidden + block.conv5.bias)
        x = noise(2, 256, 6, 6) - 0.5
        expected = (shortcut_of(block, x) + (c * gate).view(-1, 1, 1)).relu()
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("block", "scale"), [("repeat_1.2", 0.17), ("repeat_2.9", 0.10), ("repeat_3.4", 0.20), ("block8", 1.0)]
)
def test_inception_residuals_are_scaled(block: str, scale: float) -> None:
    residual = fresh("inception_resnet_v1", block)
    c = torch.linspace(-1, 1, residual.conv2d.out_channels)
    residual.conv2d.weight.zero_()
    residual.conv2d.bias.copy_(c)
    x = noise(2, len(c), 4, 4) - 0.5
    expected = x + scale * c.view(-1, 1, 1)
    torch.testing.assert_close(residual(x), expected if block == "block8" else expected.relu())


def test_inception_branches_are_joined_in_the_published_order() -> None:
    block = fresh("inception_resnet_v1", "repeat_2.0")
    seen: list[Tensor] = []
    block.conv2d.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    x = noise(1, 896, 5, 5) - 0.5
    block(x)

    def basic(layer: nn.Module, y: Tensor, padding: tuple[int, int]) -> Tensor:
        norm = layer.bn
        y = F.conv2d(y, layer.conv.weight, padding=padding)
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3).relu()

    first = basic(block.branch0, x, (0, 0))
    second = basic(block.branch1[0], x, (0, 0))
    second = basic(block.branch1[2], basic(block.branch1[1], second, (0, 3)), (3, 0))
    torch.testing.assert_close(seen[0], torch.cat((first, second), 1), rtol=1e-4, atol=1e-5)


def test_sphereface_is_its_published_formula() -> None:
    model = load("sphereface20", random_weights_seed=0)
    state = model.backbone.state_dict()
    x = noise(1, 3, 112, 112)

    def convolved(number: str, y: Tensor, stride: int = 1) -> Tensor:
        y = F.conv2d(y, state[f"conv{number}.weight"], state[f"conv{number}.bias"], stride, padding=1)
        return F.prelu(y, state[f"relu{number}.weight"])

    y = (x.flip(1)[..., 8:104] * 255 - 127.5) / 128  # the published network takes 112 x 96
    for stage, units in ((1, 1), (2, 2), (3, 4), (4, 1)):
        y = convolved(f"{stage}_1", y, stride=2)
        for j in range(units):
            y = y + convolved(f"{stage}_{2 * j + 3}", convolved(f"{stage}_{2 * j + 2}", y))
    expected = F.linear(y.flatten(1), state["fc5.weight"], state["fc5.bias"])
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-5)


# -- published files --


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Callable[[dict[str, Tensor]], Path]]:
    """Saves a state in half precision, and removes the file afterwards: it has tens of megabytes."""
    path = tmp_path / "published.safetensors"

    def saved(state: dict[str, Tensor]) -> Path:
        save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
        return path

    yield saved
    path.unlink(missing_ok=True)


File = Callable[[dict[str, Tensor]], Path]


@pytest.mark.parametrize(
    ("name", "head", "size"), [("se_resnet50", "fc", 2048), ("inception_resnet_v1", "logits", 512)]
)
def test_the_published_classifier_becomes_the_head(name: str, head: str, size: int, file: File) -> None:
    source = load(name, random_weights_seed=1)
    weight, bias = noise(7, size).half().float(), noise(7, seed=1).half().float()
    state = {**source.backbone.state_dict(), f"{head}.weight": weight, f"{head}.bias": bias}
    model = load(name, file(state))
    x = noise(1, 3, *model.input_size)
    with torch.no_grad():
        features, logits = model.features(x), model.logits(x)
    torch.testing.assert_close(logits, F.linear(features, weight, bias))


def test_a_classifier_by_our_own_name_is_kept(file: File) -> None:
    source = load("inception_resnet_v1", random_weights_seed=1)
    head = {"class_head.weight": noise(3, 512), "class_head.bias": noise(3)}
    model = load("inception_resnet_v1", file({**source.backbone.state_dict(), **head}))
    assert model.head is not None
    assert model.head.weight.shape == (3, 512)


def test_angular_classifiers_are_left_out(file: File) -> None:
    sphere = load("sphereface20", random_weights_seed=1).backbone.state_dict()
    with pytest.warns(Notice, match=r"1 left out: fc6\.weight \(512, 7\)"):
        assert load("sphereface20", file({**sphere, "fc6.weight": noise(512, 7)})).head is None
    mobile = load("mobilenet_v1", random_weights_seed=1).backbone.state_dict()
    published = {f"arcface.{key}": value for key, value in mobile.items()}
    with pytest.warns(Notice, match=r"1 left out: head\.weight \(7, 512\)"):
        model = load("mobilenet_v1", file({**published, "head.weight": noise(7, 512)}))
    assert model.head is None
    torch.testing.assert_close(model.backbone.state_dict()["sep.weight"], mobile["sep.weight"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_another_network_is_refused(name: str, file: File) -> None:
    other = load("synth-vgg").backbone.state_dict()
    with pytest.raises(
        CheckpointError,
        match=r"expected tensors that fit the model, got others in .*published\.safetensors: \d+ missing: ",
    ):
        load(name, file(other))


def test_the_two_se_ir_layouts_are_told_apart(file: File) -> None:
    gate = {"body.0.res_layer.5.fc1.weight": noise(4, 64, 1, 1)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: body\.0\.res_layer\.5\.fc1\.weight \(.*\)$"):
        load("se_iresnet50", file(gate))
    with pytest.raises(CheckpointError, match=r"1 unexpected: body\.0\.res_layer\.se_block\.fc1\.weight \(.*\)$"):
        load("ir_se50", file({"body.0.res_layer.se_block.fc1.weight": noise(4, 64, 1, 1)}))
