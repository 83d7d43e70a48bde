"""facenet-pytorch's MTCNN, called as its users call it. Where torchvision is missing, its ``nms`` is ours.

``pip install --no-deps facenet-pytorch``: it asks for versions of torch, NumPy and Pillow that are older than ours.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.data import Detections
from fastadv.models.mtcnn.suppression import nms

Detect = Callable[[Sequence[NDArray[np.uint8]]], list[Detections]]


def missing() -> str | None:
    """Why it cannot be used here, or None."""
    return None if find_spec("facenet_pytorch") else "facenet-pytorch is not installed"


def described() -> str:
    """Its version, and whose suppression it uses."""
    own = f"torchvision {version('torchvision')}" if _has_torchvision() else "the vectorised one of fastadv"
    return f"facenet-pytorch {version('facenet-pytorch')}, nms: {own}"


def detect_of(device: str) -> Detect:
    """All faces of pictures of one size, in one call of it, at its own settings."""
    _stand_in()
    from facenet_pytorch import MTCNN
    from facenet_pytorch.models.utils.detect_face import detect_face

    made = MTCNN(keep_all=True, device=torch.device(device))

    def detect(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        with torch.no_grad():  # what MTCNN.detect does before it sorts the faces
            boxes, points = detect_face(
                np.stack(images),
                made.min_face_size,
                made.pnet,
                made.rnet,
                made.onet,
                made.thresholds,
                made.factor,
                made.device,
            )
        return [
            Detections(boxes=b[:, :4] - (1, 1, 0, 0), landmarks=p, scores=b[:, 4])
            for b, p in zip(map(_rows(5), boxes), map(_rows(5, 2), points), strict=True)
        ]

    return detect


def _rows(*shape: int) -> Callable[[Any], NDArray[np.float64]]:
    return lambda values: np.asarray(values, np.float64).reshape(-1, *shape)


def _has_torchvision() -> bool:
    return getattr(sys.modules.get("torchvision"), "__file__", None) is not None or (
        "torchvision" not in sys.modules and find_spec("torchvision") is not None
    )


def _stand_in() -> None:
    """In place of modules that are missing, what facenet-pytorch takes from them."""
    if not _has_torchvision() and "torchvision" not in sys.modules:

        def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
            stay = nms(boxes, scores, groups.to(torch.int64), threshold)
            return stay[scores[stay].argsort(descending=True, stable=True)]

        names = ("torchvision", "torchvision.transforms", "torchvision.ops", "torchvision.ops.boxes")
        for name in names:
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.transforms"].functional = types.ModuleType("functional")  # type: ignore[attr-defined]
        sys.modules["torchvision.ops.boxes"].batched_nms = batched_nms  # type: ignore[attr-defined]
    if find_spec("requests") is None and "requests" not in sys.modules:
        sys.modules["requests"] = types.ModuleType("requests")
        adapters = sys.modules["requests.adapters"] = types.ModuleType("requests.adapters")
        adapters.HTTPAdapter = object  # type: ignore[attr-defined]
