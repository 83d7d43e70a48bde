"""What the papers found about detectors, checked one by one against what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastadv.attacks import CATALOG
from fastadv.core.statistics import wilson
from fastadv.studies.detection.configurations import Configuration
from fastadv.studies.detection.knn import AGGREGATE, ERRORS, KnnRow
from fastadv.studies.detection.measure import Measured, mean

_AIM_TARGETED, _AIM_UNSEEN = 0.95, 0.9


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One finding.

    Attributes:
        claim: What a paper says.
        holds: Whether it came out so; None where what it needs was not run, or where the interval leaves it open.
        numbers: What was measured.
        interval: Of what must not be negative for the claim to hold; None where it was not run. Made of the ends of
            95 % intervals, so it is wider than one of differences on the same images.
    """

    claim: str
    holds: bool | None
    numbers: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class _Number:
    """A measured number and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f}"

    def __sub__(self, other: _Number) -> _Number:
        return _Number(value=self.value - other.value, low=self.low - other.high, high=self.high - other.low)

    @staticmethod
    def mean(found: Sequence[_Number]) -> _Number:
        """As wide as if all erred together."""
        return _Number(
            value=mean([n.value for n in found]), low=mean([n.low for n in found]), high=mean([n.high for n in found])
        )

    @staticmethod
    def least(found: Sequence[_Number]) -> _Number:
        return _Number(
            value=min(n.value for n in found), low=min(n.low for n in found), high=min(n.high for n in found)
        )


def _decided(claim: str, number: _Number | None, numbers: str) -> Direction:
    """Whether a number is 0 or more; None: it was not measured."""
    if number is None:
        return Direction(claim=claim, holds=None, numbers="")
    holds = True if number.low >= 0 else False if number.high < 0 else None
    return Direction(claim=claim, holds=holds, numbers=numbers, interval=(number.low, number.high))


def _area(row: Measured) -> _Number:
    return _Number(value=row.area.value, low=row.area.low, high=row.area.high)


def _exactly(value: float) -> _Number:
    return _Number(value=value, low=value, high=value)


def trajectory_directions(
    measured: Sequence[Measured],
    macro: Mapping[tuple[str, str], float],
    configurations: Sequence[Configuration],
    best: str,
) -> tuple[Direction, ...]:
    """Those of Massoli et al. on the trajectory detectors, and the aims of this study.

    Args:
        measured: Of an evaluation.
        macro: Mean AUCs by detector and kind.
        configurations: The trajectory detectors.
        best: Label of the one that was chosen.
    """
    labels = {c.label for c in configurations}
    whole = [row for row in measured if not row.variant and row.detector in labels]
    seen = [row for row in whole if row.seen]
    own = [_area(row) for row in seen if row.detector == best and row.targeted]
    highest = max((macro[key] for key in macro if key[1] == "targeted" and key[0] in labels), default=0.0)
    return (
        _targeted_are_easier(seen),
        *(_cw_is_hardest(seen, targeted) for targeted in (True, False)),
        _lstm_on_untargeted(seen, configurations),
        _decided(
            f"aim: a targeted macro AUC of at least {_AIM_TARGETED} by the chosen detector",
            _Number.mean(own) - _exactly(_AIM_TARGETED) if own else None,
            f"{_Number.mean(own)}; the highest of all detectors {highest:.3f}",
        ),
        _finds_unseen([row for row in whole if not row.seen and row.targeted and row.detector == best]),
    )


def _targeted_are_easier(seen: Sequence[Measured]) -> Direction:
    both = {row.family for row in seen if row.targeted} & {row.family for row in seen if not row.targeted}
    areas = {
        targeted: _Number.mean([_area(row) for row in seen if row.family in both and row.targeted is targeted])
        for targeted in (True, False)
    }
    return _decided(
        "targeted attacks are easier to detect than untargeted ones",
        areas[True] - areas[False] if both else None,
        f"mean AUC {areas[True]} against {areas[False]}",
    )


def _cw_is_hardest(seen: Sequence[Measured], targeted: bool) -> Direction:
    rows = [row for row in seen if row.targeted is targeted]
    families = list(dict.fromkeys(row.family for row in rows))
    means = {name: _Number.mean([_area(row) for row in rows if row.family == name]) for name in families}
    cw = [value for name, value in means.items() if name.startswith("cw")]
    others = [value for name, value in means.items() if not name.startswith("cw")]
    return _decided(
        f"C&W is the hardest to detect, {'targeted' if targeted else 'untargeted'}",
        _Number.least([other - each for other in others for each in cw]) if cw and others else None,
        ", ".join(f"{name} {value}" for name, value in means.items()),
    )


def _lstm_on_untargeted(seen: Sequence[Measured], configurations: Sequence[Configuration]) -> Direction:
    def of(network: str) -> list[_Number]:
        labels = [c.label for c in configurations if c.network == network]
        return [_area(row) for row in seen if not row.targeted and row.detector in labels]

    lstm, mlp = of("lstm"), of("mlp")
    return _decided(
        "the LSTM is at least as good as the MLP on untargeted attacks",
        _Number.mean(lstm) - _Number.mean(mlp) if lstm and mlp else None,
        f"mean macro AUC {_Number.mean(lstm)} against {_Number.mean(mlp)}",
    )


def _finds_unseen(unseen: Sequence[Measured]) -> Direction:
    rows = [row for row in unseen if row.family not in CATALOG or CATALOG[row.family].level != "logits"]
    return _decided(
        "fitted on classifier attacks, the best detector finds targeted deep-feature attacks "
        f"(aim: AUC at least {_AIM_UNSEEN})",
        _Number.least([_area(row) for row in rows]) - _exactly(_AIM_UNSEEN) if rows else None,
        ", ".join(f"{row.family} {row.area.value:.3f}" for row in rows),
    )


def knn_directions(rows: Sequence[KnnRow]) -> tuple[Direction, ...]:
    """Those of Carrara et al. on the kNN score, at the layer with the highest accuracy on the aggregate.

    The interval of an accuracy at the equal error rate is Wilson's for as many images as the smaller of both sides has.
    """
    best = max(rows, key=lambda row: row.accuracy[AGGREGATE]).layer if rows else ""
    own = [row for row in rows if row.layer == best]

    def average(column: str, *processings: str) -> _Number:
        chosen = [row for row in own if not processings or row.processing in processings]
        value, trials = mean([row.accuracy[column] for row in chosen]), min(own[0].images[column], own[0].natural)
        low, high = wilson(round(value * trials), trials)
        return _Number(value=value, low=min(low, value), high=max(high, value))

    order = ("pca", "l2", "none")
    means = [average(AGGREGATE, processing) for processing in order] if own else []
    shown = ", ".join(f"{name} {value}" for name, value in zip(order, means, strict=False))
    steps = [better - worse for better, worse in itertools.pairwise(means)]
    wrong = own[0].images.get(ERRORS, 0) if own else 0
    pair = (average(AGGREGATE), average(ERRORS)) if wrong else None
    return (
        _decided(
            "kNN score: PCA and whitening are better than L2, and L2 than none",
            _Number.least(steps) if steps else None,
            f"mean accuracy at the EER, {best}: {shown}",
        ),
        _decided(
            "kNN score: adversarial images are easier to refuse than natural errors",
            pair[0] - pair[1] if pair else None,
            f"mean accuracy at the EER, {best}: {pair[0]} against {pair[1]} on {wrong} errors" if pair else "",
        ),
    )
