"""A run of made-up images, and its content."""

import hashlib
from pathlib import Path

import numpy as np
from rows import row

from fastadv.data import ManifestRow, RunFolder, encode_png, face_id

CONFIG = {"attack": {"name": "fim", "eps": 0.03}, "seed": 7}


NAMES = [f"P{index % 3}/P{index % 3}_{index:04d}" for index in range(12)]


def image(name: str) -> np.ndarray:
    return np.random.default_rng(face_id(name)).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def written(name: str) -> ManifestRow:
    """The row as it is read back: with the hash of its image."""
    return row(name, image_hash=hashlib.sha256(encode_png(image(name))).hexdigest())


def begin(path: Path, config: dict = CONFIG) -> None:
    """A run with one image, which is what claims the folder."""
    with RunFolder.open(path, config) as run:
        write(run, NAMES[:1])


def write(run: RunFolder, names: list[str]) -> None:
    for name in names:
        run.write(row(name), image(name))


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
