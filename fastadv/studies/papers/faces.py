"""Which faces a recipe is about."""

from __future__ import annotations

import numpy as np

from fastadv.core.errors import ArgumentError
from fastadv.data import FaceSource
from fastadv.data.dealt_pairs import by_identity
from fastadv.studies.detection.plan import Selection


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
