"""Standard error, for messages that must not wait for PyTorch."""

from __future__ import annotations

from rich.console import Console

errors = Console(stderr=True)
