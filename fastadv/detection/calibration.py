"""Where a detector draws the line, what its scores mean, and what its false-alarm rate will be on new images.

All comes from the scores of natural images that the detector was not fitted on, the calibration set: the p-value of an
image is the share of them that look at least as adversarial. Where the images are exchangeable, all that is said here
is exact, whatever the detector.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.resolution import measurable, too_rare
from fastadv.core.statistics import Floats, eer
from fastadv.detection.measures import checked

DEFAULT_RATE = 0.01
_USUAL = (DEFAULT_RATE, 0.05)
_MOST = 1 << 20  # images of a calibration set
_CELLS = 1 << 22  # of a temporary of the bootstrap
_SLACK = 1e-9  # 0.29 * 100 is 28.999999999999996


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where a detector draws the line, and what its scores mean.

    Attributes:
        equal_error: the threshold at which the false-alarm and the miss rate are equal; None where it was calibrated on
            natural images alone.
        equal_error_rate: that rate, where the ROC, its points joined by straight lines, has it; the accuracy there is
            1 minus it.
        false_alarm_rates: the rates that were chosen.
        false_alarm: for each, the threshold from which on an image's p-value is at most the rate.
        natural: how many natural images this comes from.
        adversarial: how many adversarial ones.
        scores: ``(natural,)`` float32 on the CPU, ascending: those of the natural images, the calibration set; None in
            a file of an earlier version.
        calibrated_on: facts about these images, such as the name and the hash of a data set.

    Raises:
        ValueError: as many thresholds as rates are expected, an equal error or a rate, and finite scores in ascending
            order.
    """

    equal_error: float | None
    equal_error_rate: float | None
    false_alarm_rates: tuple[float, ...]
    false_alarm: tuple[float, ...]
    natural: int
    adversarial: int
    scores: Tensor | None = field(default=None, repr=False, compare=False)
    calibrated_on: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(self.false_alarm) != len(self.false_alarm_rates):
            raise ArgumentError(
                f"false_alarm: expected {len(self.false_alarm_rates)} thresholds, one for each rate, got "
                f"{len(self.false_alarm)}"
            )
        if self.equal_error is None and not self.false_alarm:
            raise ArgumentError("false_alarm: expected a threshold where there is no equal error, got none")
        if self.scores is not None and not _is_sorted(self.scores, self.natural):
            raise ArgumentError(
                f"scores: expected ({self.natural},) finite float32 in ascending order, got {brief(self.scores)}"
            )

    @property
    def usual_rate(self) -> float | None:
        """The false-alarm rate of the threshold that is taken where none is chosen: 1 %; the equal error rate, None,
        where it was not calibrated for 1 %; without adversarial images the first of the rates.
        """
        if DEFAULT_RATE in self._known():
            return DEFAULT_RATE
        return None if self.equal_error is not None else self.false_alarm_rates[0]

    def at(self, rate: float | None) -> float:
        """The threshold at a false-alarm rate; None: at the equal error rate.

        Raises:
            ValueError: As ``at_false_alarm``, or there is no equal error rate.
        """
        if rate is not None:
            return self.at_false_alarm(rate)
        if self.equal_error is None:
            raise ArgumentError(
                "rate: expected a false-alarm rate, got None, the equal error rate, of a detector that was calibrated "
                "on natural images alone"
            )
        return self.equal_error

    def _known(self) -> list[float]:
        """The chosen rates that the natural images are enough for."""
        if self.scores is not None:
            return list(self.false_alarm_rates)
        return [known for known in self.false_alarm_rates if measurable(known, self.natural)]

    def at_false_alarm(self, rate: float) -> float:
        """The threshold for a rate: any that the calibration set can measure; without it, one that was chosen.

        Raises:
            ValueError: The natural images are too few for the rate, or it is none in [0, 1] or none of the chosen.
        """
        if self.scores is not None:
            return _line(self.scores, rate, "rate")
        known = self._known()
        if rate not in known:
            listed = ", ".join(f"{each:g}" for each in known) or "the equal error rate only"
            if 0 <= rate <= 1 and not measurable(rate, self.natural):
                raise too_rare("rate", rate, self.natural, "natural images", hint=f"; calibrated for {listed}")
            raise ArgumentError(f"rate: expected a calibrated one ({listed}), got {rate}")
        return self.false_alarm[self.false_alarm_rates.index(rate)]

    def p_values(self, scores: Tensor) -> Tensor | None:
        r"""The share of natural images that look at least as adversarial, with the image itself among them.

        .. math:: p(s) = \frac{1 + \#\{i: c_i \ge s\}}{n + 1}

        with the n scores c of the calibration set. Of a natural image that is exchangeable with these, the chance of
        ``p <= a`` is at most a, for every a.

        Args:
            scores: ``(N,)`` float32.

        Returns:
            ``(N,)`` float64 on the same device, from ``1 / (n + 1)`` to 1; NaN for a score that is NaN. None without
            a calibration set.

        Source:
            Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a random world", chapter 2.
        """
        return None if self.scores is None else p_values(scores, self.scores)

    def described(self) -> dict[str, object]:
        """All but the scores, as plain values."""
        made = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "scores"}
        return {**made, "calibrated_on": dict(self.calibrated_on)}


def calibrate(
    natural: Tensor | ArrayLike,
    adversarial: Tensor | ArrayLike | None = None,
    *,
    rates: tuple[float, ...] | None = None,
    calibrated_on: Mapping[str, str] | None = None,
) -> Thresholds:
    r"""Thresholds from the scores of images that the detector was not fitted on.

    The threshold of rate a is the next float32 number above the r-th largest of the n natural scores, with
    :math:`r = \lfloor a (n + 1) \rfloor`: from there on an image's p-value (:meth:`Thresholds.p_values`) is at most
    a, and a new natural image is flagged with a chance of at most a (:func:`fastadv.detection.expected_rate`). At rate
    1 it is the lowest score.

    Args:
        natural: ``(n,)`` finite scores, taken as float32.
        adversarial: ``(M,)`` finite scores, for the equal error rate; None for natural images alone.
        rates: false-alarm rates in [0, 1] to draw thresholds for, each at least ``1 / (n + 1)``. None for those of 0.01
            and 0.05 that n natural images can measure.
        calibrated_on: facts to keep about the natural images.

    Raises:
        ValueError: no scores, scores that are not finite or of another shape, a rate outside [0, 1] or too low, or
            natural images alone that are too few for any of the rates.

    Source:
        Laxhammar and Falkman 2015, "Inductive conformal anomaly detection for sequential detection of anomalous
        sub-trajectories".
    """
    calm = checked("natural", natural)
    if len(calm) > _MOST:
        raise ArgumentError(f"natural: expected at most {_MOST:,} scores, got {len(calm):,}")
    scores = torch.from_numpy(np.sort(calm).astype(np.float32))
    chosen = tuple(rate for rate in _USUAL if images_needed(rate) <= len(calm)) if rates is None else rates
    lines = tuple(_line(scores, rate, "rates") for rate in chosen)
    equal: tuple[float | None, float | None] = (None, None)
    count = 0
    if adversarial is not None:
        attacked = checked("adversarial", adversarial)
        count = len(attacked)
        equal = eer(np.concatenate([calm, attacked]), np.arange(len(calm) + count) >= len(calm), single=True)
    elif not chosen:
        needed = images_needed(max(_USUAL))
        raise ArgumentError(f"natural: expected at least {needed} scores for a threshold, got {len(calm)}")
    return Thresholds(
        equal_error=equal[1],
        equal_error_rate=equal[0],
        false_alarm_rates=chosen,
        false_alarm=lines,
        natural=len(calm),
        adversarial=count,
        scores=scores,
        calibrated_on=dict(calibrated_on or {}),
    )


def worst_of(kinds: Sequence[Tensor | ArrayLike]) -> Floats:
    r"""The calibration set that keeps a false-alarm rate on each of several kinds of natural images.

    Its score of rank r from the largest is the highest of the scores that the kinds have at the same rate:

    .. math:: c_r = \max_k c^{(k)}_{\max(1, \lfloor r (n_k + 1) / (n_1 + 1) \rfloor)}, \qquad r = 1, ..., n_1

    So the p-value of an image is about the largest of those against the single kinds. A kind of fewer images than the
    first one has no score for the lowest rates; its largest takes the place.

    Args:
        kinds: ``(n_k,)`` finite scores of each kind, at least one.

    Raises:
        ValueError: as :func:`calibrate`.
    """
    falling = [-np.sort(-checked(f"kinds[{k}]", scores)) for k, scores in enumerate(kinds)]
    if not falling:
        raise ArgumentError("kinds: expected the scores of one kind or more, got none")
    rates = np.arange(1, len(falling[0]) + 1) / (len(falling[0]) + 1)
    ranks = (np.maximum(1, np.floor(rates * (len(own) + 1) + _SLACK)).astype(int) for own in falling)
    return np.max([own[rank - 1] for own, rank in zip(falling, ranks, strict=True)], axis=0)


def p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """As :meth:`Thresholds.p_values`, of the ascending scores ``(n,)`` of natural images."""
    values, known = scores.detach().contiguous(), calibration.to(scores.device)
    places = len(known) + 1 - torch.searchsorted(known, values)
    return (places.double() / (len(known) + 1)).masked_fill_(values.isnan(), torch.nan)


def images_needed(rate: float) -> int:
    """How many natural images it takes to draw a threshold at a false-alarm rate in (0, 1]: ``1 / rate - 1``."""
    return max(1, math.ceil(1 / rate - _SLACK) - 1)


def rank_of(rate: float, images: int, argument: str = "rate") -> int:
    """Which of so many natural scores, counted from the largest, the threshold of a rate lies above.

    Raises:
        ValueError: a rate outside [0, 1], or one that so many images cannot measure.
    """
    if not 0 <= rate <= 1:
        raise ArgumentError(f"{argument}: expected false-alarm rates in [0, 1], got {rate}")
    rank = math.floor(rate * (images + 1) + _SLACK)
    if rank < 1:
        needs = f"; needs at least {images_needed(rate):,}" if rate > 0 else ""
        raise ArgumentError(
            f"{argument}: expected a rate that {images:,} natural images can measure, 1/{images + 1} or more, got "
            f"{rate:g}{needs}"
        )
    return rank


@dataclass(frozen=True, kw_only=True)
class ExpectedRate:
    """What the false-alarm rate of a threshold will be on new natural images.

    Attributes:
        rate: the rate that the threshold was drawn for.
        mean: of the rate on new images, over calibration sets of this size: at most ``rate``.
        low: lower end of its interval, for images that are independent of each other.
        high: upper end.
        people: the interval where a person's images are alike: people are drawn, each with all of their images; None
            where there is one image a person, or nobody said whose the images are.
        level: of confidence.
    """

    rate: float
    mean: float
    low: float
    high: float
    people: tuple[float, float] | None
    level: float


def expected_rate(
    natural: Tensor | ArrayLike,
    rate: float,
    *,
    people: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> ExpectedRate:
    r"""The rate on new images of the threshold that :func:`calibrate` draws from n scores.

    For independent images with a continuous score it is distributed, whatever the score, as

    .. math:: \mathrm{Beta}(r, n + 1 - r), \qquad r = \lfloor a (n + 1) \rfloor,

    with mean :math:`r / (n + 1)`. Several images of one person tell less than as many of several people; so with
    ``people`` a bootstrap draws calibration sets of as many people, each with all of their images, and measures the
    threshold of each on the scores given: ``(1 + #{scores above it}) / (n + 1)``.

    Args:
        natural: ``(n,)`` finite scores.
        rate: at least ``1 / (n + 1)``.
        people: ``(n,)``, whose images they are, as numbers or texts.
        level: of confidence, in (0, 1).
        draws: of the bootstrap, >= 1.
        seed: of the draws, >= 0.

    Raises:
        ValueError: an argument is out of its range, or ``people`` does not fit the scores.

    Source:
        Wilks 1941, "Determination of sample sizes for setting tolerance limits"; Vovk 2012, "Conditional validity of
        inductive conformal predictors".
    """
    if draws < 1 or not 0 < level < 1 or seed < 0:
        raise ArgumentError(
            f"draws, level, seed: expected at least 1, a share in (0, 1) and at least 0, got {draws}, {level}, {seed}"
        )
    scores = checked("natural", natural)
    count = len(scores)
    rank = rank_of(rate, count)
    tails = (1 - level) / 2, (1 + level) / 2
    low, high = (1.0, 1.0) if rank > count else _beta(rank, count, tails)
    whose = None if people is None else np.asarray(people)
    if whose is not None and whose.shape != scores.shape:
        raise ArgumentError(f"people: expected shape {scores.shape}, one for each score, got {whose.shape}")
    ends = None
    if whose is not None and rank <= count:
        persons, person = np.unique(whose, return_inverse=True)
        if len(persons) < count:
            found = np.quantile(_drawn_rates(scores, person, rate, draws, seed), tails)
            ends = float(found[0]), float(found[1])
    return ExpectedRate(rate=rate, mean=min(1.0, rank / (count + 1)), low=low, high=high, people=ends, level=level)


def images_for(rate: float, *, within: float = 2.0, level: float = 0.95) -> int:
    """How many independent natural images it takes until a threshold keeps near its rate on new images.

    Args:
        rate: the false-alarm rate, in (0, 1).
        within: the upper end of the rate's interval is to be at most so many times the rate, > 1.
        level: of the interval, in (0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """
    if not (0 < rate < 1 and within > 1 and 0 < level < 1):
        raise ArgumentError(
            f"rate, within, level: expected a rate in (0, 1), a factor above 1 and a share in (0, 1), got {rate}, "
            f"{within}, {level}"
        )
    found = (max(rank, math.ceil(rank / rate - _SLACK) - 1) for rank in itertools.count(1))
    return next(n for n in found if _beta(rank_of(rate, n), n, ((1 + level) / 2,))[0] <= within * rate)


def _beta(rank: int, images: int, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Quantiles of the false-alarm rate of a threshold above the rank-th largest of so many scores."""
    from scipy.special import betaincinv  # here: only calibration needs it

    return tuple(float(betaincinv(rank, images + 1 - rank, share)) for share in shares)


def _drawn_rates(scores: Floats, person: NDArray[np.intp], rate: float, draws: int, seed: int) -> Floats:
    """The rates, on the scores, of the thresholds of calibration sets with other people."""
    order = np.argsort(-scores, kind="stable")
    falling, owner = scores[order], person[order]
    above = np.searchsorted(-falling, -falling)  # how many are larger than each
    people = int(owner.max()) + 1
    random = np.random.Generator(np.random.Philox(key=seed))
    made = []
    step = max(1, _CELLS // len(scores))
    for begin in range(0, draws, step):
        times = random.multinomial(people, np.full(people, 1 / people), size=min(step, draws - begin))
        count = np.cumsum(times[:, owner], axis=1)
        rank = np.maximum(1, np.floor(rate * (count[:, -1:] + 1) + _SLACK))
        made.append((1 + above[np.argmax(count >= rank, axis=1)]) / (len(scores) + 1))
    return np.concatenate(made)


def _line(scores: Tensor, rate: float, argument: str) -> float:
    rank = rank_of(rate, len(scores), argument)
    if rank > len(scores):
        return float(scores[0])
    return float(np.nextafter(np.float32(scores[len(scores) - rank]), np.float32(np.inf)))


def _is_sorted(scores: Tensor, count: int) -> bool:
    if scores.dtype != torch.float32 or scores.shape != (count,) or not bool(scores.isfinite().all()):
        return False
    return bool((scores[1:] >= scores[:-1]).all())
