"""Areas under ROC curves of the same pairs under several scores, with draws that carry over to their differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastadv.core.errors import ArgumentError
from fastadv.data import Pair

DRAWS = 200


def area_draws(
    scores: NDArray[np.floating], pairs: Sequence[Pair], *, draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    r"""AUCs of all pairs, and of pairs of people drawn anew.

    A draw takes as many people as there are, with replacement. With :math:`m_a` the number of times that person a is
    drawn, a pair of people a and b counts :math:`m_a m_b` times, and a pair of one person :math:`m_a` times. The same
    draws for all scores: the spread of a difference is that of the difference of the draws.

    Args:
        scores: ``(K, P)``, higher for the same person.
        pairs: P; the people are what stands before the last slash of the names.
        draws: How many.
        seed: Of the draws.

    Returns:
        ``(K, 1 + draws)``; the first is that of all pairs. NaN for a draw without a pair of one of the classes.

    Raises:
        ValueError: Another number of pairs than scores.
    """
    if np.ndim(scores) != 2 or np.shape(scores)[1] != len(pairs):
        raise ArgumentError(f"scores: expected (K, {len(pairs)}), one for each pair, got {np.shape(scores)}")
    names = [(p.first.rpartition("/")[0], p.second.rpartition("/")[0]) for p in pairs]
    people = sorted({name for both in names for name in both})
    place = {name: k for k, name in enumerate(people)}
    one, other = (np.array([place[both[k]] for both in names]) for k in (0, 1))
    same = np.array([p.same for p in pairs])
    generator = np.random.Generator(np.random.PCG64(seed))
    found = np.empty((len(scores), 1 + draws))
    values = [np.unique(row, return_inverse=True) for row in scores]
    for draw in range(1 + draws):
        drawn = generator.integers(len(people), size=len(people)) if draw else np.arange(len(people))
        times = np.bincount(drawn, minlength=len(people))
        weights = np.where(one == other, times[one], times[one] * times[other]).astype(np.float64)
        for k, (distinct, inverse) in enumerate(values):
            positive, negative = (
                np.bincount(inverse, weights * chosen, minlength=len(distinct)) for chosen in (same, ~same)
            )
            below = np.cumsum(negative) - negative / 2  # of equal scores half
            total = positive.sum() * negative.sum()
            found[k, draw] = (positive * below).sum() / total if total else np.nan
    return found
