"""``fastadv train denoiser``: a network that removes noise, from a folder of images or from synthetic faces."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, SyntheticFaces
from fastadv.data.dealt_pairs import by_identity
from fastadv.data.face_search import FaceSearch
from fastadv.data.run_files import FOUND
from fastadv.models import open_device
from fastadv.runs.inputs import open_faces
from fastadv.studies.train import SYNTHETIC, UNSEEN_FIRST, seen_people
from fastadv.training import CachedFaces, TrainingError
from fastadv.training.denoiser import DenoiserEpoch, save_denoiser, train_denoiser
from fastadv.training.denoiser_config import DenoiserConfig
from fastadv.training.noisy_batches import HeldImages

_HELD = 100
_HELD_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class DenoiserSummary:
    """A finished training.

    Attributes:
        layers: Of the network.
        width: Maps of every inner layer.
        stride: Of the first and the last layer.
        images: Images trained on.
        held: Held-out images.
        steps: Steps of the whole training.
        resumed_at: The step that this call went on from; 0 for a fresh start.
        history: One record an epoch.
        best: The epoch with the highest PSNR on the held-out images.
        weights: Its weights, a file for ``--defence noise2clean:FILE``.
    """

    layers: int
    width: int
    stride: int
    images: int
    held: int
    steps: int
    resumed_at: int
    history: tuple[DenoiserEpoch, ...]
    best: DenoiserEpoch
    weights: str


def train_noise2clean(
    *,
    data: Path | str,
    out: Path,
    config: DenoiserConfig,
    size: int = 112,
    identities: int = 1000,
    per_identity: int = 10,
    landmarks: Path | None = None,
    search: FaceSearch | None = None,
    cache: Path | None = None,
    half: bool = False,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress = silent,
) -> DenoiserSummary:
    """Train a RED network on Gaussian noise; a killed training goes on when started again with the same arguments.

    Held out are 100 images of unseen synthetic people, or of a tenth of the folder's (at most 100 images): of people
    that are not trained on where there are two or more.

    Args:
        data: A folder of folders of images, or ``"synthetic"``.
        out: Where weights, records and the checkpoint go.
        config: How to train.
        size: Side of the images that patches are cut from, in pixels.
        identities: Synthetic people to train on.
        per_identity: Images of each of them.
        landmarks: Five points per image; without them the middle of the image is taken.
        search: How faces are found in photographs, in place of landmarks.
        cache: A folder for the decoded images: faster epochs.
        half: Write ``half.safetensors`` too, the best weights in float16.
        device: Where to train.
        fresh: Remove the training that ``out`` holds, and begin anew.
        progress: Told of every stage.

    Raises:
        TrainingError, SourceError, ImageError, AlignmentError, ValueError: One sentence on what was wrong with which
            file or value.
        OSError: A file cannot be written.
    """
    where = open_device(device)
    source, held = _images(
        data,
        size=size,
        identities=identities,
        per_identity=per_identity,
        seed=config.seed,
        landmarks=landmarks,
        search=search,
        kept=out / FOUND[0],
        fresh=fresh,
        progress=progress,
    )
    if cache is not None:
        source = CachedFaces(source, cache, progress=progress)
    result = train_denoiser(config, source, held=held, out=out, device=where, fresh=fresh, progress=progress)
    if half:
        save_denoiser(result.network, out / "half.safetensors", half=True)
    return DenoiserSummary(
        layers=config.layers,
        width=config.width,
        stride=config.stride,
        images=result.images,
        held=len(held.names),
        steps=result.steps,
        resumed_at=result.resumed_at,
        history=result.history,
        best=result.best,
        weights=str(out / "best.safetensors"),
    )


def _images(
    data: Path | str, *, size: int, identities: int, per_identity: int, seed: int, **given: Any
) -> tuple[FaceSource, HeldImages]:
    """The images to train on, and those to measure on; ``given`` as ``open_faces`` takes it."""
    if str(data) == SYNTHETIC:
        source = seen_people(identities, per_identity, seed=seed, size=size)
        unseen = SyntheticFaces(identities=_HELD, per_identity=1, seed=seed, size=size, first=UNSEEN_FIRST)
        return source, HeldImages(source=unseen, names=unseen.names)
    found = open_faces(Path(data), size=size, **given)
    return found, HeldImages(source=found, names=_hold_out(found, seed=seed))


def _hold_out(source: FaceSource, *, seed: int) -> tuple[str, ...]:
    """A tenth of the images, one at least, of as few people as that takes; of a single one, some of theirs.

    Raises:
        TrainingError: There are fewer than two images.
    """
    wanted = min(max(1, int(len(source) * _HELD_SHARE)), _HELD)
    if len(source) < 2:
        raise TrainingError(f"data: expected at least two images, one of them to measure on, got {len(source)}")
    grouped = by_identity(source.names)
    people = sorted(grouped)
    random.Random(seed).shuffle(people)
    if len(people) == 1:
        names = sorted(grouped[people[0]])
        random.Random(seed).shuffle(names)
        return tuple(sorted(names[:wanted]))
    held: list[str] = []
    for person in people[:-1]:
        if len(held) >= wanted:
            break
        held += grouped[person]
    return tuple(sorted(held))
