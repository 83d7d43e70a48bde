"""The sign step: one step of FGSM, BIM, PGD, FIM and their like, in place."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.errors import ArgumentTypeError
from fastadv.ops import checks, foreign
from fastadv.ops._define import define_op
from fastadv.ops.reference import sign_step as reference

Array = TypeVar("Array")


def sign_step_(
    x: Array,
    grad: Any,
    origin: Any,
    *,
    alpha: float | Any,
    eps: float | Any,
    active: Any | None = None,
    stats: Any | None = None,
    lo: float = 0.0,
    hi: float = 1.0,
    backend: str | None = None,
) -> Array:
    r"""Move ``x`` by one signed step and clip it to the ball and the box, in place.

    .. math:: x \leftarrow \min(\max(x + \alpha\,\mathrm{sign}(g),\ \max(x_0 - \varepsilon, lo)),\
              \min(x_0 + \varepsilon, hi))

    with ``g = grad`` and ``x_0 = origin``. An element of ``grad`` that is NaN or infinite leaves its pixel as
    it is. Every backend gives the same bits. Arguments are tensors, or NumPy or CuPy arrays, which share
    their memory.

    Args:
        x: images ``(N, C, H, W)``, float32; dense, in any memory order; written.
        grad: like ``x``; float32, bfloat16 or float16. Copied when its memory order is another.
        origin: like ``x``, the centre of the ball.
        alpha: step in the unit of the pixels, a number or one per image ``(N,)`` float32. Negative descends.
        eps: radius of the L-infinity ball, same unit, a number >= 0 or one per image.
        active: ``(N,)`` bool; an image that is False is left untouched and uncounted. None: all are active.
        stats: ``(N, 2)`` int64, contiguous; the numbers of non-finite and of zero elements of ``grad`` are
            added to it.
        lo: lower end of the pixel range.
        hi: upper end of the pixel range.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``x`` itself.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device, layout or value.
        RuntimeError: ``x`` requires grad: there is no derivative.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Goodfellow et al. 2015, "Explaining and harnessing adversarial examples"; the iterated, clipped form:
        Kurakin et al. 2017, "Adversarial examples in the physical world".
    """
    if foreign.is_array(x):
        arrays = {"x": x, "grad": grad, "origin": origin, "alpha": alpha, "eps": eps}
        arrays |= {"active": active, "stats": stats}
        foreign.call(sign_step_, arrays, ("x", "stats"), {"lo": lo, "hi": hi, "backend": backend})
        return x
    if not checks.is_tensor(x):
        raise ArgumentTypeError(f"x is a {type(x).__name__}; expected a torch.Tensor or a NumPy or CuPy array")
    checks.images("x", x)
    checks.like("grad", grad, x, None)
    checks.like("origin", origin, x)
    alpha_each, alpha_all = checks.scalar_or_each("alpha", alpha, x)
    eps_each, eps_all = checks.scalar_or_each("eps", eps, x, least=0.0)
    checks.per_image("active", active, x, torch.bool)
    checks.per_image("stats", stats, x, torch.int64, 2)
    checks.pixel_range(lo, hi)
    _op(x, grad, origin, alpha_each, alpha_all, eps_each, eps_all, active, stats, lo, hi, backend or "auto")
    return x  # type: ignore[return-value]


def _prepared(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    stats: Tensor | None,
    each: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    # Here, not in the public function: torch.compile may hand over other strides than it traced.
    checks.dense("x", x)
    checks.writable_rows("stats", stats)
    alpha, eps, active = each
    checks.not_shared(
        (("x", x), ("stats", stats)),
        (("origin", origin), ("grad", grad), ("alpha", alpha), ("eps", eps), ("active", active)),
    )
    return checks.restrided(grad, x), checks.restrided(origin, x)


def _reference(x: Tensor, grad: Tensor, origin: Tensor, *rest: Any) -> None:
    _prepared(x, grad, origin, rest[5], (rest[0], rest[2], rest[4]))
    reference.sign_step_(x, grad, origin, *rest)


def _native_arguments(
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
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of the compiled function, and the tensors that must outlive the call."""
    grad, origin = _prepared(x, grad, origin, stats, (alpha_each, eps_each, active))
    alpha_each, eps_each, active = map(checks.contiguous, (alpha_each, eps_each, active))
    address = checks.address
    images = x.shape[0]
    size = x.numel() // images if images else 0
    values = (
        *(x.data_ptr(), grad.data_ptr(), checks.GRAD_TYPES[grad.dtype], origin.data_ptr()),
        *(address(alpha_each), alpha, address(eps_each), eps, address(active), address(stats)),
        *(lo, hi, images, size),
    )
    return values, (grad, origin, alpha_each, eps_each, active)


def _cpu(x: Tensor, *rest: Any) -> None:
    values, keep = _native_arguments(x, *rest)
    if x.numel():
        _native.module().cpu_sign_step(*values, torch.get_num_threads(), backends.cpu_isa())
    del keep


def _cuda(x: Tensor, *rest: Any) -> None:
    with torch.cuda.device(x.device):
        values, keep = _native_arguments(x, *rest)
        if x.numel():
            stream = torch.cuda.current_stream().cuda_stream
            _native.module().cuda_sign_step(*values, x.device.index, stream)
        del keep


def _triton(
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
    kernel = importlib.import_module("fastadv.kernels.triton.sign_step")
    grad, origin = _prepared(x, grad, origin, stats, (alpha_each, eps_each, active))
    each = map(checks.contiguous, (alpha_each, eps_each, active))
    if x.numel():
        kernel.launch(x, grad, origin, *each, stats, alpha, eps, lo, hi)


_op = define_op(
    "sign_step_(Tensor(a!) x, Tensor grad, Tensor origin, Tensor? alpha_each, float alpha, Tensor? eps_each,"
    " float eps, Tensor? active, Tensor(b!)? stats, float lo, float hi, str backend) -> ()",
    {"reference": _reference, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
)
