"""The studies of Massoli et al. 2021: attacks on a classifier and on its embeddings, and detectors of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.attacks.gallery import Gallery
from fastadv.attacks.spec import AttackSpec, parse_attack
from fastadv.core.progress import Progress
from fastadv.data import FaceSource, read_image, to_uint8
from fastadv.data.run_files import image_file
from fastadv.detection import FitConfig, load_detector
from fastadv.models import FaceModel
from fastadv.ops.layers import METRICS
from fastadv.studies.detection import fit
from fastadv.studies.detection.attacks import AttackedImages, gallery_of, made_and_read, wanted
from fastadv.studies.detection.configurations import CONFIGURATIONS
from fastadv.studies.detection.features import scores_of
from fastadv.studies.detection.plan import PARTS, people_of
from fastadv.studies.detection.setting import Clean, Setting, kind, look
from fastadv.studies.detection.study import StudyConfig, begin, identity_of, planned, reopen
from fastadv.studies.papers.faces import with_new_head
from fastadv.studies.papers.recipe import Cost, Setup, StudyPart
from fastadv.studies.papers.traces import write_pictures
from fastadv.studies.verify import VerifyPlan, verify_folder

LEVELS = 5
"""Figure 9 of the paper counts the pixels that are changed by at most so many grey levels."""

_SHOWN = 15  # factor of a change on a picture
_FIT_SECONDS = 20.0  # of a detector of 150 epochs, on two cores
_RESULTS = ("before", "after")
# those of one distance, as in the paper
_CONFIGURATIONS = tuple(c for own in CONFIGURATIONS.values() for c in own if c.metric in METRICS)


@dataclass(frozen=True, kw_only=True)
class AttackedClassifier(StudyPart):
    """A class head of some people, attacks on it and on the embeddings, and what they come to in a verifier.

    Attributes:
        attacks: On the class head; what detectors are fitted on.
        guided: The kNN-guided attacks.
        people: How many, who have ``natural + attacked`` images and some more.
        natural: Images of each person that stay as they are.
        attacked: Images of each person to attack.
        most: Images of a person that are used.
        test: Share of the people whose images measure the detectors.
        pairs: Verification pairs of the threshold at the equal error rate; None: all.
    """

    name: str = "classifier"
    attacks: tuple[str, ...]
    guided: tuple[str, ...]
    people: int
    natural: int
    attacked: int
    most: int
    test: float
    pairs: int | None

    def open(self, setup: Setup) -> tuple[FaceSource, FaceModel, StudyConfig]:
        """The faces, the network and the configuration of the detection study."""
        return with_new_head(self, setup, test=self.test)

    def run(self, setup: Setup, folder: Path, progress: Progress) -> Mapping[str, Any]:
        """Make the images, and measure distances, similarities and changes of pixels."""
        source, model, config = self.open(setup)
        planned(config, source, model)
        own = identity_of(config, source, model, setup.engine, path=folder)
        with own.hold(folder):
            setting = begin(config, source, model, path=folder, engine=own.engine, progress=progress)
            clean, cells, notices = self.images(setting)
            verifier = verify_folder(
                VerifyPlan(inputs=setup.inputs(None), pairs=setup.verification(self.pairs)), progress=progress
            )
            gallery = gallery_of(setting, clean)
            return {
                "people": len(setting.splits.people),
                "accuracy": float(setting.right(clean.natural).float().mean()),
                "verification": asdict(verifier.clean),
                "threshold": verifier.threshold,
                "cells": [_measured(setting, clean, gallery, cell) for cell in cells],
                "pictures": _pictures(setting, [c for c in cells if not c.on_logits and c.targeted], folder),
                "notices": list(notices),
            }

    def images(self, setting: Setting) -> tuple[Clean, tuple[AttackedImages, ...], tuple[str, ...]]:
        """The unchanged and the adversarial images, those of an earlier call where they are there."""
        clean = look(setting)
        specs = (*_specs(self.attacks), *_specs(self.guided))
        return clean, *made_and_read(setting, clean, specs, (), parts=PARTS)

    def cost(self, setup: Setup) -> Cost:
        """Every image with every step of every attack, targeted and untargeted."""
        images = 2 * self.people * self.attacked
        steps = sum(spec.recipe().steps for spec in _specs((*self.attacks, *self.guided)))
        pairs = 6000 if self.pairs is None else self.pairs
        made = images * (len(self.attacks) + len(self.guided))
        return Cost(gradients=images * steps, forwards=self.people * self.most + 2 * pairs + 2 * made, images=made)


def _specs(texts: Sequence[str]) -> tuple[AttackSpec, ...]:
    return tuple(parse_attack(text) for text in texts)


def _measured(setting: Setting, clean: Clean, gallery: Gallery, cell: AttackedImages) -> dict[str, Any]:
    """The figures of one attack and kind, of the images that succeed."""
    found: dict[str, Any] = {**cell.described(), "on_logits": cell.on_logits}
    if cell.features is None:
        return {**found, "names": [], "distance": [], "impersonation": None, "evasion": None, "pixels": None}
    names, rows = cell.features.names, cell.features.embeddings
    distances = gallery.distances(rows.to(gallery.templates.device)).cpu()
    classes = _classes(setting, cell, gallery, distances)
    place = {int(c): k for k, c in enumerate(gallery.classes)}
    towards = distances[torch.arange(len(rows)), [place[int(c)] for c in classes]]
    before = clean.sources.of(names)
    at = {name: k for k, name in enumerate(before.names)}
    own = before.embeddings[[at[name] for name in names]]
    partners = partial(_partners, setting, clean)
    found["names"], found["distance"] = list(names), towards.tolist()
    for scene, labels in (("impersonation", classes), ("evasion", setting.labels(names))):
        other = partners(labels)
        cosines = ((own * other).sum(1).tolist(), (rows * other).sum(1).tolist())
        found[scene] = dict(zip(_RESULTS, cosines, strict=True))
    found["pixels"] = None if cell.on_logits else _pixels(setting, cell)
    return found


def _classes(setting: Setting, cell: AttackedImages, gallery: Gallery, distances: Tensor) -> Tensor:
    """The adversarial class of each image ``(N,)``: what it was attacked for, or what the attacked system says."""
    assert cell.features is not None
    if cell.targeted:
        return wanted(setting, cell.features.names, targeted=True)
    return cell.features.predicted if cell.on_logits else gallery.classes.cpu()[distances.argmin(1)]


def _partners(setting: Setting, clean: Clean, labels: Tensor) -> Tensor:
    """The embedding ``(N, D)`` of a natural image of each class, in turn: none of these is attacked, or a guide."""
    places: dict[str, list[int]] = {}
    for k, person in enumerate(people_of(clean.natural.names)):
        places.setdefault(person, []).append(k)
    chosen = [places[setting.classes[int(c)]] for c in labels]
    return clean.natural.embeddings[[own[k % len(own)] for k, own in enumerate(chosen)]]


def _changes(setting: Setting, cell: AttackedImages) -> Iterator[NDArray[np.int64]]:
    """The change of each pixel in grey levels, the largest of its channels, ``(H, W)`` an image."""
    assert cell.features is not None
    with setting.source.stream(cell.features.names) as faces:
        for face in faces:
            made = read_image(image_file(cell.folder, face.name)).astype(np.int64)
            yield np.abs(made - to_uint8(face.image)).max(2)


def _pixels(setting: Setting, cell: AttackedImages) -> dict[str, list[float]]:
    """The share of pixels that are changed by at most ``LEVELS``, by image; and of each size of the change."""
    within, counts = [], np.zeros(256, np.int64)
    for change in _changes(setting, cell):
        within.append(float((change <= LEVELS).mean()))
        counts += np.bincount(change.ravel(), minlength=256)
    last = int(counts.nonzero()[0].max())
    return {"within": within, "levels": (counts[: last + 1] / counts.sum()).tolist()}


def _pictures(setting: Setting, cells: Sequence[AttackedImages], folder: Path) -> list[dict[str, Any]]:
    """For each guided attack the first image that all of them changed: source, guide, adversarial image and change."""
    common = [set(cell.features.names) for cell in cells if cell.features is not None]
    names = sorted(set.intersection(*common)) if len(common) == len(cells) and common else []
    if not names:
        return []
    name = names[0]
    source, guide = (to_uint8(setting.source.load(n).image) for n in (name, setting.splits.guide(name)))
    made = []
    for cell in cells:
        image = read_image(image_file(cell.folder, name))
        noise = np.clip(128 + _SHOWN * (image.astype(np.int64) - source), 0, 255).astype(np.uint8)
        shown = {"source": source, "guide": guide, "adversarial": image, f"change x {_SHOWN}": noise}
        files = write_pictures(folder, shown.items(), prefix=f"{cell.attack.replace('/', '-')}-")
        made.append({"attack": cell.attack, "files": files})
    return made


@dataclass(frozen=True, kw_only=True)
class FittedDetectors(StudyPart):
    """Detectors of both readings, fitted on the classifier attacks and measured on all images of the test.

    Attributes:
        classifier: Whose images they are; it is run before.
        epochs: At most, of a fit.
    """

    name: str = "detectors"
    classifier: AttackedClassifier
    epochs: int

    def run(self, setup: Setup, folder: Path, progress: Progress) -> Mapping[str, Any]:
        """Fit, and score the natural and the adversarial images of the test."""
        source, model, config = self.classifier.open(setup)
        path = folder.with_name(self.classifier.name)
        made = fit.fit_folder(
            config,
            source,
            model,
            path=path,
            engine=setup.engine,
            configurations=_CONFIGURATIONS,
            fitting=FitConfig(epochs=self.epochs),
            progress=progress,
        )
        _, setting = reopen(path, source, model, progress=progress)
        clean, cells, _ = self.classifier.images(setting)
        calm = clean.natural.of(setting.splits.natural["test"])
        groups = [(cell, part) for cell in cells if (part := cell.part(setting.splits.attacked["test"])) is not None]
        found = []
        for one in made.detectors:
            label = one.configuration.label
            detector = load_detector(fit.detector_file(path, label), device=setting.model.device)
            scores = {"": scores_of(detector, calm)} | {
                f"{cell.attack} {kind(cell.targeted)}": scores_of(detector, part) for cell, part in groups
            }
            found.append(
                {
                    **asdict(one.configuration),
                    "label": label,
                    "validation_worst": one.worst,
                    "scores": {name: values.double().tolist() for name, values in scores.items()},
                }
            )
        return {
            "detectors": found,
            "groups": [
                {
                    "group": f"{cell.attack} {kind(cell.targeted)}",
                    "family": cell.family,
                    "attack": cell.attack,
                    "kind": kind(cell.targeted),
                    "on_logits": cell.on_logits,
                    "people": people_of(part.names),
                }
                for cell, part in groups
            ],
            "natural": people_of(calm.names),
            "notices": list(made.notices),
        }

    def cost(self, setup: Setup) -> Cost:
        """The fits; the images are the classifier's."""
        return Cost(seconds=len(_CONFIGURATIONS) * _FIT_SECONDS * self.epochs / 150)


_BALLS = tuple(
    f"{name}:{steps}@{eps}" for name in ("bim", "mi-fgsm") for eps in (0.03, 0.07, 0.1, 0.3) for steps in (30, 50)
)
_GUIDED = tuple(f"@{levels}/255" for levels in (5, 7, 10))


def classifier_part(setup: Setup) -> AttackedClassifier:
    """The images of all recipes, at a scale; at ``"paper"`` as in sections 5.1 to 5.3."""
    return AttackedClassifier(
        attacks=setup.at(
            ("bim:4@0.03", "mi-fgsm:4@0.03", "cw-l2:15,search_steps=2"),
            ("bim:10@0.03", "mi-fgsm:10@0.03", "cw-l2:40,search_steps=2"),
            (*_BALLS, "cw-l2:1000,search_steps=5"),
        ),
        guided=tuple(f"knn-df:{setup.at(20, 100, 700)}{budget}" for budget in _GUIDED),
        people=setup.at(6, 32, 500),
        natural=setup.at(2, 3, 10),
        attacked=setup.at(2, 3, 10),
        most=setup.at(8, 20, 10_000),
        test=setup.at(0.34, 0.5, 0.35),
        pairs=setup.at(100, 1000, None),
    )


def image_parts(setup: Setup) -> tuple[StudyPart, ...]:
    """Of recipes about images."""
    return (classifier_part(setup),)


def detector_parts(setup: Setup) -> tuple[StudyPart, ...]:
    """Of recipes about detectors."""
    classifier = classifier_part(setup)
    return classifier, FittedDetectors(classifier=classifier, epochs=setup.at(5, 60, 150))


def delta(attack: str) -> int:
    """The radius of an attack in grey levels."""
    radius = parse_attack(attack).radius
    assert radius is not None
    return round(255 * radius)
