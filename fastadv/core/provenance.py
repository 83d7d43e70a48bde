"""Which software made a result."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy
import PIL
import torch

from fastadv._version import __version__


def versions() -> dict[str, str | None]:
    """What decides about a result's bits besides the configuration, and the commit when run from a checkout.

    Float32 convolutions on a CPU round differently with another number of threads or another instruction set.
    """
    return {
        "fastadv": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def software(device: object = "cpu") -> str:
    """`versions` and the device in one line, for a row: "fastadv 0.1.0, torch 2.13.0, ..., device cpu".

    The commit is left out: it changes with every edit of a checkout, and run.json has it.
    """
    parts = {**versions(), "device": str(device)}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if name != "commit")


def commit(root: Path | None = None) -> str | None:
    """The checked-out commit of the repository at `root`, by default the one that the package lies in.

    Reads git's files, so that it works without git; None for an installed package.
    """
    git = (root or Path(__file__).resolve().parents[2]) / ".git"
    try:
        if git.is_file():  # a further worktree, or a submodule: the file names its folder
            git = git.parent / git.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head or None
        reference = head.removeprefix("ref: ")
        shared = git / "commondir"  # a worktree's branches are in the repository's own folder
        common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
        loose = common / reference
        if loose.is_file():
            return loose.read_text(encoding="ascii").strip() or None
        for line in (common / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(f" {reference}"):
                return line.split()[0]
    except (OSError, UnicodeDecodeError):
        pass
    return None
