"""Which faces a recipe is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastadv.attacks.spec import parse_attack
from fastadv.core.errors import ArgumentError
from fastadv.data import FaceSource
from fastadv.data.dealt_pairs import by_identity
from fastadv.models import FaceModel
from fastadv.studies.detection.plan import LEAST_REST, Selection
from fastadv.studies.detection.study import StudyConfig
from fastadv.studies.papers.recipe import Setup

if TYPE_CHECKING:
    from fastadv.studies.papers.carrara_part import KnnPart
    from fastadv.studies.papers.massoli_parts import AttackedClassifier


def some_people(source: FaceSource, *, people: int, least: int, most: int, seed: int) -> Selection:
    """Images of some people, drawn by the seed among those who have enough.

    Args:
        source: The faces.
        people: How many, or all where there are fewer, and at least three.
        least: Images that a person must have.
        most: Images of a person that are taken, the first ones by name.
        seed: Of the draw.

    Raises:
        ValueError: Fewer than three people have as many images.
    """
    enough = {person: names for person, names in by_identity(source.names).items() if len(names) >= least}
    if len(enough) < 3:
        raise ArgumentError(f"--data: expected at least 3 people with {least} images, got {len(enough)}")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(enough))
    chosen = sorted(sorted(enough)[k] for k in order[:people])
    return Selection(source, [name for person in chosen for name in enough[person][:most]])


def with_new_head(
    part: AttackedClassifier | KnnPart, setup: Setup, **more: Any
) -> tuple[FaceSource, FaceModel, StudyConfig]:
    """The faces, the network and the configuration of a part's study of detection, with ``more`` of the latter.

    As in the papers, unchanged images are the only natural examples, and everybody is a class.
    """
    given, least = setup.inputs(None), part.natural + part.attacked + LEAST_REST
    model = given.open_model()
    source = some_people(given.open_faces(model), people=part.people, least=least, most=part.most, seed=setup.seed)
    config = StudyConfig(
        attacks=tuple(parse_attack(text) for text in part.attacks),
        natural=part.natural,
        attacked=part.attacked,
        controls=(),
        outside=0.0,
        new_head=True,
        seed=setup.seed,
        **more,
    )
    return source, model, config
