"""Numbers as people write them on a command line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastadv.core.errors import ArgumentError

MOST_SHARDS = 999_999
"""Of a run."""

_MOST = 2**31 - 1  # of a number of steps
_FOLDS = 10_000
_COUNTS = 10_000  # numbers in one list


def finite(value: float | None) -> float | None:
    """The number; None where it is not finite, or None already."""
    return value if value is not None and math.isfinite(value) else None


def parse_eps(text: str) -> float:
    """A radius in units of [0, 1] from ``"8/255"`` or ``"0.03"``.

    Raises:
        ValueError: The text is neither a number nor a fraction, or not positive.
    """
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ArgumentError(f"eps: expected a positive number such as 8/255 or 0.03, got {text!r}")
    return value


def parse_number(argument: str, text: str) -> int | float:
    """A number of things, a whole number, or a share of them, a number with a decimal point.

    Raises:
        ValueError: The text is no number; the message names the argument.
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"{argument}: expected a whole number, or a share such as 0.25, got {text!r}") from None


def show_eps(eps: float) -> str:
    """A radius as people write it: ``8/255`` where it is a whole number of grey levels, else a decimal."""
    levels = round(eps * 255) if eps < 1 else 255  # of a larger radius the product may be infinite
    return f"{levels}/255" if 0 < levels < 255 and abs(eps * 255 - levels) < 1e-6 else f"{eps:.4g}"


def parse_weights(text: str) -> tuple[float, ...]:
    """Numbers from ``"2,1,1"``.

    Raises:
        ValueError: The text is not of that form.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(
            f"ensemble-weights: expected numbers with commas between them such as 2,1,1, got {text!r}"
        ) from None


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Names and values from ``["confidence=0.1", "search_steps=9"]``; dashes in a name are underscores.

    Raises:
        ValueError: A text is not of that form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not (name and equals and value):
            raise ArgumentError(f"set: expected NAME=VALUE such as confidence=0.1, got {text!r}")
        if name in found:
            raise ArgumentError(f"set: expected each name once, got {name} twice")
        found[name] = value
    return found


def parse_counts(argument: str, text: str) -> tuple[int, ...]:
    """Positive numbers from ``"13,50,200"``, or from ``"1-13,50-200:50"``, where 50-200:50 is every 50th from 50.

    Raises:
        ValueError: The text is not of that form, or names more than 10,000 numbers; the message names the argument.
    """
    found: list[int] = []
    for part in text.split(","):
        ends, colon, stride = part.strip().partition(":")
        low, dash, high = ends.partition("-")
        given = (low, high if dash else low, stride if colon and dash else "1")
        first, last, step = (_count(each.strip(), most=_MOST) for each in given)
        right = 0 < first <= last and step > 0 and bool(dash or not colon)
        if not right or (last - first) // step >= _COUNTS - len(found):
            raise ArgumentError(
                f"{argument}: expected positive whole numbers with commas between them such as 13,50 or 1-13,50-200:50,"
                f" at most {_COUNTS:,}, got {_short(text)!r}"
            )
        found += range(first, last + 1, step)
    return tuple(found)


def parse_rates(argument: str, text: str) -> tuple[float, ...]:
    """Rates between 0 and 1 from ``"1e-3,1e-4"``.

    Raises:
        ValueError: The text is not of that form, or a rate is out of range; the message names the argument.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < rate < 1 for rate in found):
        raise ArgumentError(
            f"{argument}: expected rates between 0 and 1 with commas between them such as 1e-3,1e-4, got "
            f"{_short(text)!r}"
        )
    return found


def parse_shard(text: str) -> tuple[int, int]:
    """The number of a shard, from 1, and how many there are, from ``"3/16"``.

    Raises:
        ValueError: The text is not of that form.
    """
    number, slash, count = text.partition("/")
    found = _count(number, most=MOST_SHARDS), _count(count, most=MOST_SHARDS)
    if not (slash and 1 <= found[0] <= found[1]):
        raise ArgumentError(f"shard: expected K/N with K from 1 to N, such as 3/16, got {_short(text)!r}")
    return found


def parse_steps(text: str) -> int | None:
    """A number of steps from plain digits, or None where the text is no number of at least 1."""
    return _count(text, most=_MOST) or None


def whole(text: str, *, most: int = _MOST) -> int | None:
    """The number that a text of plain digits is, from 0 to ``most``; None for every other text."""
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(most)):
        return None
    return int(text) if int(text) <= most else None


def _count(text: str, *, most: int) -> int:
    """As ``whole``, from 1 on; 0 for every other text."""
    return whole(text, most=most) or 0


def _short(text: str) -> str:
    """A text as messages show it."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_folds(text: str) -> tuple[int, ...]:
    """Folds counted from 0 from ``"1-2"`` or ``"1,3,5"``, which count from 1 as LFW does.

    Raises:
        ValueError: The text is not of that form.
    """
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        first, last = (_count(part.strip(), most=_FOLDS) for part in (low, high if dash else low))
        if not 1 <= first <= last:
            raise ArgumentError(
                f"folds: expected numbers from 1 to at most {_FOLDS}, such as 1-2 or 1,3,5, got {_short(text)!r}"
            )
        found.update(range(first - 1, last))
    return tuple(sorted(found))
