"""``fastadv doctor``: what this machine has, and what therefore runs."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib import metadata

import torch

from fastadv import backends
from fastadv.data.provenance import versions

_OPTIONAL = ("triton", "cupy", "matplotlib", "faiss", "onnxruntime", "kornia", "ray")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        facts: Pairs of a name and what was found, in the order to print them.
        backends: One row for each operation and backend: whether it runs and, where not, why.
    """

    facts: tuple[tuple[str, str], ...]
    backends: tuple[backends.Row, ...]


def examine() -> Report:
    """Look at versions, processor, memory, device and backends; imports nothing that is optional."""
    facts = [(name, str(value)) for name, value in versions().items() if value is not None]
    facts += [(name, _installed(name)) for name in _OPTIONAL]
    facts += [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("processors", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"),
        ("cuda device", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
    ]
    facts += list(backends.features().items())
    return Report(facts=tuple(facts), backends=backends.table())


def _installed(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return "not installed (optional)"
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "installed"
