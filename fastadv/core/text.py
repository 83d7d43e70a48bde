"""Numbers as a reader wants them: few digits, the unit with them."""

from __future__ import annotations

import math

NONE = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """ "98.3 %" for 0.983, on one line; a dash for None."""
    return NONE if share is None else f"{100 * share:.{digits}f}\u00a0%"


def levels(value: float) -> str:
    """ "8/255" for a change of a pixel in [0, 1]; two digits after the point where it is no whole level."""
    scaled = 255 * value
    nearest = round(scaled)
    return f"{nearest}/255" if math.isclose(scaled, nearest, abs_tol=5e-3) else f"{scaled:.2f}/255"


def score(value: float) -> str:
    """A similarity or distance with two digits, and a true minus sign."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def rate(value: float | None) -> str:
    """A number per second with two or three digits; a dash for None."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def count(number: int, one: str) -> str:
    """ "1 image", "2,000 images"."""
    return f"{number:,} {one if number == 1 else one + 's'}"
