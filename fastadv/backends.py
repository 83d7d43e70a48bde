"""Which implementation of an operation runs where, and why another one cannot.

Every operation has four: ``reference`` (PyTorch, the specification), ``cpu`` (C++), ``cuda`` (CUDA C++) and
``triton``. ``None`` and ``"auto"`` choose the fastest that can run; a name either runs or raises.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import re
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from fastadv import _native
from fastadv.core.errors import ArgumentError, Error

NAMES: tuple[str, ...] = ("reference", "cpu", "cuda", "triton")

#: Operations and the stem of ``cpu_<stem>``, ``cuda_<stem>`` and ``kernels.triton.<stem>``: each declaration adds one.
STEMS: dict[str, str] = {}

#: Newer compute capabilities on which family-specific code of one runs.
_FAMILIES = {(10, 0): ((10, 3),), (10, 1): ((11, 0),), (12, 0): ((12, 1),)}
#: Compute capabilities of embedded devices.
_EMBEDDED = ((5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0))

_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
#: What is faster as measured on an H200 (509 µs, CUDA 549): the CUDA form there is another one since, not yet measured.
_PREFERENCE_OF = {("momentum_step_", "cuda"): ("triton", "cuda", "reference")}
_log = logging.getLogger("fastadv")


class BackendUnavailable(Error, RuntimeError):  # noqa: N818
    """A backend was asked for by name and cannot run; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the availability table: ``reason`` is empty where ``available``."""

    op: str
    backend: str
    available: bool
    reason: str


@functools.cache
def resolve(op: str, device: torch.device, requested: str | None = None) -> str:
    """Name the backend that runs ``op`` on tensors of ``device``.

    Args:
        op: an operation, a key of ``STEMS``.
        device: where the tensors are.
        requested: one of ``NAMES``; None or "auto" for the fastest one that can run.

    Raises:
        ValueError: ``requested`` is not a name of a backend.
        BackendUnavailable: the one that was asked for cannot run on ``device``.
    """
    if requested is not None and requested != "auto":
        if requested not in NAMES:
            raise ArgumentError(f"backend: expected one of {', '.join(NAMES)} or 'auto', got {requested!r}")
        reason = problem(op, requested, device)
        if reason:
            raise BackendUnavailable(
                f"backend: expected one that can run {op} on {device}, got {requested!r}: {reason}"
            )
        return requested
    wanted, *_ = names = _PREFERENCE_OF.get((op, device.type), _PREFERENCE.get(device.type, ("reference",)))
    chosen = next(name for name in names if not problem(op, name, device))
    if chosen != wanted:
        # Once per operation and device: resolve() remembers its answers.
        _log.warning("%s on %s: using %r, since %r cannot: %s", op, device, chosen, wanted, problem(op, wanted, device))
    return chosen


def problem(op: str, backend: str, device: torch.device) -> str:
    """Why ``backend`` cannot run ``op`` on ``device``, or an empty string."""
    stem = STEMS.get(op)
    if stem is None:
        return f"there is no operation {op!r}"
    if backend == "reference":
        return ""
    if backend == "cpu":
        if device.type != "cpu":
            return "it takes CPU tensors"
        return _missing_symbol(f"cpu_{stem}")
    if backend == "cuda":
        if device.type != "cuda":
            return "it takes CUDA tensors"
        return _missing_symbol(f"cuda_{stem}") or _cuda_problem(device)
    return triton_problem(stem, device)


def table() -> tuple[Row, ...]:
    """Every operation and backend on the best device of this machine that the backend could use."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    rows = []
    for op in STEMS:
        for backend in NAMES:
            on_gpu = backend == "cuda" or (backend == "triton" and torch.cuda.is_available())
            reason = problem(op, backend, cuda if on_gpu else cpu)
            rows.append(Row(op=op, backend=backend, available=not reason, reason=reason))
    return tuple(rows)


def features() -> dict[str, str]:
    """What this installation can use, in words, for ``fastadv doctor``."""
    isas = _native.cpu_isas()
    built = _native.cuda_architectures()
    triton = _triton_version()
    return {
        "native module": _native.PROBLEM or "loaded",
        "cpu instruction sets": ", ".join(isas) or "none",
        "cpu instruction set in use": _isa_in_use(isas),
        "threads": str(torch.get_num_threads()),
        "cuda kernels": f"built for {', '.join(built)}" if built else "not built",
        "cuda driver": _native.cuda_problem() or "usable" if built else "not looked for",
        "triton": f"{triton}{' (interpreted)' if triton and interpreted() else ''}" if triton else "not installed",
    }


def _isa_in_use(isas: tuple[str, ...]) -> str:
    try:
        return isas[cpu_isa()] if isas else "none"
    except BackendUnavailable as error:
        return str(error)


@functools.cache
def cpu_isa() -> int:
    """Code of the instruction set of the CPU kernels: the fastest, or the one ``FASTADV_CPU_ISA`` names.

    Raises:
        BackendUnavailable: the variable names a set that is unknown or does not run here.
    """
    isas = _native.cpu_isas()
    wanted = os.environ.get("FASTADV_CPU_ISA", "")
    if not wanted:
        return len(isas) - 1
    if wanted not in isas:
        raise BackendUnavailable(
            f"FASTADV_CPU_ISA: expected one that this machine runs ({', '.join(isas) or 'none'}), got {wanted!r}"
        )
    return isas.index(wanted)


def on_cpu() -> tuple[int, int]:
    """What every function ``cpu_<stem>`` takes last: the number of threads, and the instruction set."""
    return torch.get_num_threads(), cpu_isa()


@functools.cache
def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter; read once, as Triton does when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _missing_symbol(name: str) -> str:
    if _native.PROBLEM:
        return _native.PROBLEM
    if _native.has(name):
        return ""
    if name.startswith("cuda_") and not _native.cuda_architectures():
        return "this build has no CUDA kernels (build with FASTADV_CUDA=on and nvcc on PATH)"
    return f"the compiled module is older than the sources: it lacks {name}; build it again"


def _cuda_problem(device: torch.device) -> str:
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    reason = _native.cuda_problem()
    if reason:
        return reason
    capability = torch.cuda.get_device_capability(device)
    built = _native.cuda_architectures()
    if not any(_runs(name, capability) for name in built):
        return (
            f"the device has compute capability {capability[0]}.{capability[1]}; the kernels were built for "
            f"{', '.join(built)} (build with FASTADV_CUDA_ARCHITECTURES={10 * capability[0] + capability[1]})"
        )
    return ""


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture, as CMake names it, runs on a device.

    `90` is machine code and PTX, `90-real` machine code alone, `90-virtual` PTX alone; PTX is compiled for any newer
    device, machine code runs on newer ones of its generation. `100f` runs in its family, `90a` nowhere else.

    Source:
        NVIDIA, CUDA C++ programming guide, "Binary compatibility" and "Feature set compiler targets".
    """
    match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
    if match is None:
        return True  # native, all: an earlier build did not tell; the driver will
    own, only, form = (int(match[1]), int(match[2])), match[3], match[4]
    if only == "a":
        return capability == own
    if only == "f":
        return capability in _FAMILIES.get(own, ()) or capability == own
    same = capability[0] == own[0] and capability >= own
    alone = (
        own in _EMBEDDED or capability in _EMBEDDED
    )  # machine code of these runs on nothing else, nor other code on them
    return (form != "-real" and capability >= own) or (form != "-virtual" and same and (not alone or capability == own))


def triton_problem(stem: str, device: torch.device) -> str:
    """Why the Triton kernels of a stem cannot run on ``device``, or an empty string."""
    if not _triton_version():
        return "triton is not installed"
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"it takes CUDA tensors (on CPU tensors only under TRITON_INTERPRET=1), got {device}"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if device.type == "cuda" and not _triton_can_build():
        return "on a GPU it needs a C compiler (gcc, clang or the one that CC names) and Python's headers (python3-dev)"
    try:
        importlib.import_module(f"fastadv.kernels.triton.{stem}")
    except ImportError as error:
        return f"its kernels cannot be imported: {error}"
    return ""


def _triton_can_build() -> bool:
    """Whether Triton could build its own module, which it does when the first kernel is compiled."""
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    headers = Path(str(sysconfig.get_config_var("INCLUDEPY")), "Python.h")
    return any(map(shutil.which, compilers)) and headers.exists()


@functools.cache
def _triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return ""
    return str(getattr(importlib.import_module("triton"), "__version__", "unknown"))
