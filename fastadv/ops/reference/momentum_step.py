"""The momentum step in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.ops.reference.common import clip, clip_to_ball, count_, per_image, sign, write_


def norm_per_image(value: Tensor, norm: str) -> Tensor:
    """L1 or L2 norm of every image, added up in float64 and rounded once to float32; ``(N, 1, ..., 1)``."""
    flat = value.reshape(value.shape[0], -1) if value.numel() else value.new_zeros(value.shape[0], 0)
    wide = flat.double()
    total = wide.abs().sum(1) if norm == "l1" else (wide * wide).sum(1).sqrt()
    return total.float().view(-1, *(1,) * (value.dim() - 1))


def momentum_step_(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    velocity: Tensor,
    alpha: float | Tensor,
    eps: float | Tensor,
    mu: float,
    norm: str,
    step: str,
    active: Tensor | None,
    stats: Tensor | None,
    lo: float,
    hi: float,
) -> None:
    """See :func:`fastadv.ops.momentum_step_`."""
    g = grad.float()
    finite = g.isfinite()
    zero = torch.zeros((), dtype=torch.float32, device=x.device)
    size = norm_per_image(torch.where(finite, g, zero), norm)
    term = torch.where(finite & (size > 0), g / size, zero)
    speed = torch.full((), mu, dtype=torch.float32, device=x.device) * velocity + term
    rate, radius = per_image(alpha, x), per_image(eps, x)
    if step == "sign":
        moved = clip_to_ball(x + rate * sign(speed), origin, radius, lo, hi)
        moved = torch.where(finite, moved, x)
    else:
        pace = norm_per_image(speed, "l2")
        moved = torch.where(finite & (pace > 0), x + rate * (speed / pace), x)
        away = moved - origin
        distance = norm_per_image(away, "l2")
        moved = torch.where(distance > radius, origin + away * (radius / distance), moved)
        moved = clip(moved, lo, hi)
    count_(stats, grad, active)
    write_(velocity, speed, active)
    write_(x, moved, active)
