"""Values of one function with the gradient of another: how an attacker gets past what has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(value: Tensor, instead: Tensor) -> Tensor:
    r"""``value``, bit for bit, with the gradient of ``instead``.

    .. math:: y = v, \qquad \frac{\partial y}{\partial i} = I, \quad \frac{\partial y}{\partial v} = 0

    Args:
        value: What comes out.
        instead: What is differentiated in its place, of the same shape and type; the input itself for the identity.

    Source:
        Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons for conditional
        computation"; as an attack: Athalye et al. 2018, "Obfuscated gradients give a false sense of security",
        section 4.1 (BPDA).
    """
    return _StraightThrough.apply(instead, value)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, instead: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
