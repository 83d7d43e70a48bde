"""Checks of the fields of values: what a number has to be, in one sentence that names it."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TypeGuard

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError


def is_int(value: object) -> bool:
    """Whether a value is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite int or float, and no bool."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def check_type(name: str, value: object, kind: type, what: str = "") -> None:
    """A TypeError unless the value is of a class, which the message calls ``what`` or by its name."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{name}: expected {what or f'a {kind.__name__}'}, got {type(value).__name__}")


def check_one_of(name: str, value: object, known: Collection[str]) -> None:
    """A ValueError unless the value is among the known ones."""
    if value not in known:
        raise ArgumentError(f"{name}: expected one of {', '.join(known)}, got {brief(value)}")


def check_seed(seed: int) -> None:
    """A ValueError unless the seed is an integer in [0, 2**64)."""
    if not is_int(seed) or not 0 <= seed < 1 << 64:
        raise ArgumentError(f"seed: expected an integer in [0, 2**64), got {brief(seed)}")


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """A ValueError unless the value is an integer of at least ``least``."""
    if not is_int(value) or value < least:
        raise ArgumentError(f"{name}: expected an integer of at least {least}, got {brief(value)}")


def check_int(name: str, value: int, low: int, high: int) -> None:
    """A ValueError unless the value is an integer in [low, high]."""
    if not is_int(value) or not low <= value <= high:
        raise ArgumentError(f"{name}: expected an integer in [{low}, {high}], got {brief(value)}")


def check_odd(name: str, value: int, high: int) -> None:
    """A ValueError unless the value is an odd integer in [3, high]."""
    if not is_int(value) or not 3 <= value <= high or value % 2 == 0:
        raise ArgumentError(f"{name}: expected an odd integer in [3, {high}], got {brief(value)}")


def check_number(name: str, value: float, *, positive: bool = False) -> None:
    """A ValueError unless the value is finite and not negative, or positive."""
    if not (is_number(value) and (value > 0 if positive else value >= 0)):
        what = "positive number" if positive else "number of at least 0"
        raise ArgumentError(f"{name}: expected a {what}, got {brief(value)}")


def check_open(name: str, value: float | None) -> None:
    """A ValueError unless the value is None, for the attack to choose, or a positive number."""
    if not (value is None or (is_number(value) and value > 0)):
        raise ArgumentError(f"{name}: expected None or a positive number, got {brief(value)}")


def check_range(name: str, value: float, low: float, high: float, *, positive: bool = False) -> None:
    """A ValueError unless the value is a number in [low, high], or in (low, high] if ``positive``."""
    if not (is_number(value) and low <= value <= high and not (positive and value <= low)):
        raise ArgumentError(
            f"{name}: expected a number in {'(' if positive else '['}{low:g}, {high:g}], got {brief(value)}"
        )


def check_least(name: str, value: float, least: float) -> None:
    """A ValueError unless the value is ``least`` or more."""
    if value < least:
        raise ArgumentError(f"{name}: expected {least} or more, got {value}")


def check_positive(name: str, value: float | None) -> None:
    """A ValueError unless the value is None or a finite number above 0."""
    if value is not None and not (is_number(value) and value > 0):
        raise ArgumentError(f"{name}: expected a positive number, got {value}")
