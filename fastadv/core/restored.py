"""Checks of a state that was read back from a file, before anything goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from fastadv.core.errors import ArgumentError

Record = TypeVar("Record")


def same_json(first: object, second: object) -> bool:
    """Whether two values are the same in JSON; no where one is nothing that JSON holds."""
    try:
        return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return False


def records(make: Callable[..., Record], rows: Sequence[Mapping[str, Any]]) -> list[Record]:
    """One record an epoch, counted from 1, of numbers.

    Raises:
        ValueError, TypeError, KeyError: it is another list.
    """
    made = [make(**row) for row in rows]
    for count, record in enumerate(made, 1):
        values = {name: value for name, value in asdict(record).items() if not isinstance(value, (tuple, list))}  # type: ignore[call-overload]
        if values.get("epoch") != count or not all(v is None or type(v) in (int, float) for v in values.values()):
            raise ArgumentError(f"history: expected numbers of epoch {count}, got {str(values)[:60]}")
    return made


def check_position(done: int, *, steps: int, per_epoch: int, epochs: int) -> None:
    """Insist that a training can be at this step with that many epochs recorded.

    Args:
        done: steps done.
        steps: of the whole training.
        per_epoch: steps of an epoch.
        epochs: recorded; the last one's record may be missing.

    Raises:
        ValueError: it cannot.
    """
    ended, inside = divmod(done, per_epoch)
    if not (0 <= done <= steps and (epochs == ended or (epochs == ended - 1 and not inside))):
        raise ArgumentError(f"done: expected at most {steps} steps that fit {epochs} epochs, got {done}")
