"""Feature dropout of one layer, prepared: all but the map and the key are fixed and checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastadv import backends
from fastadv.core.errors import ArgumentError
from fastadv.ops import checks, layout, random_key
from fastadv.ops.declaration import OPERATIONS, Op
from fastadv.ops.feature_dropout import feature_dropout
from fastadv.ops.feature_dropout_bn_prelu import (
    Parameters,
    checked_parameters,
    feature_dropout_bn_prelu,
    is_linear,
    native_parameters,
    readable,
)
from fastadv.ops.mask import check_key, threshold_and_factor

_MOST_KNOWN = 64  # maps whose description is remembered
_NO_KEY = random_key.BatchKey()


class PreparedDropout:
    """:func:`fastadv.ops.feature_dropout_bn_prelu` of one layer of a network, or :func:`fastadv.ops.feature_dropout`.

    The same results and the same derivative, without PyTorch's dispatcher: a network calls it behind each of its
    convolutions, forwards and backwards, and on small maps checks and dispatch took longer than the operation (a
    forward and a backward pass over one of 2 x 8 x 4 x 4: 315 us, now 40). Under ``torch.compile`` it is the operation
    itself.

    On the CPU it may also do without memory of its own: a large map is then read and written in one place, and no new
    page is touched.

    Args:
        rate: see :func:`fastadv.ops.feature_dropout_bn_prelu`; likewise the others. With 0, the calls need no key.
        layer: in ``[0, 2**12)``.
        scale: ``(C,)`` float32; None, as ``shift`` then is: nothing but the mask.
        shift: ``(C,)`` float32; or of the shape of one image, then the only one that is taken.
        slope: a number, float32 of one element or ``(C,)``, or None.
        ceiling: a finite number or None.
        rescale: multiply what is kept by ``1 / (1 - rate)``.
        keep: ``"input"`` or ``"result"``.
        backend: None for the fastest that can run.
        overwrite_map: the map that is handed over is read by nobody else, so the result may take its place. It does
            where the derivative needs no input.
        overwrite_gradient: nor is the gradient of the result, so that of the map may take its place.

    Raises:
        TypeError, ValueError, RuntimeError, BackendUnavailable: as the operation.
    """

    def __init__(
        self,
        *,
        rate: float = 0.0,
        layer: int = 0,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        slope: float | Tensor | None = None,
        ceiling: float | None = None,
        rescale: bool = False,
        keep: Literal["input", "result"] = "input",
        backend: str | None = None,
        overwrite_map: bool = False,
        overwrite_gradient: bool = False,
    ) -> None:
        self._numbers = threshold_and_factor(rate, rescale)
        random_key.check_layer(layer)
        self._layer = layer
        self._backend = backend
        self._overwrite = (overwrite_map, overwrite_gradient)
        self._named: dict[str, Any] = {"rate": rate, "layer": layer, "rescale": rescale, "backend": backend}
        self._known: dict[Any, _Layout] = {}
        self._parameters: Parameters | None = None
        self._kept: str | None = None
        if scale is None:
            if not (shift is None and slope is None and ceiling is None):
                raise ArgumentError("scale: expected a tensor beside shift, slope or ceiling, got None")
            return
        checks.tensor("scale", scale)
        image = (scale.numel(), *(shift.shape[1:] if isinstance(shift, Tensor) else ()))
        parameters = checked_parameters(image, scale.device, scale, shift, slope, ceiling, keep)
        given = zip(("scale", "shift", "slope"), parameters[:3], strict=True)
        in_memory = [None if part is None else checks.in_memory(name, part) for name, part in given]
        parameters = (*in_memory, *parameters[3:])  # type: ignore[assignment]
        parameters = _own(parameters)
        self._kept = None if is_linear(parameters) else keep
        self._parameters = parameters
        self._named |= {"scale": scale, "shift": shift, "slope": slope, "ceiling": ceiling, "keep": keep}

    def __getstate__(self) -> dict[str, Any]:
        """For a copy, here or in another process: layouts hold addresses of this one's parameters."""
        parameters = None if self._parameters is None else _own(self._parameters)
        return {**vars(self), "_known": {}, "_parameters": parameters}

    def __call__(
        self, x: Tensor, *, seed: int | Tensor = 0, ids: Tensor | None = None, tick: int | Tensor = 0
    ) -> Tensor:
        """The masked, normalised and activated map, like ``x`` ``(N, C, ...)``; see the operation."""
        return self.keyed(x, _NO_KEY if ids is None else random_key.BatchKey(seed, ids, tick))

    def keyed(self, x: Tensor, key: random_key.BatchKey) -> Tensor:
        """The same with a key that was checked before, for all layers of a network."""
        if torch.compiler.is_compiling():
            return self._dispatched(x, key)
        if not isinstance(x, Tensor):
            checks.tensor_of("x", x, checks.GRAD_TYPES)  # type: ignore[unreachable]
        if not (key.in_memory and checks.has_memory(x)):
            return self._dispatched(x, key)
        known = self._layout(x)
        if key.ids is None:
            check_key(None, self._numbers[0])
        elif x.shape[0] != key.count or x.device != key.ids.device:
            raise ArgumentError(
                f"ids: expected shape {tuple(x.shape[:1])} on {x.device}, got {tuple(key.ids.shape)} on "
                f"{key.ids.device}"
            )
        if torch.is_grad_enabled() and x.requires_grad:
            made: Tensor = _Prepared.apply(x, self, key, known)
            return made
        return self._run(x, None, key, known, x if self._overwrite[0] and known.native and not x._is_view() else None)

    def _dispatched(self, x: Tensor, key: random_key.BatchKey) -> Tensor:
        """By the operation itself, which PyTorch hands what it can do with any form of tensor."""
        operation: Any = feature_dropout if self._parameters is None else feature_dropout_bn_prelu
        made: Tensor = operation(x, seed=key.seed, ids=key.ids, tick=key.tick, **self._named)
        return made

    def _layout(self, x: Tensor) -> _Layout:
        name = (x.shape, x.stride(), x.dtype, x.device)
        known = self._known.get(name)
        if known is None:
            known = self._described(x)
            if len(self._known) < _MOST_KNOWN:
                self._known[name] = known
        return known

    def _described(self, x: Tensor) -> _Layout:
        checks.tensor_of("x", x, checks.GRAD_TYPES)
        empty = layout.empty(x)
        parameters: Parameters | None = None
        if self._parameters is None:
            operation = "feature_dropout"
            if x.dim() < 1:
                raise ArgumentError("x: expected a batch (N, ...), got shape ()")
        else:
            operation, shift = "feature_dropout_bn_prelu", self._parameters[1]
            shape, more = (x.shape[1:2], ", ...") if shift.dim() == 1 else (x.shape[1:], "")
            if shape != shift.shape or x.device != shift.device:
                wanted = f"(N, {str(tuple(shift.shape)).strip('(,)')}{more})"
                raise ArgumentError(f"x: expected shape {wanted} on {shift.device}, got {tuple(x.shape)} on {x.device}")
            parameters = (*readable(empty, *self._parameters[:3]), *self._parameters[3:])
        sizes = layout.sizes(x)
        random_key.check_count(sizes[1] * sizes[2])
        backend, declared = backends.resolve(operation, x.device, self._backend), OPERATIONS[operation]
        native = backend == "cpu" and x.stride() == empty.stride() and x.numel() > 0
        return _Layout(
            operation=declared,
            backend=backend,
            native=declared.compiled("cpu") if native else None,
            strides=x.stride(),
            parameters=parameters or (),
            before=checks.GRAD_TYPES[x.dtype],
            after=(self._layer, *self._numbers, *(native_parameters(x, parameters) if parameters else ()), *sizes),
        )

    def _run(
        self, x: Tensor, grad: Tensor | None, key: random_key.BatchKey, known: _Layout, into: Tensor | None
    ) -> Tensor:
        if known.native is None and known.backend == "cpu" and (grad is None or grad is x):
            into = _dense(x)  # a slice, or one map for all images: the copy is nobody else's
            known = self._layout(into)
            x, grad = into, None if grad is None else into
        if known.native is None or (grad is not None and grad.stride() != x.stride()):
            maps: tuple[Any, ...] = (x if grad is None else grad,) if self._parameters is None else (x, grad)
            numbers = (*key.of_layer(self._layer), *self._numbers, *known.parameters)
            made: Tensor = known.operation.implementations[known.backend](*maps, *numbers)
            return made
        out = torch.empty_like(x) if into is None else into
        if self._parameters is None:
            addresses: tuple[int, ...] = ((x if grad is None else grad).data_ptr(),)
        else:
            addresses = (x.data_ptr(), checks.address(grad))
        known.native(*addresses, out.data_ptr(), known.before, *key.numbers, *known.after, *backends.on_cpu())
        return out


def _own(parameters: Parameters) -> Parameters:
    """Copies that nobody else has: layouts keep addresses, and a tensor that is shared with a process moves."""
    scale, shift, slope_each, *rest = parameters
    slope_each = None if slope_each is None else slope_each.detach().clone()
    return (scale.detach().clone(), shift.detach().clone(), slope_each, *rest)  # type: ignore[return-value]


def _dense(x: Tensor) -> Tensor:
    """A copy without gaps, in the memory order that ``x`` has but for them."""
    last = x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous()
    return x.clone(memory_format=torch.channels_last if last else torch.contiguous_format)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What is known of a map by its shape, strides, type and device.

    Attributes:
        operation: the declared one.
        backend: which runs it.
        native: the C++ function, where it takes the map as it is, and the operation's result lies in memory as the map
            does: to the strides of one pixel, by which the next convolution chooses its kernel.
        strides: the map's.
        parameters: as the kernels read them beside such a map; none of a mask alone.
        before: the C++ kernel's argument before the key.
        after: those after it.
    """

    operation: Op
    backend: str
    native: Callable[..., None] | None
    strides: tuple[int, ...]
    parameters: tuple[Any, ...]
    before: int
    after: tuple[Any, ...]


class _Prepared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, prepared: PreparedDropout, key: random_key.BatchKey, known: _Layout) -> Tensor:
        over = prepared._overwrite[0] and prepared._kept != "input" and known.native and not (x.is_leaf or x._is_view())
        made = prepared._run(x, None, key, known, x if over else None)
        if over:
            ctx.mark_dirty(x)
        if prepared._kept is not None:
            ctx.save_for_backward(made if prepared._kept == "result" else x)
        # Not saved with it: a key is all layers' alike, and saving its tensors costs more than looking at them.
        ctx.rest = (prepared, key, key.versions(), known)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _backward_once(ctx, gradient) if torch.is_grad_enabled() else _backward(ctx, gradient)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    prepared, key, versions, known = ctx.rest
    gradient = checks.in_memory("gradient", gradient)
    if key.versions() != versions:
        raise RuntimeError("seed, ids or tick has been modified by an inplace operation since the forward pass")
    if prepared._kept is not None:
        (kept,) = ctx.saved_tensors  # raises where it has changed
    else:  # without an activation, what was seen makes no difference
        kept, known = gradient, known if gradient.stride() == known.strides else prepared._layout(gradient)
    over = prepared._overwrite[1] and known.native and not gradient._is_view() and kept.stride() == gradient.stride()
    return prepared._run(kept, gradient, key, known, gradient if over else None), None, None, None


_backward_once = once_differentiable(_backward)
