"""The activations of a frozen network, each in one pass over memory forwards and one backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv import backends
from fastadv.ops import PreparedDropout


def has_kernel(device: torch.device) -> bool:
    """Whether a device has a kernel for a :class:`FrozenActivation`; PyTorch's layers are faster than the reference."""
    return backends.resolve("feature_dropout_bn_prelu", device) != "reference"


class FrozenActivation:
    r"""``min(prelu(x + shift), ceiling)`` with constant slopes and shift, for ReLU, ReLU6, LeakyReLU and PReLU.

    One operation, :func:`fastadv.ops.feature_dropout_bn_prelu` without its mask. PyTorch's own backward pass of PReLU
    computes the gradient to the slopes, a number for each element, even when nobody asks for it; of ReLU6 it keeps the
    input besides the result, which the next layer keeps.

    Args:
        activation: an ``nn.ReLU``, ``nn.ReLU6``, ``nn.LeakyReLU`` or ``nn.PReLU``; its slopes must not change.
        shift: ``(C,)``, or of the shape of one image ``(C, H, W)``; must not change. None: none, for ``C`` slopes of a
            PReLU.
        overwrite: of ``(map, gradient)``, whether nobody else reads ``x``, and the gradient of the result: on a CPU
            results then take their places.
        keep_result: make the derivative from the result, which must then not be changed in place. It is made from ``x``
            all the same where a slope is negative, below which the result does not tell the sign.
    """

    def __init__(
        self,
        activation: nn.Module,
        shift: Tensor | None = None,
        *,
        overwrite: tuple[bool, bool] = (False, False),
        keep_result: bool = False,
    ) -> None:
        slope: float | Tensor = 0.0
        if isinstance(activation, nn.PReLU):
            slope = activation.weight.detach().float()
        elif isinstance(activation, nn.LeakyReLU):
            slope = activation.negative_slope
        if shift is None:
            shift = torch.full_like(torch.as_tensor(slope), -0.0)  # changes no number, not even -0
        keep_result = keep_result and not bool((torch.as_tensor(slope) < 0).any())
        self._slope, self._shift = slope, shift.detach().float()
        self._options: dict[str, Any] = {
            "ceiling": 6.0 if isinstance(activation, nn.ReLU6) else None,
            "keep": "result" if keep_result else "input",
            "overwrite_map": overwrite[0],
            "overwrite_gradient": overwrite[1],
        }
        self._device, self._operation = self._on(shift.device)

    def __call__(self, x: Tensor) -> Tensor:
        """The activation of ``(N, C, ...)``, on the device of ``x``."""
        if x.device != self._device:  # the network has been moved
            self._device, self._operation = self._on(x.device)
        return self._operation(x)

    def _on(self, device: torch.device) -> tuple[torch.device, PreparedDropout]:
        shift = self._shift.to(device)
        slope = self._slope.to(device) if isinstance(self._slope, Tensor) else self._slope
        scale = torch.ones(len(shift), dtype=torch.float32, device=device)
        return device, PreparedDropout(scale=scale, shift=shift, slope=slope, **self._options)


class FrozenPReLU(nn.PReLU):
    """PReLU with constant slopes: ``y = max(0, x) + a * min(0, x)``.

    The forward pass and the gradient to the input are those of ``nn.PReLU``, bit for bit; at 0 the derivative is
    ``a``, as there.

    Args:
        prelu: Its slopes get no gradient, and must not change.
    """

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__(prelu.num_parameters, device="meta")
        self.weight = prelu.weight
        self.train(prelu.training)
        # of one slope the number of channels is not known
        self._slope = float(prelu.weight.detach()) if prelu.num_parameters == 1 else 0.0
        self._each = FrozenActivation(prelu) if prelu.num_parameters > 1 else None

    def forward(self, input: Tensor) -> Tensor:
        """The activation of ``(N, C, ...)``."""
        return F.leaky_relu(input, self._slope) if self._each is None else self._each(input)
