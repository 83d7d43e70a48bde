"""Clipped random noise, uniform or Gaussian, in place."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks, foreign, layout, random_key
from fastadv.ops._define import define_op
from fastadv.ops.reference import add_noise as reference

Array = TypeVar("Array")

_KINDS = {"uniform": 0, "gaussian": 1}


def add_noise_(
    x: Array,
    *,
    scale: float | Any,
    seed: int | Any,
    ids: Any,
    tick: int | Any = 0,
    layer: int = 0,
    kind: str = "uniform",
    origin: Any | None = None,
    lo: float = 0.0,
    hi: float = 1.0,
    backend: str | None = None,
) -> Array:
    r"""Add noise to images and clip them to the pixel range, in place.

    .. math:: x \leftarrow \min(\max(x_0 + \mathrm{scale}\cdot z,\ lo),\ hi)

    with :math:`x_0` = ``origin``, or ``x`` itself. ``kind="uniform"``: :math:`z = 2u - 1` in [-1, 1) with ``u`` of
    :func:`fastadv.ops.philox.uniform`, the same bits on every backend. ``kind="gaussian"``: ``z`` of
    :func:`fastadv.ops.philox.normal` (Box and Muller); the compiled backends compute it in float32, within 2e-6 of
    the reference, and agree with each other bit for bit. The numbers belong to the place of an element in (C, H, W)
    order, whatever the memory order. A NaN stays one.

    Args:
        x: images ``(N, C, H, W)``, float32; dense; written. Contiguous or channels-last as it is, through a copy in
            any other memory order. A tensor, or a NumPy or CuPy array.
        scale: largest size (uniform) or standard deviation (Gaussian) in the unit of the pixels, a number or one per
            image ``(N,)`` float32.
        seed: in ``[0, 2**64)``; a number, or an int64 tensor of one element on the device of ``x``.
        ids: ``(N,)`` int64, one per image, on the device of ``x``.
        tick: in ``[0, 2**20)``; a number, or an int64 tensor of one element or ``(N,)``, one per image. The values of
            tensors are not looked at: a captured CUDA graph reads them at each replay.
        layer: in ``[0, 2**12)``: separates independent draws of one tick.
        kind: ``"uniform"`` or ``"gaussian"``.
        origin: like ``x``, what the noise is added to; None: ``x``.
        lo: lower end of the pixel range.
        hi: upper end of the pixel range.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``x`` itself.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device, layout or value.
        RuntimeError: ``x`` requires grad: there is no derivative.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Box and Muller 1958, "A note on the generation of random normal deviates".
    """
    if foreign.is_array(x):
        arrays = {"x": x, "scale": scale, "seed": seed, "ids": ids, "tick": tick, "origin": origin}
        options = {"layer": layer, "kind": kind, "lo": lo, "hi": hi, "backend": backend}
        foreign.call(add_noise_, arrays, ("x",), options)
        return x
    if not checks.is_tensor(x):
        raise ArgumentTypeError(f"x is a {type(x).__name__}; expected a torch.Tensor or a NumPy or CuPy array")
    checks.images("x", x)
    if origin is not None:
        checks.like("origin", origin, x)
    scale_each, scale_all = checks.scalar_or_each("scale", scale, x)
    key = random_key.for_batch(x, seed, ids, tick, layer)
    if kind not in _KINDS:
        raise ArgumentError(f"kind is {brief(kind)}; expected 'uniform' or 'gaussian'")
    checks.pixel_range(lo, hi)
    _op(x, origin, scale_each, scale_all, kind, *key, lo, hi, backend or "auto")
    return x  # type: ignore[return-value]


def _prepared(
    x: Tensor, origin: Tensor | None, scale_each: Tensor | None, key: random_key.Split
) -> tuple[Tensor, Tensor, Tensor | None]:
    # Here, not in the public function: torch.compile may hand over other strides than it traced.
    checks.dense("x", x)
    ids, seed, _, tick, *_ = key
    checks.not_shared(
        (("x", x),), (("origin", origin), ("scale", scale_each), ("ids", ids), ("seed", seed), ("tick", tick))
    )
    work = layout.readable(x)
    return work, work if origin is None else checks.restrided(origin, work), checks.contiguous(scale_each)


def _reference(
    x: Tensor, origin: Tensor | None, scale_each: Tensor | None, scale: float, kind: str, *rest: Any
) -> None:
    _prepared(x, origin, scale_each, rest[:6])
    reference.add_noise_(x, origin, scale_each, scale, kind, *random_key.whole(*rest[:6]), *rest[6:])


def _native_call(function: str, x: Tensor, origin: Tensor | None, rest: tuple[Any, ...], where: Any) -> None:
    scale_each, scale, kind, lo, hi = *rest[:3], *rest[9:]
    work, origin, scale_each = _prepared(x, origin, scale_each, rest[3:9])
    key, keep = random_key.native(*rest[3:9])
    if x.numel():
        call = getattr(_native.module(), function)
        call(
            *(work.data_ptr(), origin.data_ptr(), checks.address(scale_each), scale, lo, hi, _KINDS[kind]),
            *(*key, *layout.sizes(work), *where),
        )
    if work is not x:
        x.copy_(work)
    del keep


def _cpu(x: Tensor, origin: Tensor | None, *rest: Any) -> None:
    _native_call("cpu_add_noise", x, origin, rest, (torch.get_num_threads(), backends.cpu_isa()))


def _cuda(x: Tensor, origin: Tensor | None, *rest: Any) -> None:
    with torch.cuda.device(x.device):
        where = (x.device.index, torch.cuda.current_stream().cuda_stream)
        _native_call("cuda_add_noise", x, origin, rest, where)


def _triton(x: Tensor, origin: Tensor | None, *rest: Any) -> None:
    kernel = importlib.import_module("fastadv.kernels.triton.add_noise")
    scale_each, scale, kind, lo, hi = *rest[:3], *rest[9:]
    work, origin, scale_each = _prepared(x, origin, scale_each, rest[3:9])
    if x.numel():
        key = random_key.for_triton(*rest[3:9])
        kernel.launch(work, origin, layout.sizes(work), key, scale_each, scale, _KINDS[kind], lo, hi)
    if work is not x:
        x.copy_(work)


_op = define_op(
    "add_noise_(Tensor(a!) x, Tensor? origin, Tensor? scale_each, float scale, str kind,"
    f" {random_key.SCHEMA}, float lo, float hi, str backend) -> ()",
    {"reference": _reference, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
)
