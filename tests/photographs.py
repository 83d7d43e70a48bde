"""Photographs with drawn faces, a detector that knows them, and the weights of one that finds a face anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from fastadv.core.templates import TEMPLATES
from fastadv.data import Detections, render_faces, to_uint8, write_png
from fastadv.models.mtcnn.weights import load_cascade

SIZE = (150, 190)


class Drawn:
    """Finds the faces of the pictures that it has drawn, and none in others.

    Attributes:
        calls: How many pictures each call was given.
        left: So many calls are answered, then Ctrl-C comes; None: all are.
    """

    def __init__(self) -> None:
        self.identity: dict[str, object] = {"name": "drawn"}
        self.calls: list[int] = []
        self.left: int | None = None
        self._known: dict[bytes, Detections] = {}

    def __call__(self, images: Sequence[NDArray[np.uint8]], /) -> list[Detections]:
        self.calls.append(len(images))
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return [self._known.get(_key(image), found([], [])) for image in images]

    def draw(self, path: Path, person: int, image: int, *, faces: int = 1) -> None:
        """Write a photograph: one face left of the middle, or two, a smaller one in the middle; or none."""
        batch = render_faces([person], [image], seed=11)
        canvas = np.full((*SIZE, 3), 90 + person % 50, np.uint8)
        points, scores = [], []
        if faces:
            canvas[20:132, 10:122] = to_uint8(batch.images[0])
            points.append(batch.landmarks[0].numpy() + np.array([10, 20]))
            scores.append(0.9)
        if faces > 1:
            points.append(batch.landmarks[0].numpy() * 0.5 + np.array([67, 47]))
            scores.append(0.99)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, canvas)
        self._known[_key(canvas)] = found(points, scores)


def found(points: Sequence[NDArray[np.float64]], scores: Sequence[float]) -> Detections:
    """Detections of landmarks, the best score first, in boxes around them."""
    order = np.argsort(-np.array(scores), kind="stable")
    landmarks = np.array(points, np.float64).reshape(-1, 5, 2)[order]
    boxes = np.concatenate([landmarks.min(1) - 20, landmarks.max(1) + 20], 1) if len(landmarks) else np.zeros((0, 4))
    return Detections(boxes=boxes, landmarks=landmarks, scores=np.array(scores, np.float64)[order])


def _key(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def write_detector(path: Path) -> None:
    """Weights of MTCNN by which any window is a face, with the landmarks of the template in it."""
    state = {name: value.contiguous() for name, value in load_cascade(None, random_weights_seed=1).state_dict().items()}
    for layer in ("pnet.conv4_1", "rnet.dense5_1", "onet.dense6_1"):
        state[f"{layer}.bias"] = state[f"{layer}.bias"].new_tensor([-8.0, 8.0])
    for layer in ("pnet.conv4_2", "rnet.dense5_2", "onet.dense6_2", "onet.dense6_3"):
        for part in ("weight", "bias"):
            state[f"{layer}.{part}"] = state[f"{layer}.{part}"] * 0
    points = TEMPLATES["arcface"].array.T.ravel() / 112  # x1 to x5, y1 to y5
    state["onet.dense6_3.bias"] = state["onet.dense6_3.bias"].new_tensor(points.tolist())
    save_file(state, str(path))
