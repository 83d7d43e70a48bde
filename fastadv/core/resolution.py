"""Whether a share of so many trials can be as small as a rate: no rate is reported that its trials cannot resolve."""

from __future__ import annotations

import math

from fastadv.core.errors import ArgumentError

_SLACK = 1e-9  # 1/49 * 49 is 0.9999999999999999, and one trial is meant


def measurable(rate: float, trials: int) -> bool:
    """Whether ``rate * trials >= 1``: below it one single trial is more than the rate, and zero trials say nothing."""
    return rate * trials >= 1 - _SLACK


def unmeasurable(what: str, rate: float, trials: int, kind: str) -> str:
    """The sentence that takes the place of a number: what, from how many trials, and how many it needs.

    Args:
        what: The figure with its rate: ``"TAR at FAR 1e-3"``.
        rate: The rate.
        trials: How many there are.
        kind: What they are: ``"negative pairs"``.
    """
    return f"{what}: not measurable from {trials:,} {kind}{_needs(rate)}"


def too_rare(argument: str, rate: float, trials: int, kind: str, *, hint: str = "") -> ArgumentError:
    """The error for an argument with a rate that cannot be measured."""
    return ArgumentError(
        f"{argument}: expected a rate that {trials:,} {kind} can measure, got {rate:g}{_needs(rate)}{hint}"
    )


def _needs(rate: float) -> str:
    return f"; needs at least {math.ceil(1 / rate - _SLACK):,}" if rate > 0 else ""


def notes_of(rates: dict[str, float], trials: int, kind: str) -> tuple[str, ...]:
    """The sentences of those figures, given by name with their rates, that cannot be measured."""
    return tuple(unmeasurable(what, rate, trials, kind) for what, rate in rates.items() if not measurable(rate, trials))
