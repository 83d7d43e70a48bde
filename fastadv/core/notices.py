"""What a user must know about a call and is no error."""

from __future__ import annotations

import warnings


class Notice(UserWarning):
    """Something about the input or the run that a reader of its results must know; the command line prints it."""


def notify(text: str, *, stacklevel: int = 3) -> None:
    """Warn with a `Notice`: one sentence that names the argument or the file."""
    warnings.warn(text, Notice, stacklevel=stacklevel)
