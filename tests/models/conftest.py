"""Fixtures for the models: the published weights and a few real faces, where they are present."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from given_data import data_folder
from PIL import Image
from torch import Tensor

from fastadv.models import FaceModel, load

_FILES = {
    "mobilefacenet": "mobilefacenet_relu6_ms1m_arcface.safetensors",
    "mobileface_v2": "mobileface_v2.safetensors",
    "edgeface_xs": "edgeface_xs_cosface.safetensors",
}
# Where the five points belong in 112×112, as complex numbers.
_TEMPLATE = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j]
)


@pytest.fixture
def face(tmp_path: Path) -> Path:
    """A small face network as an ONNX file."""
    from onnx_files import face_network, saved

    return saved(tmp_path, face_network(), "w600k_tiny.onnx")


@pytest.fixture(scope="session")
def data_root() -> Path:
    return data_folder("weights")


@pytest.fixture(scope="session")
def published(data_root: Path) -> Callable[[str], FaceModel]:
    """A model of the zoo with its published weights."""
    return lambda name: load(name, data_root / "weights" / _FILES[name])


@pytest.fixture(scope="session")
def aligned(data_root: Path) -> Callable[[str, int], Tensor]:
    """Person and number to the aligned face, `(3, 112, 112)` in [0, 1]."""
    landmarks = {}
    for line in (data_root / "lfw" / "landmarks.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            key, *numbers = line.split()
            landmarks[Path(key).stem] = np.array([float(v) for v in numbers[:10]])

    def face(person: str, number: int) -> Tensor:
        stem = f"{person}_{number:04d}"
        points = landmarks[stem].reshape(5, 2) @ np.array([1, 1j])
        # The similarity image = a·template + b, by least squares over complex numbers.
        (a, b), *_ = np.linalg.lstsq(np.stack((_TEMPLATE, np.ones(5)), axis=1), points, rcond=None)
        matrix = (a.real, -a.imag, b.real, a.imag, a.real, b.imag)
        with Image.open(data_root / "lfw" / "images" / person / f"{stem}.jpg") as image:
            warped = image.convert("RGB").transform(
                (112, 112), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
            )
        return torch.from_numpy(np.asarray(warped, dtype=np.float32) / 255).permute(2, 0, 1)

    return face


@pytest.fixture(scope="session")
def pairs(
    data_root: Path, aligned: Callable[[str, int], Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """12 genuine and 12 impostor pairs of LFW's first fold, each as two batches `(12, 3, 112, 112)`."""
    rows = [line.split() for line in (data_root / "lfw" / "pairs.txt").read_text().splitlines()[1:601]]
    genuine = [((p, int(i)), (p, int(j))) for p, i, j in (r for r in rows[:12])]
    impostor = [((p, int(i)), (q, int(j))) for p, i, q, j in (r for r in rows[300:312])]

    def stacked(part: list[tuple[tuple[str, int], tuple[str, int]]]) -> tuple[Tensor, Tensor]:
        return (torch.stack([aligned(*a) for a, _ in part]), torch.stack([aligned(*b) for _, b in part]))

    return stacked(genuine), stacked(impostor)
