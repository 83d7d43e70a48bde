"""What every stage of a detection study works with: faces, network, splits, and how it sees the unchanged images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import Face, FaceSource, read_image, to_tensor
from fastadv.data.dealt_pairs import by_identity
from fastadv.data.names import several
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.models.identity import state_hash
from fastadv.runs import list_hash
from fastadv.runs.faces import files_of_both
from fastadv.runs.inputs import open_faces_of
from fastadv.runs.workers import Workers
from fastadv.studies.detection.controls import Control
from fastadv.studies.detection.features import Features, extract, kept
from fastadv.studies.detection.plan import PARTS, Splits, people_of, share_out

TARGETED, UNTARGETED = "targeted", "untargeted"


def kind(targeted: bool) -> str:
    """``"targeted"`` or ``"untargeted"``."""
    return TARGETED if targeted else UNTARGETED


@dataclass(frozen=True, kw_only=True, eq=False)
class OtherFaces:
    """Natural faces of another source than the study's: another camera, another crop.

    Attributes:
        label: The folder as it was given, with a slash: no other kind of natural images is called so.
        source: The faces.
        parts: Their names by part, of each at most as many as the study has natural images there.
        content: Digest of all that decides about the pixels of the source.
    """

    label: str
    source: FaceSource
    parts: Mapping[str, tuple[str, ...]]
    content: str


def open_other(
    folder: str,
    model: FaceModel,
    study: FaceSource,
    splits: Splits,
    *,
    shares: tuple[float, float] | None,
    seed: int,
) -> OtherFaces:
    """Open a further source, and share its people out; its images where they are of fewer than three people.

    Args:
        folder: As ``open_faces`` takes it.
        model: Whose size the faces have.
        study: The study's faces, of which there must be none.
        splits: How many images there are of each part.
        shares: That validate, and that test; None: all of them test.
        seed: Of the draws.

    Raises:
        ValueError: Fewer than three images, an image that cannot be used, or one of the study.
        SourceError, AlignmentError: The folder cannot be read.
    """
    source = open_faces_of(model, Path(folder))
    if len(source.names) < len(PARTS):
        raise ArgumentError(f"also_natural: expected at least {len(PARTS)} images in {folder}, got {len(source.names)}")
    source.check(source.names)
    shared = files_of_both(source, study)
    if shared:
        raise ArgumentError(
            f"also_natural: expected images that are not the study's, got {several(shared)} of {folder}"
        )
    grouped = by_identity(source.names)
    units = grouped if len(grouped) >= len(PARTS) else {name: [name] for name in source.names}
    part_of = dict.fromkeys(units, "test") if shares is None else share_out(list(units), *shares, seed)
    parts = {}
    for part in PARTS:
        own = [name for unit, names in units.items() if part_of[unit] == part for name in names]
        order = np.random.Generator(np.random.PCG64([seed, 2])).permutation(len(own))
        parts[part] = tuple(sorted(own[k] for k in order[: len(splits.natural[part])]))
    label = folder if "/" in folder else f"{folder}/"
    return OtherFaces(label=label, source=source, parts=parts, content=list_hash([source.identity()]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What every stage of a study works with.

    Attributes:
        source: The faces.
        model: With a class head.
        classes: Who each logit is.
        splits: Whose images go where.
        layers: To tap.
        path: The study's folder.
        engine: How attacks are run, with every choice made.
        controls: Harmless changes that are natural examples of the fit; with any, noise of an attack's L2 norm is too.
        others: Further sources whose faces are natural examples of the fit.
        seed: Of every random number.
        workers: Other processes that attack and evaluate; None: this one does.
        progress: Told of every stage.
    """

    source: FaceSource
    model: FaceModel
    classes: tuple[str, ...]
    splits: Splits
    layers: tuple[str, ...]
    path: Path
    engine: Engine
    controls: tuple[Control, ...] = ()
    others: tuple[OtherFaces, ...] = ()
    seed: int = 0
    workers: Workers | None = None
    progress: Progress = silent

    @cached_property
    def weights(self) -> str:
        """The digest of the network and its head."""
        return state_hash(self.model)

    @cached_property
    def logit(self) -> Mapping[str, int]:
        """The class of each person."""
        return {person: k for k, person in enumerate(self.classes)}

    def labels(self, names: Sequence[str]) -> Tensor:
        """The classes ``(N,)`` of images, by the people in their names."""
        return torch.tensor([self.logit[person] for person in people_of(names)], dtype=torch.int64)

    def places(self, names: Sequence[str]) -> Tensor:
        """The places ``(N,)`` of the people in images' names among those of the study."""
        place = {person: k for k, person in enumerate(self.splits.people)}
        return torch.tensor([place[person] for person in people_of(names)], dtype=torch.int64)

    def right(self, features: Features) -> Tensor:
        """Which images are classified rightly, ``(N,)`` bool."""
        return features.predicted == self.labels(features.names)

    def clean(self, stage: str, names: Sequence[str]) -> Features:
        """The network's view of images as they are."""

        return self.tapped(stage, "", names, (face.image for face in self.faces(names)))

    def changed(self, stage: str, key: str, names: Sequence[str], files: Sequence[Path]) -> Features:
        """The network's view of written images."""
        return self.tapped(stage, f" {key}", names, (to_tensor(read_image(file)) for file in files))

    def faces(self, names: Sequence[str]) -> Iterator[Face]:
        """The named faces of the study's source, read ahead."""
        with self.source.stream(names) as faces:
            yield from faces

    def tapped(self, stage: str, key: str, names: Sequence[str], images: Iterator[Tensor]) -> Features:
        """The network's view of images, or what an earlier call has kept of it.

        Args:
            stage: Of the progress, and of the file.
            key: What the images depend on besides their names; those of another key are tapped anew.
            names: Of the images.
            images: Each ``(3, H, W)``; read only where nothing is kept.
        """
        file = self.path / "features" / f"{stage.replace('/', '-')}.safetensors"
        title = f"tapping {stage}"

        def make() -> Features:
            there, told = self.workers, self.progress
            return extract(self.model, self.layers, names, images, stage=title, workers=there, progress=told)

        made = kept(file, f"{self.weights}{key}", self.layers, names, make)
        self.progress(title, len(names), len(names))
        return made


@dataclass(frozen=True, kw_only=True, eq=False)
class Clean:
    """The unchanged images.

    Attributes:
        rest: Those that represent the classes.
        natural: Natural examples of all parts.
        sources: Those to attack, of all parts.
    """

    rest: Features
    natural: Features
    sources: Features


def look(setting: Setting) -> Clean:
    """Tap the unchanged images of a study, or read what an earlier call has kept."""
    splits = setting.splits
    return Clean(
        rest=setting.clean("rest", splits.rest),
        natural=setting.clean("natural", [n for names in splits.natural.values() for n in names]),
        sources=setting.clean("sources", [n for names in splits.attacked.values() for n in names]),
    )
