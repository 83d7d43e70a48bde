"""Feature dropout, a folded batch normalisation and PReLU in one pass."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.ops import checks, foreign, layout
from fastadv.ops.arguments import BATCH_SIZES, Argument, feature_map, key, lend, result
from fastadv.ops.declaration import Op
from fastadv.ops.mask import mask_rate

Array = TypeVar("Array")


def feature_dropout_bn_prelu(
    x: Array,
    *,
    scale: Any,
    shift: Any,
    rate: float = 0.0,
    seed: Any = 0,
    ids: Any = None,
    tick: Any = 0,
    layer: int = 0,
    slope: float | Any | None = None,
    ceiling: float | None = None,
    rescale: bool = False,
    keep: Literal["input", "result"] = "input",
    backend: str | None = None,
) -> Array:
    r"""What follows a convolution of a frozen network, under DFANet or without its mask, in one read and one write.

    .. math:: y = \min(\mathrm{prelu}(\mathrm{scale}_c\,m\,x + \mathrm{shift}_c), \mathrm{ceiling}), \qquad
              \mathrm{prelu}(t) = t \text{ where } t > 0, \text{ else } \mathrm{slope}_c\,t

    with the mask :math:`m` of :func:`feature_dropout`, which is 1 where the rate is 0: then nothing is drawn, and no
    key is needed. What is dropped is 0 before the affine map, whatever it was. As
    in PyTorch, a NaN stays one and minus infinity becomes slope times itself: 0 where the slope is the number 0, ReLU;
    NaN where it is a tensor that holds 0, PReLU. Float32 arithmetic, rounded once to the type of ``x``; no fused
    multiply-add: every backend gives the same bits. The derivative is with respect to ``x`` only, and once; it is 0
    where the ceiling is reached. Mask and affine map are computed again. What is kept for it tells the sign of what
    the activation saw: ``x``, or the result, which the next layer mostly keeps anyway, and from which the derivative
    is cheaper. Without activation and ceiling nothing is kept.

    Args:
        x: feature map ``(N, C, ...)``, float32, bfloat16 or float16; contiguous or channels-last as it is, any other
            memory order is copied. A tensor, or a NumPy or CuPy array.
        rate: see :func:`feature_dropout`; likewise ``seed``, ``ids``, ``tick``, ``layer`` and ``rescale``.
        seed: a number or an int64 tensor of one element.
        ids: ``(N,)`` int64; None with a rate of 0.
        tick: a number, or an int64 tensor of one element or ``(N,)``.
        layer: in ``[0, 2**12)``.
        scale: ``(C,)`` float32, ``weight / sqrt(var + eps)`` of the batch normalisation.
        shift: ``(C,)`` float32, ``bias - mean * scale``; or of the shape of one image, a shift for each position.
        slope: of the negative side: a number, or float32 of one element or ``(C,)``. 0 is ReLU; None: no activation.
        ceiling: the largest result, a finite number; None: no limit. 6 after a slope of 0 is ReLU6.
        rescale: multiply what is kept by ``1 / (1 - rate)``.
        keep: ``"input"`` or ``"result"``. ``"result"`` demands that no slope is negative (of a tensor this is not
            checked: that would wait for the device), and takes the result as it was rounded to the type of ``x``.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        A new map like ``x``: channels-last where ``x`` is, else contiguous.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: ``scale``, ``shift`` or ``slope`` requires grad: they are taken as constants.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Zhong and Deng 2020, "Towards transferable adversarial attack against deep face recognition", eq. 12;
        He et al. 2015, "Delving deep into rectifiers", eq. 1.
    """
    return foreign.give_back(
        _op.call(x, seed, ids, tick, layer, rate, rescale, scale, shift, slope, ceiling, keep, backend), x
    )


Parameters = tuple[Tensor, Tensor, Tensor | None, float, float | None, bool]


def checked_parameters(
    image: tuple[int, ...], device: torch.device, scale: Any, shift: Any, slope: Any, ceiling: float | None, keep: str
) -> Parameters:
    """``(scale, shift, slope_each, slope, ceiling, from_result)``, as the schema takes them for images of a shape."""
    _parameter("scale", scale, device, image[:1])
    _parameter("shift", shift, device, image[:1], image)
    slope_each, slope = (slope, 0.0) if isinstance(slope, Tensor) else (None, 1.0 if slope is None else float(slope))
    if slope_each is not None:
        _parameter("slope", slope_each, device, image[:1], (), (1,))
    elif not -float("inf") < slope < float("inf"):
        raise ArgumentError(f"slope: expected a finite number, a float32 tensor or None, got {brief(slope)}")
    if ceiling is not None and not -float("inf") < ceiling < float("inf"):
        raise ArgumentError(f"ceiling: expected a finite number or None, got {brief(ceiling)}")
    checks.one_of("keep", keep, ("input", "result"))
    if keep == "result" and slope < 0:
        raise ArgumentError(
            "slope: expected a number of at least 0 with keep='result', which does not tell the sign "
            f"below a negative slope, got {brief(slope)}"
        )
    return scale, shift, slope_each, slope, None if ceiling is None else float(ceiling), keep == "result"


def _parameter(name: str, value: Any, device: torch.device, each: tuple[int, ...], *others: tuple[int, ...]) -> None:
    """Raise unless it is of the shape with one for each channel, or of another one."""
    checks.tensor(name, value)
    checks.of_type(name, value, checks.FLOAT)
    if tuple(value.shape) not in (each, *others):
        words = checks.in_words([each, *(shape or "one element" for shape in others if shape not in (each, (1,)))])
        raise ArgumentError(f"{name}: expected shape {words}, as x has {each[0]} channels, got {tuple(value.shape)}")
    if value.device != device:
        raise ArgumentError(f"{name}: expected {device}, the device of x, got {value.device}")
    if value.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} requires grad, and feature_dropout_bn_prelu has a derivative with respect to x only; "
            "freeze the network, or pass a detached tensor"
        )


def is_linear(parameters: Parameters) -> bool:
    """Whether there is neither an activation nor a ceiling, so that the derivative needs nothing but the key."""
    _, _, slope_each, slope, ceiling, _ = parameters
    return slope_each is None and slope == 1.0 and ceiling is None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grad, ids, seed_at, seed, tick_each, tick, layer, threshold, factor, scale, shift, slope_each, *rest = inputs
    ctx.first = grad is None
    parameters = inputs[10:16]
    kept = None if is_linear(parameters) else output if parameters[-1] else x
    ctx.save_for_backward(kept, ids, seed_at, tick_each, scale, shift, slope_each)
    ctx.numbers = (seed, tick, layer, threshold, factor, rest)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    if not ctx.first:
        raise NotImplementedError("feature_dropout_bn_prelu has no second derivative")
    kept, ids, seed_at, tick_each, scale, shift, slope_each = ctx.saved_tensors
    seed, tick, layer, threshold, factor, rest = ctx.numbers
    key = (ids, seed_at, seed, tick_each, tick, layer)
    seen = grad if kept is None else kept  # without an activation, what was seen makes no difference
    return (_op.dispatch(seen, grad, *key, threshold, factor, scale, shift, slope_each, *rest),)


def _reached(ceiling: float | None, from_result: bool, x: Tensor) -> float | None:
    """The ceiling as a result of the type of ``x`` shows it."""
    if not from_result or ceiling is None or x.dtype == torch.float32:
        return ceiling
    return float(torch.tensor(ceiling, dtype=x.dtype))


def readable(x: Tensor, scale: Tensor, shift: Tensor, slope_each: Tensor | None) -> tuple[Tensor, Tensor, Any]:
    """The parameters as rows in memory; a shift for each position as an image of ``x``, whose order kernels know."""
    if shift.dim() == 1:
        shift = shift.contiguous()
    elif shift.stride() != x.stride()[1:]:
        shift = shift.new_empty_strided(shift.shape, x.stride()[1:]).copy_(shift)
    return scale.contiguous(), shift, checks.contiguous(slope_each)


def native_parameters(x: Tensor, parameters: Parameters) -> tuple[Any, ...]:
    """Readable parameters as the compiled kernels take them for maps of the type of ``x``."""
    scale, shift, slope_each, slope, ceiling, from_result = parameters
    ceiling = _reached(ceiling, from_result, x)
    return (
        *(scale.data_ptr(), shift.data_ptr(), checks.address(slope_each), slope, _slope_step(slope_each)),
        *(float("nan") if ceiling is None else ceiling, int(from_result), int(shift.dim() > 1)),
    )


def _slope_step(slope_each: Tensor | None) -> int:
    return int(slope_each is not None and slope_each.numel() > 1)


_PARAMETERS = ("scale", "shift", "slope_each", "slope", "ceiling", "from_result")
_op = Op(
    "feature_dropout_bn_prelu",
    feature_map("x", "(N, C, ...)", least=2),
    Argument(
        kind="gradient",
        schema="Tensor? grad",
        check=("grad = None",),
        ready=("grad = None if grad is None else checks.restrided(grad, x)",),
        whole=("grad",),
        native=("checks.address(grad)",),
        launch=("grad",),
    ),
    result(code_of="x"),
    key(lent=True, optional=True),
    mask_rate(),
    Argument(
        kind="parameters",
        public=("scale", "shift", "slope", "ceiling", "keep"),
        schema="Tensor scale, Tensor shift, Tensor? slope_each, float slope, float? ceiling, bool from_result",
        check=(
            *map(lend, ("scale", "shift", "slope")),
            f"{', '.join(_PARAMETERS)} = parameters(tuple(x.shape[1:]), x.device, scale, shift, slope, ceiling, keep)",
        ),
        ready=("scale, shift, slope_each = readable(x, scale, shift, slope_each)",),
        whole=("scale", "shift", "slope_each", "slope", "reached(ceiling, from_result, x)", "from_result"),
        native=(f"*native_parameters(x, ({', '.join(_PARAMETERS)}))",),
        launch=(
            *("scale", "shift", "slope_each", "slope", "slope_step(slope_each)", "reached(ceiling, from_result, x)"),
            "from_result and grad is not None",
        ),
        uses={
            **{"parameters": checked_parameters, "readable": readable, "reached": _reached},
            **{"native_parameters": native_parameters, "slope_step": _slope_step},
        },
    ),
    make=layout.empty,
    sizes=BATCH_SIZES,
    setup=_setup,
    backward=_backward,
)
