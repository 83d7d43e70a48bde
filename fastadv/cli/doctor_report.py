"""``fastadv doctor``: what this machine has, and what therefore runs."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata

import torch

from fastadv import backends
from fastadv.core.extras import Extra, extras, optional_packages
from fastadv.core.provenance import versions
from fastadv.models import shipped_names

_REQUIRED = ("pyarrow", "rich", "safetensors", "scikit-learn", "typer")  # those besides torch, NumPy and Pillow
_DATA = "FASTADV_DATA"


@dataclass(frozen=True, kw_only=True)
class OptionalPackage:
    """An optional package.

    Attributes:
        name: What is installed by ``pip``.
        version: Of what is there; None where it is missing.
        use: What it gives.
        install: The command that installs it.
    """

    name: str
    version: str | None
    use: str
    install: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        facts: Pairs of a name and what was found, in the order to print them.
        packages: The optional packages.
        extras: What one command installs of them, and what is missing.
        backends: One row for each operation and backend: whether it runs and, where not, why.
    """

    facts: tuple[tuple[str, str], ...]
    packages: tuple[OptionalPackage, ...]
    backends: tuple[backends.Row, ...]
    extras: tuple[Extra, ...]


def examine() -> Report:
    """Look at versions, processor, memory, device, optional packages and backends; imports nothing that is optional."""
    facts = [(name, str(value)) for name, value in versions().items() if value is not None]
    facts += [(name, _version(name)) for name in _REQUIRED]
    facts += [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("processors", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"),
        ("cuda device", _cuda()),
    ]
    facts += list(backends.features().items())
    facts += [
        ("networks with weights", ", ".join(shipped_names())),
        ("data of the tests", os.environ.get(_DATA) or f"none ({_DATA} is not set; tests on real faces skip)"),
    ]
    packages = tuple(
        OptionalPackage(
            name=package.distribution,
            version=(package.version or "unknown") if package.present else None,
            use=package.use,
            install=package.install,
        )
        for package in optional_packages()
    )
    facts = list(dict(facts).items())  # each once, where two of the parts have it
    return Report(facts=tuple(facts), packages=packages, backends=backends.table(), extras=extras())


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing: pip install fastadv"


def _cuda() -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        return ", ".join(f"cuda:{k} {name}" for k, name in enumerate(names))
    if torch.version.cuda is None:
        return "none: this PyTorch is built without CUDA"
    return f"none: this PyTorch is built for CUDA {torch.version.cuda} and sees no device"
