"""How much an 8-bit image was changed, measured so that an image inside its budget is never reported outside."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastadv.attacks.budget import Budget

_LEVELS = 255.0
_SAME = 1e-4  # of a grey level: float32 noise on the difference of two levels


def norms(rounded: Tensor, origin: Tensor, budget: Budget | None = None) -> tuple[Tensor, Tensor]:
    """The largest change of a value, and the Euclidean norm of the change, of each image: ``(N,)`` float64 each.

    The difference of two float32 grey levels is off by some 1e-8. A largest change that is a whole number of grey
    levels up to that noise is given as that number / 255, and a norm that the budget bounds is at most its eps where
    ``budget.inside`` holds (which allows 1e-6 for rounding).

    Args:
        rounded: ``(N, ...)`` on the 8-bit grid.
        origin: ``(N, ...)``, on the grid or not.
        budget: What the attack had to stay in, or None.
    """
    delta = (rounded.double() - origin.double()).flatten(1)
    level = delta.abs().amax(1) * _LEVELS
    whole = level.round()
    linf = torch.where((level - whole).abs() < _SAME, whole, level) / _LEVELS
    l2 = torch.linalg.vector_norm(delta, dim=1)
    if budget is not None and budget.is_ball:
        inside = budget.inside(rounded, origin)
        if budget.norm == "linf":
            linf = torch.where(inside, linf.clamp(max=budget.eps), linf)
        else:
            l2 = torch.where(inside, l2.clamp(max=budget.eps), l2)
    return linf, l2


def below_a_level(budget: Budget) -> bool:
    """Whether the radius is below one grey level: around an 8-bit image its ball holds no other one."""
    return budget.is_ball and budget.eps * _LEVELS < 1 - _SAME


def level_note(budget: Budget) -> str | None:
    """The sentence about a radius below one grey level, or None."""
    if not below_a_level(budget):
        return None
    return (
        f"eps: {budget.eps:g} is below one grey level (1/255 = {1 / _LEVELS:.5f}), so an 8-bit image has no other "
        "8-bit version inside the budget: attacked images are written as they were; use an eps of 1/255 or more"
    )


def level_notes(budgets: Iterable[Budget]) -> tuple[str, ...]:
    """The sentences of ``level_note`` about several budgets, each once."""
    return tuple(filter(None, dict.fromkeys(map(level_note, budgets))))
