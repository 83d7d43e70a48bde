"""Natural examples of every kind: as they are, harmlessly changed, of people outside the classes, of other sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fastadv.data import Face, read_image, to_tensor
from fastadv.data.run_files import image_file
from fastadv.runs import list_hash
from fastadv.runs.attack import source_name
from fastadv.studies.detection.attacks import AttackedImages
from fastadv.studies.detection.controls import Control, noise_of_norm
from fastadv.studies.detection.features import Features, images_of
from fastadv.studies.detection.plan import PARTS
from fastadv.studies.detection.setting import Clean, OtherFaces, Setting, kind

NATURAL, CONTROL, NOISE, OUTSIDE, OTHER = "natural", "control", "noise", "outside", "other"
"""What a kind of natural examples is: as they are, a control, noise of an attack's norm, outsiders, another source."""

SORTS = (NATURAL, CONTROL, NOISE, OUTSIDE, OTHER)

OUTSIDERS = "people outside the classes"


@dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """Natural examples of one kind and one part.

    Attributes:
        label: ``"natural"``, ``"blur:1"``, ``"noise of bim@8/255 targeted"``, or a folder.
        sort: One of ``NATURAL``, ``CONTROL``, ``NOISE``, ``OUTSIDE`` and ``OTHER``.
        names: Of the images, at least one.
        fitted: Whether the detectors were fitted on the kind (and on this strength of it).
        kind_fitted: Whether they were on a control of this kind, of any strength.
        make: Taps them, or reads what is kept.
    """

    label: str
    sort: str
    names: tuple[str, ...]
    fitted: bool
    kind_fitted: bool
    make: Callable[[], Features] = field(repr=False)


def kinds(
    setting: Setting,
    clean: Clean,
    cells: Sequence[AttackedImages],
    part: str,
    *,
    controls: Sequence[Control] = (),
    others: Sequence[OtherFaces] = (),
    unseen: Sequence[AttackedImages] = (),
) -> tuple[Kind, ...]:
    """Every kind of natural examples of a part that there is, those as they are first.

    Args:
        setting: The study.
        clean: Its unchanged images.
        cells: The adversarial images that the detectors are fitted on; noise has their L2 norms.
        part: Of the study.
        controls: Further ones than the study's.
        others: Further sources than the study's.
        unseen: Further adversarial images.
    """
    natural = setting.splits.natural[part]
    known = {control.kind for control in setting.controls}

    def of(label: str, sort: str, names: Iterable[str], fitted: bool, make: Callable[[], Features]) -> Kind:
        return Kind(
            label=label,
            sort=sort,
            names=tuple(names),
            fitted=fitted,
            kind_fitted=fitted or (sort == CONTROL and label.partition(":")[0] in known),
            make=make,
        )

    def found() -> Iterator[Kind]:
        yield of(NATURAL, NATURAL, natural, True, partial(clean.natural.of, natural))
        for control in dict.fromkeys((*setting.controls, *controls)):
            fitted = control in setting.controls
            yield of(control.label, CONTROL, natural, fitted, partial(controlled, setting, control, part))
        for cell in (*cells, *unseen) if setting.controls or part == "test" else ():
            rows = cell.made_from(aside(setting, part))
            fitted = bool(setting.controls and cell.made_from(aside(setting, "fit")))
            names = [source_name(row) for row in rows]
            yield of(noise_label(cell), NOISE, names, fitted, partial(noisy, setting, cell, part))
        outside = setting.splits.outside[part]
        yield of(OUTSIDERS, OUTSIDE, outside, True, partial(setting.clean, f"outside {part}", outside))
        for other in (*setting.others, *others):
            fitted = other in setting.others
            yield of(other.label, OTHER, other.parts[part], fitted, partial(elsewhere, setting, other, part))

    return tuple(one for one in found() if one.names)


def counts(setting: Setting, clean: Clean, cells: Sequence[AttackedImages]) -> dict[str, dict[str, int]]:
    """How many natural examples of each kind there are, by part."""
    return {part: {one.label: len(one.names) for one in kinds(setting, clean, cells, part)} for part in PARTS}


def notes(setting: Setting, outside: float) -> tuple[str, ...]:
    """What a reader must know of the natural examples that are not there."""
    if not outside or setting.splits.outside["test"]:
        return ()
    people = len(setting.splits.people)
    return (f"{OUTSIDERS}: none, since {outside:g} of {people} people are fewer than {len(PARTS)}",)


def noise_label(cell: AttackedImages) -> str:
    """What noise of the L2 norms of an attack's images is called."""
    return f"noise of {cell.attack} {kind(cell.targeted)}"


def aside(setting: Setting, part: str) -> tuple[str, ...]:
    """The images of a part that are set aside, natural ones and those to attack."""
    return (*setting.splits.natural[part], *setting.splits.attacked[part])


def controlled(setting: Setting, control: Control, part: str) -> Features:
    """The natural images of a part under a control."""
    names = setting.splits.natural[part]
    images = (_under(setting, control, face.image, face.id) for face in setting.faces(names))
    return setting.tapped(f"{control} {part}", f" {control!r} {setting.seed}", names, images)


def noisy(setting: Setting, cell: AttackedImages, part: str) -> Features:
    """The images that an attack has changed, with noise of the same L2 norm in place of its change."""
    rows = cell.made_from(aside(setting, part))
    norms: Mapping[str, float] = {source_name(row): row.l2 for row in rows}

    def noise(face: Face) -> Tensor:
        norm, ids = torch.tensor([norms[face.name]], dtype=torch.float64), torch.tensor([face.id])
        return noise_of_norm(face.image[None], norm, ids, seed=setting.seed)[0]

    names = list(norms)
    images = (noise(face) for face in setting.faces(names))
    return setting.tapped(f"{noise_label(cell)} {part}", f" {list_hash(rows)} {setting.seed}", names, images)


def elsewhere(setting: Setting, other: OtherFaces, part: str) -> Features:
    """The faces of another source."""
    stage = f"other {other.content[:8]} {part}"
    return setting.tapped(stage, f" {other.content}", other.parts[part], images_of(other.source, other.parts[part]))


def attacked_under(setting: Setting, cell: AttackedImages, control: Control, part: str) -> Features:
    """The adversarial images of a part, of which there are some, under a control."""
    rows = cell.made_from(aside(setting, part))
    names = [source_name(row) for row in rows]
    files = ((image_file(cell.folder, row.name), row.id) for row in rows)
    images = (_under(setting, control, to_tensor(read_image(file)), key) for file, key in files)
    stage = f"{cell.attack} {kind(cell.targeted)} under {control} {part}"
    return setting.tapped(stage, f" {list_hash(rows)} {control!r} {setting.seed}", names, images)


def _under(setting: Setting, control: Control, image: Tensor, key: int) -> Tensor:
    return control(image[None], torch.tensor([key]), seed=setting.seed)[0]
