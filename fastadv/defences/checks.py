"""Checks of the defences' fields."""

from __future__ import annotations

import math

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError


def check_int(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless ``value`` is an integer in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ArgumentError(f"{name} must be an integer in [{low}, {high}], got {brief(value)}")


def check_odd(name: str, value: int, high: int) -> None:
    """Raise ValueError unless ``value`` is an odd integer in [3, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not 3 <= value <= high or value % 2 == 0:
        raise ArgumentError(f"{name} must be an odd integer in [3, {high}], got {brief(value)}")


def check_number(name: str, value: float, low: float, high: float, *, positive: bool = False) -> None:
    """Raise ValueError unless ``value`` is a finite number in [low, high], or in (low, high] if ``positive``."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (good and low <= value <= high and not (positive and value <= low)):
        left = "(" if positive else "["
        raise ArgumentError(f"{name} must be a number in {left}{low:g}, {high:g}], got {brief(value)}")
