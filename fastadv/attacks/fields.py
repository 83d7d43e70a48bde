"""What attacks check of their fields: an error names the field, what was expected, and what came."""

from __future__ import annotations

import math

import torch

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""What class indices may be."""


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_seed(seed: int) -> None:
    """A ValueError unless the seed is an integer in [0, 2**64)."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ArgumentError(f"seed: expected an integer in [0, 2**64), got {brief(seed)}")


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """A ValueError unless the value is an integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be an integer of at least {least}, got {brief(value)}")


def check_number(name: str, value: float, *, positive: bool = False) -> None:
    """A ValueError unless the value is finite and not negative, or positive."""
    good = is_number(value) and (value > 0 if positive else value >= 0)
    if not good:
        raise ArgumentError(
            f"{name} must be a {'positive number' if positive else 'number of at least 0'}, got {brief(value)}"
        )


def check_open(name: str, value: float | None) -> None:
    """A ValueError unless the value is None, for the attack to choose, or a positive number."""
    good = value is None or (is_number(value) and value > 0)
    if not good:
        raise ArgumentError(f"{name} must be None or a positive number, got {brief(value)}")
