"""Every fused operation against plain PyTorch and ``torch.compile``, and against the machine's own bandwidth."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.measure import copy_bandwidth, launches, read_bandwidth, timed
from bench.ops_cases import Case, cases
from fastadv import backends

_COLD_BYTES = 512 * 2**20  # on a GPU, rotate over this much data, so that its L2 cache is never warm


class GateError(AssertionError):
    """A backend's result is wrong, so its time means nothing."""


def _flat(result: Any) -> Tensor:
    parts = [result] if isinstance(result, Tensor) else list(result)
    return torch.cat([p.detach().flatten().double() for p in parts])


def _gate(case: Case, given: Mapping[str, Any], names: list[str]) -> None:
    """Compare each backend with eager PyTorch, or with the reference where eager draws its own random numbers."""

    def fresh() -> dict[str, Any]:
        return {k: copy.deepcopy(v) if isinstance(v, (Tensor, list)) else v for k, v in given.items()}

    right = partial(case.ours, backend="reference") if case.random else case.eager
    expected = _flat(case.ready(right, fresh())())
    for name in names:
        found = _flat(case.ready(partial(case.ours, backend=name), fresh())())
        error = float((found - expected).norm() / expected.norm())
        if not error <= case.tolerance:
            raise GateError(f"{case.op} on {name}: relative error {error:.3g}, at most {case.tolerance:g} is allowed")


def _operation(case: Case) -> str:
    return case.op.partition(" ")[0]


def _runnable(case: Case, device: str) -> list[str]:
    found = [b for b in backends.NAMES if not backends.problem(_operation(case), b, torch.device(device))]
    return [b for b in found if not (b == "triton" and device == "cpu")]  # the interpreter is no backend to time


def _variants(case: Case, names: list[str], *, compiled: bool) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {"eager": case.eager}
    if compiled:
        torch._dynamo.reset()
        found["torch.compile"] = torch.compile(case.eager, dynamic=False)
    for name in names:
        found[name] = partial(case.ours, backend=name)
    return found


def operations() -> frozenset[str]:
    """The operations that have cases."""
    return frozenset(_operation(case) for case in cases("cpu"))


def run(*, device: str, quick: bool, only: Collection[str] = (), compiled: bool = True) -> list[Mapping[str, Any]]:
    """Time every case, or those of the operations ``only``; nothing is timed before every backend's result is right.

    Raises:
        GateError: A backend's result is wrong.
    """
    torch.manual_seed(0)
    on_gpu = device.startswith("cuda")
    seconds = 0.05 if quick else 0.15 if on_gpu else 1.0  # events and recorded calls scatter little
    limits = {"copy": copy_bandwidth(device, seconds=seconds), "read": read_bandwidth(device, seconds=seconds)}
    rows: list[Mapping[str, Any]] = [
        {"op": f"the machine's {kind} bandwidth", "size": "256 MiB", "GB_per_s": value / 1e9}
        for kind, value in limits.items()
    ]
    for case in cases(device):
        if only and _operation(case) not in only:
            continue
        names = _runnable(case, device)
        sets = 1 if device == "cpu" else max(2, min(64, _COLD_BYTES // case.bytes))
        given = [case.make(device) for _ in range(sets)]
        _gate(case, given[0], names)
        times, started = {}, {}
        shown = [n for n in names if not (on_gpu and n == "reference")]  # which is there to be right
        with torch.no_grad():
            for name, call in _variants(case, shown, compiled=compiled).items():
                try:
                    ready = [case.ready(call, g) for g in given]
                    times[name] = timed(ready, device, seconds=seconds)
                except Exception as error:  # some of PyTorch's own derivatives cannot be compiled in every layout
                    if name != "torch.compile":
                        raise
                    said = (str(error).splitlines() or [type(error).__name__])[0]
                    print(f"{case.op}, {case.size}: left out of the comparison: torch.compile: {said}", file=sys.stderr)
                    continue
                started[name] = launches(ready[0]) if on_gpu else None
        for name, spent in times.items():
            rate = case.bytes / spent.median
            rows.append(
                {
                    "op": case.op,
                    "size": case.size,
                    "backend": name,
                    "ms": 1e3 * spent.median,
                    "ms_q20": 1e3 * spent.low,
                    "ms_q80": 1e3 * spent.high,
                    **({"host_us": 1e6 * spent.host, "launches": started[name]} if spent.host is not None else {}),
                    "GB_per_s": rate / 1e9,
                    f"share_of_{case.limit}": rate / limits[case.limit],
                    "times_eager": times["eager"].median / spent.median,
                    **(
                        {"times_compile": times["torch.compile"].median / spent.median}
                        if "torch.compile" in times
                        else {}
                    ),
                }
            )
    return rows
