"""What several specifications share: clipping, one number per image, counts, and writing the active images."""

from __future__ import annotations

import torch
from torch import Tensor


def per_image(value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one per image, as float32 of shape ``(N, 1, ..., 1)``."""
    if not isinstance(value, Tensor):
        value = torch.full((x.shape[0],), value, dtype=torch.float32, device=x.device)
    return value.view(-1, *(1,) * (x.dim() - 1))


def clip(x: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    """Clip by comparison: a NaN stays NaN on every device."""
    low = torch.as_tensor(lower, dtype=torch.float32, device=x.device)
    high = torch.as_tensor(upper, dtype=torch.float32, device=x.device)
    x = torch.where(x < low, low, x)
    return torch.where(x > high, high, x)


def clip_to_ball(x: Tensor, origin: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    """``clip(x, max(origin - eps, lo), min(origin + eps, hi))``."""
    low = torch.full((), lo, dtype=torch.float32, device=x.device)
    high = torch.full((), hi, dtype=torch.float32, device=x.device)
    lower, upper = origin - eps, origin + eps
    return clip(x, torch.where(lower > low, lower, low), torch.where(upper < high, upper, high))


def sign(direction: Tensor) -> Tensor:
    """-1, 0 or 1, and 0 for NaN."""
    return (direction > 0).float() - (direction < 0).float()


def count_(stats: Tensor | None, grad: Tensor, active: Tensor | None) -> None:
    """Add the numbers of non-finite and of zero elements per image to ``stats`` ``(N, 2)``."""
    if stats is None:
        return
    flat = grad.reshape(grad.shape[0], -1) if grad.numel() else grad.new_zeros(grad.shape[0], 0)
    counts = torch.stack([(~flat.isfinite()).sum(1), (flat == 0).sum(1)], dim=1)
    stats += counts if active is None else torch.where(active[:, None], counts, 0)


def write_(target: Tensor, value: Tensor, active: Tensor | None) -> None:
    """Replace the active images of ``target``."""
    if active is not None:
        value = torch.where(active.view(-1, *(1,) * (target.dim() - 1)), value, target)
    target.copy_(value)
