"""What all stages of a run share."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.core.spent import Spent
from fastadv.data import RunFolder
from fastadv.engine import Engine
from fastadv.runs.workers import Workers


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """How the images of a run are made, and where they go.

    Attributes:
        folder: Where images and rows go; None keeps the rows only.
        seed: Of every random number.
        engine: How to run.
        workers: Other processes that make the images; None: this one does.
        progress: Told of every stage.
        spent: Where its time goes.
    """

    folder: RunFolder | None = None
    seed: int = 0
    engine: Engine = field(default_factory=Engine)
    workers: Workers | None = None
    progress: Progress = silent
    spent: Spent = field(default_factory=Spent)

    @property
    def into(self) -> RunFolder:
        """The folder of a run that needs one.

        Raises:
            ValueError: There is none.
        """
        if self.folder is None:
            raise ArgumentError("folder: expected one for the images, got none")
        return self.folder
