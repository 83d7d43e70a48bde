"""What every stage of a detection study works with: faces, network, splits, and how it sees the unchanged images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, read_image, to_tensor
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.models.identity import state_hash
from fastadv.studies.detection.features import Features, extract, kept
from fastadv.studies.detection.plan import Splits

TARGETED, UNTARGETED = "targeted", "untargeted"


def kind(targeted: bool) -> str:
    """``"targeted"`` or ``"untargeted"``."""
    return TARGETED if targeted else UNTARGETED


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
        seed: Of every random number.
        progress: Told of every stage.
    """

    source: FaceSource
    model: FaceModel
    classes: tuple[str, ...]
    splits: Splits
    layers: tuple[str, ...]
    path: Path
    engine: Engine
    seed: int = 0
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
        return torch.tensor([self.logit[name.rpartition("/")[0]] for name in names], dtype=torch.int64)

    def right(self, features: Features) -> Tensor:
        """Which images are classified rightly, ``(N,)`` bool."""
        return features.predicted == self.labels(features.names)

    def clean(self, stage: str, names: Sequence[str]) -> Features:
        """The network's view of images as they are."""

        def images() -> Iterator[Tensor]:
            with self.source.stream(names) as faces:
                for face in faces:
                    yield face.image

        return self._kept(stage, self.weights, names, images())

    def changed(self, stage: str, key: str, names: Sequence[str], files: Sequence[Path]) -> Features:
        """The network's view of written images."""
        return self._kept(stage, f"{self.weights} {key}", names, (to_tensor(read_image(file)) for file in files))

    def _kept(self, stage: str, key: str, names: Sequence[str], images: Iterator[Tensor]) -> Features:
        file = self.path / "features" / f"{stage.replace('/', '-')}.safetensors"
        title = f"tapping {stage}"

        def make() -> Features:
            return extract(self.model, self.layers, names, images, stage=title, progress=self.progress)

        made = kept(file, key, self.layers, names, make)
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
