"""The networks named in published checkpoints: names, sizes, colours, and what `prepare` makes of them.

No published weights are needed: names and parameter counts are compared with what the publications say.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

import pytest
import torch
from architectures import NAMES, noise, randomise_batch_norms
from torch import Tensor, fx, nn

from fastadv.models import FaceModel, load, prepare

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
