"""Functions that have a compiled form for CPUs and one of PyTorch operations, and no kernels for GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.ops import checks


def chosen(symbol: str, name: str, tensors: Sequence[Tensor], backend: str | None) -> bool:
    """Whether the compiled form is called. A graph that is being compiled traces the other; both are the same bits.

    Args:
        symbol: the function of the compiled module.
        name: the function that is called, for the error.
        tensors: what it is given.
        backend: ``"reference"`` or ``"cpu"``; None or ``"auto"`` for the fastest that can run.

    Raises:
        ValueError: the backend is another.
        BackendUnavailable: ``backend="cpu"`` cannot run here.
    """
    if backend not in (None, "auto", "reference", "cpu"):
        raise ArgumentError(f"backend: expected 'reference', 'cpu' or None, got {brief(backend)}")
    compiling = torch.compiler.is_compiling()
    # len, since torch.compile of PyTorch 2.11 does not follow the bool of a list
    possible = len(tensors) > 0 and tensors[0].device.type == "cpu" and _native.has(symbol)
    possible = possible and (compiling or all(checks.has_memory(part) for part in tensors))
    if backend == "cpu" and not possible:
        raise backends.BackendUnavailable(
            f"backend: expected one that can run {name} here, got 'cpu': {_native.PROBLEM or 'it takes CPU tensors'}"
        )
    return possible and backend != "reference" and not compiling
