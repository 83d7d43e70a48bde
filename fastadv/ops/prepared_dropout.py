"""The fused operation of a layer, prepared: all but the map and the key are fixed and checked once."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastadv import backends
from fastadv.ops import checks, random_key
from fastadv.ops._define import IMPLEMENTATIONS
from fastadv.ops.feature_dropout import threshold_and_factor
from fastadv.ops.feature_dropout_bn_prelu import checked_parameters, feature_dropout_bn_prelu, is_linear

_NAME = "feature_dropout_bn_prelu"


class PreparedDropout:
    """:func:`fastadv.ops.feature_dropout_bn_prelu` of one layer of a network.

    The same results and the same derivative, without PyTorch's dispatcher: a network calls it behind each of its
    convolutions, forwards and backwards, and on small maps checks and dispatch took longer than the operation (a
    forward and a backward pass over one of 2 x 8 x 4 x 4: 315 us, now less than 100). Under ``torch.compile`` it is the
    operation itself.

    Args:
        rate: see :func:`fastadv.ops.feature_dropout_bn_prelu`; likewise the others.
        layer: in ``[0, 2**12)``.
        scale: ``(C,)`` float32.
        shift: ``(C,)`` float32.
        slope: a number, float32 of one element or ``(C,)``, or None.
        ceiling: a finite number or None.
        rescale: multiply what is kept by ``1 / (1 - rate)``.
        keep: ``"input"`` or ``"result"``.
        backend: None for the fastest that can run.

    Raises:
        TypeError, ValueError, RuntimeError, BackendUnavailable: as the operation.
    """

    def __init__(
        self,
        *,
        rate: float,
        layer: int,
        scale: Tensor,
        shift: Tensor,
        slope: float | Tensor | None = None,
        ceiling: float | None = None,
        rescale: bool = False,
        keep: Literal["input", "result"] = "input",
        backend: str | None = None,
    ) -> None:
        checks.tensor("scale", scale)
        self._parameters = checked_parameters(scale.numel(), scale.device, scale, shift, slope, ceiling, keep)
        self._numbers = threshold_and_factor(rate, rescale)
        self._linear = is_linear(self._parameters)
        self._layer = layer
        self._backend = backend
        self._named: dict[str, Any] = {
            **{"rate": rate, "layer": layer, "scale": scale, "shift": shift, "slope": slope},
            **{"ceiling": ceiling, "rescale": rescale, "keep": keep, "backend": backend},
        }

    def __call__(self, x: Tensor, *, seed: int | Tensor, ids: Tensor, tick: int | Tensor) -> Tensor:
        """The masked, normalised and activated map, like ``x`` ``(N, C, ...)``; see the operation."""
        if torch.compiler.is_compiling():
            return feature_dropout_bn_prelu(x, seed=seed, ids=ids, tick=tick, **self._named)
        if not isinstance(x, Tensor) or x.dtype not in checks.GRAD_TYPES:
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x is {came}; expected a tensor of torch.float32, torch.bfloat16 or torch.float16")
        scale = self._parameters[0]
        if x.dim() < 2 or x.shape[1] != len(scale) or x.device != scale.device:
            raise ValueError(
                f"x has shape {tuple(x.shape)} on {x.device}; expected (N, {len(scale)}, ...) on {scale.device}"
            )
        key = random_key.for_batch(x, seed, ids, tick, self._layer)
        if torch.is_grad_enabled() and x.requires_grad:
            made: Tensor = _Prepared.apply(x, self, key)
            return made
        return self._run(x, None, key)

    def _run(self, x: Tensor, grad: Tensor | None, key: random_key.Split) -> Tensor:
        backend = backends.resolve(_NAME, x.device, self._backend)
        made: Tensor = IMPLEMENTATIONS[_NAME][backend](x, grad, *key, *self._numbers, *self._parameters)
        return made


class _Prepared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, prepared: PreparedDropout, key: random_key.Split) -> Tensor:
        made = prepared._run(x.detach(), None, key)
        ids, seed_at, seed, tick_each, tick, layer = key
        kept = None if prepared._linear else made if prepared._parameters[-1] else x
        ctx.save_for_backward(kept, ids, seed_at, tick_each)
        ctx.rest = (prepared, seed, tick, layer)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        kept, ids, seed_at, tick_each = ctx.saved_tensors
        prepared, seed, tick, layer = ctx.rest
        seen = gradient if kept is None else kept  # without an activation, what was seen makes no difference
        return prepared._run(seen, gradient, (ids, seed_at, seed, tick_each, tick, layer)), None, None
