"""The architectures by name, with the preprocessing each was trained with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.core.errors import ArgumentError
from fastadv.core.nearest import meant
from fastadv.models import (
    cosface,
    edgeface,
    inception_resnet,
    iresnet,
    mobileface_v2,
    mobilefacenet,
    mobilefacenet_linear,
    mobilenet,
    se_iresnet,
    se_resnet,
    small_mobile,
    small_resnet,
    small_shuffle,
    small_vgg,
    sphereface,
)
from fastadv.models.checkpoints import CheckpointError, FittedState, load_weights
from fastadv.models.description import Description, is_description, read_description
from fastadv.models.devices import open_device
from fastadv.models.face_model import FaceModel
from fastadv.models.modes import plain_modes
from fastadv.models.onnx_model import load_onnx
from fastadv.models.seeded import Seeded
from fastadv.models.shipped import shipped_state
from fastadv.models.state_fit import HEAD, fitting_state, printed
from fastadv.models.tensor_content import read_content

_Triple = tuple[float, float, float]
_HALF: _Triple = (0.5, 0.5, 0.5)
_BY_128: _Triple = (128 / 255,) * 3  # with _HALF: (x - 127.5) / 128, as in many a published network


def _same_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def _head_named(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published file's own name for its linear class head becomes ours."""
    return {HEAD + k.removeprefix(prefix) if k.startswith(prefix) else k: v for k, v in state.items()}


@dataclass(frozen=True, kw_only=True)
class _Entry:
    build: Callable[[], nn.Module]
    input_size: tuple[int, int] = (112, 112)
    mean: _Triple = _HALF
    std: _Triple = _HALF
    layers: tuple[str, ...]
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = _same_names
    channels: str = "rgb"
    shipped: bool = False


def _iresnet(depth: int) -> _Entry:
    return _Entry(build=partial(iresnet.IResNet, depth), layers=iresnet.layers(depth))


def _magface(depth: int) -> _Entry:
    """MagFace's training takes BGR images in [0, 1] as they are."""
    build = partial(iresnet.IResNet, depth, eps=2e-5)
    layers = iresnet.layers(depth)
    return _Entry(build=build, mean=(0.0,) * 3, std=(1.0,) * 3, channels="bgr", layers=layers)


def _body(depth: int, *, middle_norm: bool, channels: str) -> _Entry:
    build = partial(se_iresnet.IRBody, depth, middle_norm=middle_norm)
    return _Entry(build=build, channels=channels, layers=se_iresnet.layers(depth))


def _se_body(*, middle_norm: bool) -> _Entry:
    build = partial(se_iresnet.SEIResNet50, middle_norm=middle_norm)
    return _Entry(build=build, channels="bgr", layers=se_iresnet.layers(50))


def _edgeface(variant: edgeface.Variant) -> _Entry:
    return _Entry(build=partial(edgeface.EdgeFace, variant), layers=edgeface.layers(variant))


def _cosface(depth: int) -> _Entry:
    build = partial(cosface.CosFaceSphere, depth)
    return _Entry(build=build, input_size=(112, 96), layers=cosface.layers(depth))


_ZOO: dict[str, _Entry] = {
    "mobilefacenet": _Entry(
        build=mobilefacenet.MobileFaceNet,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        layers=mobilefacenet.LAYERS,
    ),
    "mobilefacenet_linear": _Entry(
        build=mobilefacenet_linear.MobileFaceNetLinear, channels="bgr", layers=mobilefacenet_linear.LAYERS
    ),
    "mobileface_v2": _Entry(
        build=mobileface_v2.MobileFaceV2, std=_BY_128, layers=mobileface_v2.LAYERS, rename=mobileface_v2.from_mxnet
    ),
    "edgeface_base": _edgeface(edgeface.BASE),
    "edgeface_s_gamma_05": _edgeface(edgeface.S_GAMMA_05),
    "edgeface_xs": _Entry(build=edgeface.EdgeFaceXS, layers=edgeface.layers(edgeface.XS)),
    "edgeface_xs_gamma_06": _edgeface(edgeface.XS_GAMMA_06),
    "edgeface_xxs": _edgeface(edgeface.XXS),
    "iresnet18": _iresnet(18),
    "iresnet34": _iresnet(34),
    "iresnet50": _iresnet(50),
    "iresnet100": _iresnet(100),
    "ir50": _body(50, middle_norm=False, channels="rgb"),
    "ir100": _body(100, middle_norm=False, channels="rgb"),
    "adaface_ir18": _body(18, middle_norm=True, channels="bgr"),
    "adaface_ir50": _body(50, middle_norm=True, channels="bgr"),
    "adaface_ir101": _body(100, middle_norm=True, channels="bgr"),
    "magface_iresnet18": _magface(18),
    "magface_iresnet50": _magface(50),
    "magface_iresnet100": _magface(100),
    "se_iresnet50": _se_body(middle_norm=True),
    "ir_se50": _se_body(middle_norm=False),
    "se_resnet50": _Entry(
        build=se_resnet.SEResNet50,
        input_size=(224, 224),
        mean=se_resnet.MEAN,
        std=se_resnet.STD,
        channels="bgr",
        layers=se_resnet.LAYERS,
        rename=partial(_head_named, "fc."),
    ),
    "inception_resnet_v1": _Entry(
        build=inception_resnet.InceptionResNetV1,
        input_size=(160, 160),
        std=_BY_128,
        layers=inception_resnet.LAYERS,
        rename=partial(_head_named, "logits."),
    ),
    "sphereface20": _Entry(build=sphereface.SphereFace20, std=_BY_128, channels="bgr", layers=sphereface.LAYERS),
    "cosface_sphere20": _cosface(20),
    "cosface_sphere64": _cosface(64),
    "mobilenet_v1": _Entry(build=mobilenet.MobileNetV1, layers=mobilenet.LAYERS),
    "synth-mobile": _Entry(build=small_mobile.SmallMobile, layers=small_mobile.LAYERS, shipped=True),
    "synth-resnet": _Entry(build=small_resnet.SmallResNet, layers=small_resnet.LAYERS, shipped=True),
    "synth-vgg": _Entry(build=small_vgg.SmallVGG, layers=small_vgg.LAYERS, shipped=True),
    "synth-shuffle": _Entry(build=small_shuffle.SmallShuffle, layers=small_shuffle.LAYERS, shipped=True),
}


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(_ZOO)


def shipped_names() -> tuple[str, ...]:
    """The names whose weights come with the package: small networks trained on synthetic faces."""
    return tuple(name for name, entry in _ZOO.items() if entry.shipped)


def load(
    name: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str = "cpu",
    random_weights_seed: int | None = None,
) -> FaceModel:
    """A face model of a known architecture, in evaluation mode.

    Args:
        name: one of `names()`, or a description: a file `*.toml` (see `fastadv.models.description`).
        weights: a safetensors file, a torch checkpoint or a pickle, of any suffix, with the published parameter names;
            loaded strictly. They may lie in other dicts (`state_dict`, `model`, ...) and have prefixes (`module.`,
            `backbone.`, ...): the dict and the prefix that fit are taken. May be left out for `shipped_names()`, and
            where a description names them. Weights named `class_head.weight` and `class_head.bias` (written by
            `fastadv.training`), or a published file's own linear classifier, become the model's class head; another
            classifier is left out, with a notice.
        device: where the model goes.
        random_weights_seed: in place of `weights`: random weights (PyTorch's default initialisation) from
            this seed, for tests and benchmarks. PyTorch's own random state is left as it was.

    Returns:
        The model with its input size, colour normalisation and default `layers` (the blocks).

    Raises:
        ValueError: if the name is unknown, not exactly one of `weights` and `random_weights_seed` is given, or
            the device is not there.
        CheckpointError: if the file is missing, broken, unsafe or of another architecture.
    """
    if is_description(name):
        about = read_description(name)
        if weights is None and random_weights_seed is None:
            weights = about.weights
        if about.architecture is None:
            return _of_onnx(about, weights, name=Path(name).stem, device=device)
        model = load(about.architecture, weights, device=device, random_weights_seed=random_weights_seed)
        return about.applied(model)
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    entry = _ZOO.get(name)
    if entry is None:
        raise ArgumentError(f"name: expected one of {', '.join(_ZOO)}, got {name!r}{meant(name, _ZOO)}")
    if (weights is None) == (random_weights_seed is None) and not (weights is None and entry.shipped):
        got = "neither" if weights is None else "both"
        raise ArgumentError(
            f"weights: expected a file with the weights of {name}, or random_weights_seed=, got {got}; "
            f"{', '.join(shipped_names())} bring their own"
        )
    where = open_device(device)
    content = None
    if weights is not None:
        content = read_content(weights)
    elif random_weights_seed is None:
        content = shipped_state(name)
    source = str(weights or f"the shipped {name}")
    return with_content(name, content, source=source, seed=random_weights_seed or 0).to(where)


def _of_onnx(
    about: Description, weights: str | os.PathLike[str] | None, *, name: str, device: torch.device | str
) -> FaceModel:
    """The network of an ONNX file, with what its description says of it."""
    if weights is None:
        raise ArgumentError("random_weights_seed: expected none for a description of an ONNX file, got one")
    mean, std = (about.normalisation[each] for each in ("mean", "std"))
    model = load_onnx(weights, mean=mean, std=std, input_size=about.input_size, name=name, device=device)
    return replace(about, mean=None, std=None, input_size=None).applied(model)


@plain_modes(torch.device("cpu"))  # weights are float32, whatever the caller's default type
def with_content(name: str, content: Any, *, source: str, seed: int = 0) -> FaceModel:
    """A model of a known architecture with the tensors of a file, on the CPU.

    Args:
        name: one of `names()`.
        content: of :func:`fastadv.models.tensor_content.read_content`; None for random weights.
        source: where it comes from, for errors.
        seed: of the random weights.

    Raises:
        CheckpointError: the tensors do not fit.
    """
    entry = _ZOO[name]
    with Seeded(seed):
        backbone = entry.build()
    fitted = None
    if content is not None:
        fitted = fitting_state(content, backbone.state_dict(), source=source, rename=entry.rename)
        own = {k: v for k, v in fitted.state.items() if not k.startswith(HEAD)}
        load_weights(backbone, own, source=source, fitted=fitted)
    model = FaceModel(
        backbone,
        input_size=entry.input_size,
        mean=entry.mean,
        std=entry.std,
        name=name,
        layers=entry.layers,
        channels=entry.channels,
    )
    if fitted is not None:
        model.head = class_head(fitted, model, source=source)
    return model.eval()


@plain_modes(torch.device("cpu"))
def fit_to(name: str, content: Any, *, source: str) -> tuple[FittedState, Mapping[str, Tensor]]:
    """What of a file's tensors fits an architecture best, and the tensors that it wants, which have sizes only.

    Raises:
        CheckpointError: there are no tensors, or two different states fit.
    """
    entry = _ZOO[name]
    with torch.device("meta"):
        wanted = entry.build().state_dict()
    return fitting_state(content, wanted, source=source, rename=entry.rename), wanted


def class_head(fitted: FittedState, model: FaceModel, *, source: str) -> nn.Module | None:
    """A linear layer of the class head's weights in a state; None where there are none.

    Args:
        fitted: the tensors that were found in a file.
        model: the network that the head is on.
        source: where the tensors come from, for the error.

    Raises:
        CheckpointError: they do not make a head, or it does not take the model's features.
    """
    found = {key.removeprefix(HEAD): value for key, value in fitted.state.items() if key.startswith(HEAD)}
    if not found:
        return None
    weight, size = found.get("weight"), model.embedding_size
    if weight is None:
        others = ", ".join(printed(fitted.names.get(HEAD + part, HEAD + part)) for part in found)
        raise CheckpointError(f"weights: expected a class head with its weight, got {source} with {others} alone")
    if weight.dim() != 2 or not weight.shape[0] or weight.shape[1] != size:
        raise CheckpointError(
            f"weights: expected a class head (classes, {size}) for the {size} features of {model.name}, "
            f"got {fitted.names.get(f'{HEAD}weight', f'{HEAD}weight')} {tuple(weight.shape)} in {source}; "
            "remove it from the file to load the network alone"
        )
    with Seeded(0):  # the first weights are drawn, and then replaced
        head = nn.Linear(size, weight.shape[0], bias="bias" in found)
    names = {part: fitted.names.get(HEAD + part, HEAD + part) for part in found}
    load_weights(head, found, source=source, fitted=replace(fitted, names=names, outside={}, heads={}))
    return head
