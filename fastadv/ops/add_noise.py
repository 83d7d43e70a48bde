"""Clipped random noise, uniform or Gaussian, in place."""

from __future__ import annotations

from typing import Any, TypeVar

from fastadv.ops.arguments import BATCH_SIZES, choice, each, images, key, pixel_range, read
from fastadv.ops.declaration import Op

Array = TypeVar("Array")


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
        lo: the smallest result.
        hi: the largest result.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``x`` itself, written.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device, layout or value.
        RuntimeError: ``x``, ``origin`` or ``scale`` requires grad: there is no derivative.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Box and Muller 1958, "A note on the generation of random normal deviates".
    """
    made: Array = _op.call(x, origin, scale, lo, hi, kind, seed, ids, tick, layer, backend)
    return made


_op = Op(
    "add_noise_",
    images("x", copied=True),
    read("origin", optional=True),
    each("scale"),
    pixel_range(),
    choice("kind", {"uniform": 0, "gaussian": 1}),
    key(),
    sizes=BATCH_SIZES,
)
