"""Standard error, for messages that must not wait for PyTorch."""

from __future__ import annotations

import re

from rich.console import Console

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
errors = Console(stderr=True)


def printed(text: str) -> str:
    """A text without what would control a terminal: names and messages come from files of others."""
    return _CONTROLS.sub("?", text)
