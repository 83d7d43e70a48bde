"""The sign step in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.ops.reference.common import clip_to_ball, count_, per_image, sign, write_


def sign_step_(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    alpha: float | Tensor,
    eps: float | Tensor,
    active: Tensor | None,
    stats: Tensor | None,
    lo: float,
    hi: float,
) -> None:
    """See :func:`fastadv.ops.sign_step_`."""
    count_(stats, grad, active)
    g = grad.float()
    moved = x + per_image(alpha, x) * sign(g)
    moved = clip_to_ball(moved, origin, per_image(eps, x), lo, hi)
    write_(x, torch.where(g.isfinite(), moved, x), active)
