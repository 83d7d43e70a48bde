"""How well a score tells adversarial images from natural ones.

A score is higher for an image that looks adversarial; an image is *flagged* at threshold t when ``score >= t``. The
false-alarm rate is the share of the natural images that are flagged, the miss rate that of the adversarial ones that
are not. All in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from fastadv.core import statistics
from fastadv.core.errors import ArgumentError
from fastadv.core.resolution import measurable, notes_of, too_rare
from fastadv.core.statistics import Floats

_NATURAL = "natural images"
_CELLS = 1 << 22  # of a temporary of the bootstrap


@dataclass(frozen=True, kw_only=True)
class AreaUnderCurve:
    """An AUC with its bootstrap confidence interval.

    Attributes:
        value: the chance that an adversarial image scores above a natural one, ties counted half.
        low: lower end of the interval.
        high: upper end.
        level: what share of the bootstrap's draws lies between them.
    """

    value: float
    low: float
    high: float
    level: float


def resolved(rates: tuple[float, ...], natural: int) -> tuple[float, ...]:
    """Those of the rates that so many natural images can show."""
    return tuple(rate for rate in rates if measurable(rate, natural))


def rate_notes(natural: int, rates: tuple[float, ...]) -> tuple[str, ...]:
    """A sentence for each false-alarm rate that so many natural images cannot show."""
    return notes_of({f"false-alarm rate {rate:g}": rate for rate in rates}, natural, _NATURAL)


def auc(natural: Tensor | ArrayLike, adversarial: Tensor | ArrayLike) -> float:
    """The chance that an adversarial image scores above a natural one, ties counted half.

    Raises:
        ValueError: no scores, or scores that are not finite or of another shape.
    """
    calm, attacked = checked("natural", natural), checked("adversarial", adversarial)
    return statistics.auc(np.concatenate([calm, attacked]), np.arange(len(calm) + len(attacked)) >= len(calm))


def auc_interval(
    natural: Tensor | ArrayLike,
    adversarial: Tensor | ArrayLike,
    *,
    people: tuple[ArrayLike, ArrayLike] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> AreaUnderCurve:
    """The AUC and its percentile bootstrap interval.

    Natural and adversarial images are drawn again separately; or, with ``people``, the people are, each with all of
    their images of both kinds. Images of one person are alike, and drawn one by one they would make the interval too
    narrow. A draw only changes how often each distinct score counts, so all draws are a few passes over a matrix.

    Args:
        natural: ``(N,)`` finite scores.
        adversarial: ``(M,)`` finite scores.
        people: ``(N,)`` and ``(M,)``, whose images they are, as numbers or texts; None to draw images. A draw that
            leaves one kind without an image does not count.
        draws: how many samples, >= 1.
        level: of confidence, in (0, 1).
        seed: of the draws, >= 0.

    Raises:
        ValueError: as for :func:`auc`, ``people`` that do not fit the scores, or ``draws``, ``level`` or ``seed``
            out of range.

    Source:
        Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    if draws < 1 or not 0 < level < 1 or seed < 0:
        raise ArgumentError(
            f"draws, level, seed: expected at least 1, a share in (0, 1) and at least 0, got {draws}, {level}, {seed}"
        )
    scores = checked("natural", natural), checked("adversarial", adversarial)
    found = np.concatenate([_areas(*drawn) for drawn in _resampled(*scores, people, draws, seed)])
    low, high = np.quantile(found, ((1 - level) / 2, (1 + level) / 2))
    calm, attacked = _counts(*scores)
    value = float(_areas(calm[None], attacked[None])[0])
    return AreaUnderCurve(value=value, low=float(low), high=float(high), level=level)


def found_intervals(
    natural: Tensor | ArrayLike,
    adversarial: Tensor | ArrayLike,
    *,
    rates: tuple[float, ...],
    people: tuple[ArrayLike, ArrayLike],
    draws: int = 1000,
    seed: int = 0,
) -> tuple[tuple[float, float], ...]:
    """The 95 % intervals of the shares of adversarial images that are flagged at false-alarm rates.

    The threshold is drawn anew with the images, as in :func:`auc_interval`: the bootstrap over people. **Choice**: the
    ends are no narrower than Wilson's interval of the share at the threshold of all images, since a bootstrap of
    all or none has no width.

    Args:
        natural: ``(N,)`` finite scores.
        adversarial: ``(M,)`` finite scores.
        rates: of false alarms, each at least ``1 / N``.
        people: ``(N,)`` and ``(M,)``, whose images they are.
        draws: how many samples.
        seed: of the draws.

    Raises:
        ValueError: as for :func:`auc_interval`, or a rate that so many natural images cannot show.
    """
    scores = checked("natural", natural), checked("adversarial", adversarial)
    for rate in rates:
        if not measurable(rate, len(scores[0])):
            raise too_rare("rates", rate, len(scores[0]), _NATURAL)
    size, whole = len(scores[1]), [counts[None] for counts in _counts(*scores)]
    drawn = [[_found(*one, rate) for rate in rates] for one in _resampled(*scores, people, draws, seed)]
    made = []
    for rate, found in zip(rates, zip(*drawn, strict=True), strict=True):
        low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
        exact = statistics.wilson(round(float(_found(whole[0], whole[1], rate)[0]) * size), size)
        made.append((min(float(low), exact[0]), max(float(high), exact[1])))
    return tuple(made)


def _resampled(
    natural: Floats, adversarial: Floats, people: tuple[ArrayLike, ArrayLike] | None, draws: int, seed: int
) -> Iterator[tuple[Floats, Floats]]:
    """Counts ``(some draws, scores)`` of the natural and the adversarial images, of images or of people drawn anew."""
    calm, attacked = _counts(natural, adversarial)
    shares = None if people is None else _by_person(natural, adversarial, people)
    random = np.random.Generator(np.random.Philox(key=seed))
    usable = False
    step = max(1, _CELLS // len(calm))
    for begin in range(0, draws, step):
        size = min(step, draws - begin)
        if shares is None:
            usable = True
            yield _drawn(random, calm, size), _drawn(random, attacked, size)
            continue
        times = _drawn(random, np.ones(len(shares[0])), size)
        drawn = times @ shares[0], times @ shares[1]
        both = (drawn[0].sum(1) > 0) & (drawn[1].sum(1) > 0)
        usable |= bool(both.any())
        yield drawn[0][both], drawn[1][both]
    if not usable:
        raise ArgumentError(
            "people: expected more people with images of both kinds, got too few for any draw to have both"
        )


def checked(name: str, scores: Tensor | ArrayLike) -> Floats:
    """``scores`` as ``(N,)`` float64, or an error unless they are finite, and one at least."""
    array = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else scores
    values = np.asarray(array, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ArgumentError(f"{name}: expected shape (N,) with N >= 1, got {values.shape}")
    if not np.isfinite(values).all():
        raise ArgumentError(f"{name}: expected finite scores, got NaN or infinity")
    return values


def _counts(calm: Floats, attacked: Floats) -> tuple[Floats, Floats]:
    """How often each distinct score comes among the natural and the adversarial images, scores ascending."""
    distinct, place = np.unique(np.concatenate([calm, attacked]), return_inverse=True)
    size = len(distinct)
    first = np.bincount(place[: len(calm)], minlength=size).astype(np.float64)
    return first, np.bincount(place[len(calm) :], minlength=size).astype(np.float64)


def _by_person(calm: Floats, attacked: Floats, people: tuple[ArrayLike, ArrayLike]) -> tuple[Floats, Floats]:
    """``(people, scores)``: how often each distinct score comes among the images of each person, of either kind."""
    whose = np.asarray(people[0]), np.asarray(people[1])
    for name, values, own in (("natural", calm, whose[0]), ("adversarial", attacked, whose[1])):
        if own.shape != values.shape:
            raise ArgumentError(
                f"people: expected shape {values.shape} for {name}, one for each score, got {own.shape}"
            )
    distinct, place = np.unique(np.concatenate([calm, attacked]), return_inverse=True)
    persons, person = np.unique(np.concatenate(whose), return_inverse=True)
    made = np.zeros((2, len(persons), len(distinct)))
    np.add.at(made[0], (person[: len(calm)], place[: len(calm)]), 1)
    np.add.at(made[1], (person[len(calm) :], place[len(calm) :]), 1)
    return made[0], made[1]


def _drawn(random: np.random.Generator, counts: Floats, size: int) -> Floats:
    total = int(counts.sum())
    return random.multinomial(total, counts / counts.sum(), size=size).astype(np.float64)


def _areas(calm: Floats, attacked: Floats) -> Floats:
    """AUCs from counts ``(draws, scores)``."""
    below = np.cumsum(calm, axis=1) - calm / 2
    return (below * attacked).sum(1) / (calm.sum(1) * attacked.sum(1))


def _found(calm: Floats, attacked: Floats, rate: float) -> Floats:
    """Shares of the adversarial images above the lowest threshold with a false-alarm rate of at most ``rate``."""
    # ascending scores: how many images a threshold at each flags
    far, tar = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in (calm, attacked))
    allowed = far <= np.floor(rate * calm.sum(1, keepdims=True) + 1e-9)
    return np.where(allowed, tar, 0).max(1) / attacked.sum(1)
