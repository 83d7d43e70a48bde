"""The architectures by name, with the preprocessing each was trained with."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fastadv.models import edgeface, iresnet, mobileface_v2, mobilefacenet
from fastadv.models.checkpoints import load_weights, read_state_dict
from fastadv.models.face_model import FaceModel

_Triple = tuple[float, float, float]
_HALF: _Triple = (0.5, 0.5, 0.5)


def _same_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


@dataclass(frozen=True, kw_only=True)
class _Entry:
    build: Callable[[], nn.Module]
    mean: _Triple = _HALF
    std: _Triple = _HALF
    layers: tuple[str, ...]
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = _same_names


def _iresnet(depth: int) -> _Entry:
    return _Entry(build=partial(iresnet.IResNet, depth), layers=iresnet.layers(depth))


_ZOO: dict[str, _Entry] = {
    "mobilefacenet": _Entry(
        build=mobilefacenet.MobileFaceNet,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        layers=mobilefacenet.LAYERS,
    ),
    "mobileface_v2": _Entry(
        build=mobileface_v2.MobileFaceV2,
        mean=(127.5 / 255,) * 3,
        std=(128 / 255,) * 3,
        layers=mobileface_v2.LAYERS,
        rename=mobileface_v2.from_mxnet,
    ),
    "edgeface_xs": _Entry(build=edgeface.EdgeFaceXS, layers=edgeface.LAYERS),
    "iresnet18": _iresnet(18),
    "iresnet34": _iresnet(34),
    "iresnet50": _iresnet(50),
    "iresnet100": _iresnet(100),
}


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(_ZOO)


def load(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str = "cpu",
    random_weights_seed: int | None = None,
) -> FaceModel:
    """A face model of a known architecture, in evaluation mode.

    Args:
        name: one of `names()`.
        weights: a `.safetensors`, `.pt` or `.pth` file with the published parameter names; loaded strictly.
        device: where the model goes.
        random_weights_seed: in place of `weights`: random weights (PyTorch's default initialisation) from
            this seed, for tests and benchmarks. PyTorch's own random state is left as it was.

    Returns:
        The model with its input size, colour normalisation and default `layers` (the blocks).

    Raises:
        ValueError: if the name is unknown, or not exactly one of `weights` and `random_weights_seed` is
            given.
        CheckpointError: if the file is missing, broken, unsafe or of another architecture.
    """
    entry = _ZOO.get(name)
    if entry is None:
        close = difflib.get_close_matches(str(name), _ZOO, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"name: expected one of {', '.join(_ZOO)}, got {name!r}{hint}")
    if (weights is None) == (random_weights_seed is None):
        got = "neither" if weights is None else "both"
        raise ValueError(f"weights: expected either a file or random_weights_seed=, got {got}")
    state = None if weights is None else entry.rename(read_state_dict(weights))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_weights_seed or 0)
        backbone = entry.build()
    if state is not None:
        load_weights(backbone, state, source=str(weights))
    model = FaceModel(backbone, mean=entry.mean, std=entry.std, name=name, layers=entry.layers)
    return model.to(device).eval()
