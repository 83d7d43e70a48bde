"""Face detection on LFW and on photographs: speed and accuracy, beside facenet-pytorch's MTCNN where it is installed.

Both have the same weights and settings (least face 20 pixels, factor .709, thresholds .6, .7, .7), and the decoded
images are in memory. They take turns, so that a drift of the machine meets both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers import facenet
from fastadv.data import Detections, read_image, read_landmarks
from fastadv.models import MTCNN

_TOGETHER = 32  # pictures in a call
_SURE = 0.99  # a face of facenet-pytorch that must be found
_SAME = 0.5  # intersection over union of boxes of one face

Images = Sequence[NDArray[np.uint8]]
Detect = Callable[[Images], list[Detections]]


def run(*, data: Path | None, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """Rows for LFW, whose pictures have one size, and for photographs, which have many."""
    assert data is not None  # the entry needs data
    ours = MTCNN(data / "weights" / "mtcnn.safetensors", device=device)
    theirs = None if facenet.missing() else facenet.detect_of(device)
    landmarks = read_landmarks(data / "lfw" / "landmarks.txt")
    names = sorted(landmarks)[:: 400 if quick else 20]
    lfw = [read_image(data / "lfw" / "images" / f"{name}.jpg") for name in names]
    photographs = [read_image(path) for path in sorted((data / "photographs").glob("*.jpg"))[:: 8 if quick else 1]]
    rounds = 1 if quick else 3
    rows = _rows("lfw", lfw, ours, theirs, _TOGETHER, rounds)
    for row, found in rows:
        row["held"] = _held(found, [landmarks[name] for name in names])
    if theirs is not None:
        rows += _rows("lfw", lfw[: len(lfw) // 4], ours, theirs, 1, rounds)
    rows += _rows("photographs", photographs, ours, theirs, 1, rounds)
    return [row for row, _ in rows]


def _rows(
    what: str, images: Images, ours: Detect, theirs: Detect | None, together: int, rounds: int
) -> list[tuple[dict[str, Any], list[Detections]]]:
    """A row for each detector, with what it found."""
    batches = [images[k : k + together] for k in range(0, len(images), together)]
    calls = {"fastadv": ours, **({} if theirs is None else {facenet.described(): theirs})}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    found: dict[str, list[Detections]] = {}
    for call in calls.values():
        call(batches[0])
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            found[name] = [each for batch in batches for each in call(batch)]
            seconds[name].append(time.perf_counter() - begin)
    made = []
    for name, faces in found.items():
        row = {
            "pictures": f"{len(images)} {what}, {together} at a time",
            "detector": name,
            "pictures_per_second": round(len(images) / statistics.median(seconds[name]), 2),
            "faces": sum(map(len, faces)),
        }
        made.append((row, faces))
    if theirs is not None:
        (row, faces), (_, reference) = made
        pairs = [t / o for o, t in zip(*seconds.values(), strict=True)]  # of one round
        row |= {"speed_up": round(statistics.median(pairs), 2), **_agreement(faces, reference)}
    return made


def _held(found: Sequence[Detections], points: Sequence[NDArray[np.float64]]) -> float:
    """Share of the pictures in which a box holds all five points."""
    held = [
        bool(len(faces) and ((p >= faces.boxes[:, None, :2]) & (p <= faces.boxes[:, None, 2:])).all((1, 2)).any())
        for faces, p in zip(found, points, strict=True)
    ]
    return round(sum(held) / len(held), 4)


def _agreement(found: Sequence[Detections], reference: Sequence[Detections]) -> dict[str, Any]:
    """How many of the other's sure faces are found, and how far the landmarks of a face are apart, in pixels."""
    sure, met, apart = 0, 0, []
    for ours, theirs in zip(found, reference, strict=True):
        for box, points, score in zip(theirs.boxes, theirs.landmarks, theirs.scores, strict=True):
            shares = _overlap(box, ours.boxes)
            same = bool(len(shares)) and bool(shares.max() >= _SAME)
            sure, met = sure + (score >= _SURE), met + (score >= _SURE and same)
            if same:
                apart.append(float(np.linalg.norm(ours.landmarks[shares.argmax()] - points, axis=1).mean()))
    return {
        "sure_faces": f"{met} of {sure}",
        "landmarks_apart_median": round(statistics.median(apart), 4),
        "landmarks_apart_most": round(max(apart), 4),
    }


def _overlap(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of a box with others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = (high - low).clip(min=0).prod(1)
    area: NDArray[np.float64] = (others[:, 2:] - others[:, :2]).prod(1)
    return common / (area + (box[2:] - box[:2]).prod() - common)
