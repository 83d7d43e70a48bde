"""A list of five landmarks a face, for the faces of a source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastadv.data import names
from fastadv.data.alignment import AlignmentError, Points
from fastadv.data.landmark_lists import read_landmarks

Landmarks = Mapping[str, Points]


def open_landmarks(landmarks: str | os.PathLike[str] | Landmarks | None) -> Landmarks | None:
    """Landmarks as a mapping: as they are, or read from a file."""
    if landmarks is None or isinstance(landmarks, Mapping):
        return landmarks
    return read_landmarks(landmarks)


def of_names(landmarks: Landmarks, files: Mapping[str, Path]) -> dict[str, Points]:
    """Landmarks by the names of a source, in whatever form the list has them.

    Raises:
        AlignmentError: The list has a face twice, or none of the source's faces.
    """
    found: dict[str, Points] = {}
    for text, points in landmarks.items():
        name = names.find(text, files) or names.written(text)
        if name in found:
            raise AlignmentError(f"landmarks: expected each image once, got {names.shown(name)} twice")
        found[name] = points
    for name in files:  # `a.jpg.png`, which a list calls a.jpg
        short = names.stem(name)
        if name not in found and short != name and short not in files and short in found:
            found[name] = found[short]
    if found and files and not any(name in files for name in found):
        listed, own = names.shown(next(iter(landmarks))), names.shown(min(files))
        raise AlignmentError(
            f"landmarks: expected lines for images such as {own}, got {len(found)} of other names such as {listed}"
        )
    return found


def points_hash(landmarks: Landmarks, faces: Sequence[str]) -> str:
    """SHA-256 of the points of these faces, in this order, hexadecimal."""
    digest = hashlib.sha256()
    for name in faces:
        points = landmarks.get(name)
        text = "none" if points is None else " ".join(repr(float(value)) for value in np.asarray(points).ravel())
        digest.update(f"{name}\0{text}\n".encode())
    return digest.hexdigest()
