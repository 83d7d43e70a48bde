"""What attacks check of their fields: an error names the field, what was expected, and what came."""

from __future__ import annotations

import math

from fastadv.core.errors import ArgumentError


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """A ValueError unless the value is an integer of at least ``least``."""
    if not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_number(name: str, value: float, *, positive: bool = False) -> None:
    """A ValueError unless the value is finite and not negative, or positive."""
    good = isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 if positive else value >= 0)
    if not good:
        raise ArgumentError(
            f"{name} must be a {'positive number' if positive else 'number of at least 0'}, got {value!r}"
        )


def check_open(name: str, value: float | None) -> None:
    """A ValueError unless the value is None, for the attack to choose, or a positive number."""
    good = value is None or (isinstance(value, (int, float)) and math.isfinite(value) and value > 0)
    if not good:
        raise ArgumentError(f"{name} must be None or a positive number, got {value!r}")
