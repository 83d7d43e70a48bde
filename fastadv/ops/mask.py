"""The rate of a dropout mask, as operations declare it."""

from __future__ import annotations

import numpy as np

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops.arguments import Argument


def mask_rate() -> Argument:
    """``rate`` and ``rescale``."""
    return Argument.as_it_is(
        ("threshold", "factor"),
        kind="mask_rate",
        public=("rate", "rescale"),
        schema="int threshold, float factor",
        check=("threshold, factor = threshold_and_factor(rate, rescale)", "check_key(ids, threshold)"),
        uses={"threshold_and_factor": threshold_and_factor, "check_key": check_key},
    )


def threshold_and_factor(rate: float, rescale: bool) -> tuple[int, float]:
    """Below which draw an element is dropped, and what a kept one is multiplied by."""
    if not 0 <= rate < 1:
        raise ArgumentError(f"rate: expected a number in [0, 1), got {brief(rate)}")
    threshold = min(round(rate * 2**16), 2**16 - 1)
    return threshold, float(np.float32(1 / (1 - rate))) if rescale else 1.0


def check_key(ids: object, threshold: int) -> None:
    """Raise TypeError where something may be dropped, and there is no key to draw from."""
    if threshold and ids is None:
        raise ArgumentTypeError("ids: expected an int64 tensor (N,) beside a rate above 0, got None")
