"""The sign step in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.ops.reference.common import clip_to_ball, count_, per_image, sign, write_


def sign_step_(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    alpha_each: Tensor | None,
    alpha: float,
    eps_each: Tensor | None,
    eps: float,
    active: Tensor | None,
    stats: Tensor | None,
    lo: float,
    hi: float,
) -> None:
    """See :func:`fastadv.ops.sign_step_`."""
    g = grad.float()
    moved = x + per_image(alpha_each, alpha, x) * sign(g)
    moved = clip_to_ball(moved, origin, per_image(eps_each, eps, x), lo, hi)
    count_(stats, grad, active)
    write_(x, torch.where(g.isfinite(), moved, x), active)
