"""What the shipped denoiser does to noisy faces: of people that were drawn as those it was trained on, and of LFW."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastadv.data import LFW, FaceSource, SyntheticFaces
from fastadv.models.red import load_denoiser
from fastadv.training.noisy_batches import HeldImages, measure

_SEED = 77  # of people that no shipped network has seen
_IMAGES = 200


def run(*, data: Path | None, quick: bool) -> list[Mapping[str, Any]]:
    """A row for a source and a size of the noise: mean PSNR of the noisy and of the denoised images, in dB."""
    count = 8 if quick else _IMAGES
    sources: dict[str, FaceSource] = {"synthetic people": SyntheticFaces(identities=count, per_identity=1, seed=_SEED)}
    if data is not None:
        sources["LFW"] = LFW(data / "lfw")
    network, rows = load_denoiser(), list[Mapping[str, Any]]()
    for name, source in sources.items():
        names = [source.names[i * len(source.names) // count] for i in range(count)]
        for gain in measure(network, HeldImages(source=source, names=tuple(names))):
            about = {"faces": name, "images": count, "sigma": gain.sigma}
            rows.append({**about, "noisy_db": gain.noisy, "denoised_db": gain.denoised})
    return rows
