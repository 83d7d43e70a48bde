"""Clipped noise in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

from torch import Tensor

from fastadv.ops.reference import philox
from fastadv.ops.reference.common import clip, per_image


def add_noise_(
    x: Tensor,
    origin: Tensor | None,
    scale: float | Tensor,
    lo: float,
    hi: float,
    kind: str,
    ids: Tensor,
    seed: int | Tensor,
    tick: int | Tensor,
    layer: int,
) -> None:
    """See :func:`fastadv.ops.add_noise_`."""
    if not x.numel():
        return
    size = x[0].numel()
    bits = philox.words(seed, ids, tick, layer, size + size % 2)
    noise = 2 * philox.uniform(bits) - 1 if kind == "uniform" else philox.normal(bits)
    base = x if origin is None else origin
    x.copy_(clip(base + per_image(scale, x) * noise[:, :size].view(x.shape), lo, hi))
