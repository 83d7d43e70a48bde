"""All readers."""

from __future__ import annotations

import logging
import sys

import torch

from . import archives, files, images, lists, networks, service, weights
from .judge import Target

torch.set_num_threads(1)  # before the first product: children of a process with threads of its own would wait for them
logging.getLogger("fastadv").setLevel(logging.ERROR)
sys.dont_write_bytecode = True  # a module that is imported late would be a file that is written

TARGETS: tuple[Target, ...] = (
    *images.TARGETS,
    *lists.TARGETS,
    *archives.TARGETS,
    *files.TARGETS,
    *weights.TARGETS,
    *networks.TARGETS,
    *service.TARGETS,
)


def by_name(name: str) -> Target:
    """A reader.

    Raises:
        SystemExit: There is none of this name.
    """
    found = {target.name: target for target in TARGETS}
    if name not in found:
        raise SystemExit(f"target: expected one of {', '.join(found)}, got {name!r}")
    return found[name]


def shares(count: int, names: tuple[str, ...]) -> dict[str, int]:
    """How many of all inputs each reader gets, by its weight; all together at least ``count``."""
    chosen = [by_name(name) for name in names] if names else list(TARGETS)
    whole = sum(target.weight for target in chosen)
    return {target.name: max(1, -int(-count * target.weight // whole)) for target in chosen}
