"""The compiled module, or the reason why it is not there. The only file that imports ``fastadv._C``."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from fastadv.core.errors import MissingPackageError


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("fastadv._C"), ""
    except ImportError as error:
        return None, (
            f"the compiled module fastadv._C cannot be imported ({error}); "
            "build it with `pip install --no-build-isolation -e .` in the source tree, or install a wheel"
        )


_module, _problem = _load()

#: Why the compiled module is missing, or an empty string.
PROBLEM: str = _problem


def module() -> Any:
    """The compiled module.

    Raises:
        ImportError: it is missing; the message says why and what to do.
    """
    if _module is None:
        raise MissingPackageError(PROBLEM)
    return _module


def has(name: str) -> bool:
    """Whether the compiled module is there and holds ``name``."""
    return _module is not None and hasattr(_module, name)


def cpu_isas() -> tuple[str, ...]:
    """Instruction sets of the CPU kernels that run here, slowest first; empty without the module."""
    return tuple(_module.cpu_isas()) if _module is not None else ()


def cuda_architectures() -> tuple[str, ...]:
    """Compute capabilities the CUDA kernels were built for, ``("80", "90")``; empty without them."""
    return tuple(getattr(_module, "cuda_architectures", "").split())


def cuda_problem() -> str:
    """Why the CUDA runtime finds no usable device, or an empty string."""
    return str(_module.cuda_problem()) if _module is not None and has("cuda_problem") else PROBLEM
