"""How far a stage of a run is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Progress(Protocol):
    """Called with the stage's name, how many are done, and how many there are."""

    def __call__(self, stage: str, done: int, total: int, /) -> None: ...


@runtime_checkable
class Notes(Protocol):
    """A ``Progress`` that takes a line about the whole run too."""

    def note(self, line: str) -> None:
        """Show a line when the run has ended."""


def silent(stage: str, done: int, total: int) -> None:
    """A ``Progress`` that says nothing."""
