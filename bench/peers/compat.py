"""Our own adapters under torchattacks's names, called as a script written for torchattacks calls them."""

from __future__ import annotations

from bench.peers.torchattacks import Classes
from fastadv import __version__

NAME = "fastadv.compat.torchattacks"


def missing() -> str | None:
    """Never."""
    return None


def version() -> str | None:
    """Of fastadv."""
    return __version__


ATTACKS = Classes(NAME).attacks
