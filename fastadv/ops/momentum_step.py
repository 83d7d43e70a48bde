"""The momentum step: one step of MI-FGSM, M-FIM and their like, in place."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks, foreign
from fastadv.ops._define import define_op
from fastadv.ops.reference import momentum_step as reference

Array = TypeVar("Array")

_NORMS = {"l1": 0, "l2": 1}
_STEPS = {"sign": 0, "l2": 1}

# How an image is cut for the partial sums; kernels/cuda/launch.h and kernels/common/types.h say the same.
_CHUNK = 2048
_MOST_CHUNKS = 256


def momentum_workspace(x: Any) -> Tensor:
    """Scratch memory for :func:`momentum_step_`, made once, so that a step allocates nothing.

    Args:
        x: the images ``(N, C, H, W)``, a tensor or a NumPy or CuPy array.

    Returns:
        A float64 tensor ``(2, N, chunks)`` on the device of ``x``; its values mean nothing between calls.
    """
    images = foreign.borrow("x", x, written=False)
    checks.tensor("x", images)
    size = images.numel() // images.shape[0] if images.dim() and images.shape[0] else 0
    chunks = max(1, min(_MOST_CHUNKS, -(-size // _CHUNK)))
    return torch.empty((2, images.shape[0], chunks), dtype=torch.float64, device=images.device)


def momentum_step_(
    x: Array,
    grad: Any,
    origin: Any,
    velocity: Any,
    *,
    alpha: float | Any,
    eps: float | Any,
    mu: float,
    norm: str = "l1",
    step: str = "sign",
    active: Any | None = None,
    stats: Any | None = None,
    workspace: Tensor | None = None,
    lo: float = 0.0,
    hi: float = 1.0,
    backend: str | None = None,
) -> Array:
    r"""Update the velocity with the normalised gradient and move ``x`` along it, in place.

    .. math:: v \leftarrow \mu v + g / \|g\|

    ``step="sign"`` then does :func:`sign_step_` with the sign of ``v``. ``step="l2"`` does

    .. math:: x \leftarrow x + \alpha\,v / \|v\|_2

    projects ``x`` to the L2 ball of radius ``eps`` around ``origin`` and clips it to ``[lo, hi]``. Norms are
    per image, over the finite elements of ``grad``, added up in float64 and rounded once. Where the norm is 0
    the term is 0. A NaN or infinite element of ``grad`` adds nothing to the velocity, and its pixel takes no
    step of its own (the L2 projection, which moves the whole image, still applies to it).

    Args:
        x: images ``(N, C, H, W)``, float32; dense, in any memory order; written.
        grad: like ``x``; float32, bfloat16 or float16. Copied when its memory order is another.
        origin: like ``x``, the centre of the ball.
        velocity: like ``x``, also in memory order; written. Zeros at the start.
        alpha: step in the unit of the pixels (per pixel, or the L2 length), a number or one per image
            ``(N,)`` float32.
        eps: radius of the L-infinity or L2 ball, same unit, a number >= 0 or one per image.
        mu: decay of the velocity, a finite number.
        norm: ``"l1"`` or ``"l2"``, what the gradient is divided by.
        step: ``"sign"`` or ``"l2"``.
        active: ``(N,)`` bool; an image that is False is left untouched, with its velocity. None: all active.
        stats: ``(N, 2)`` int64, contiguous; the numbers of non-finite and of zero elements of ``grad`` are
            added to it.
        workspace: from :func:`momentum_workspace`; None: allocated by this call.
        lo: lower end of the pixel range.
        hi: upper end of the pixel range.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``x`` itself.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device, layout or value.
        RuntimeError: ``x`` or ``velocity`` requires grad: there is no derivative.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Dong et al. 2018, "Boosting adversarial attacks with momentum", eq. 6 and 7 (sign) and 8 (L2).
    """
    if foreign.is_array(x):
        arrays = {"x": x, "grad": grad, "origin": origin, "velocity": velocity, "alpha": alpha, "eps": eps}
        arrays |= {"active": active, "stats": stats}
        options = {"mu": mu, "norm": norm, "step": step, "workspace": workspace, "lo": lo, "hi": hi}
        foreign.call(momentum_step_, arrays, ("x", "velocity", "stats"), {**options, "backend": backend})
        return x
    if not checks.is_tensor(x):
        raise ArgumentTypeError(f"x is a {type(x).__name__}; expected a torch.Tensor or a NumPy or CuPy array")
    checks.images("x", x)
    checks.like("grad", grad, x, None)
    checks.like("origin", origin, x)
    checks.like("velocity", velocity, x)
    alpha_each, alpha_all = checks.scalar_or_each("alpha", alpha, x)
    eps_each, eps_all = checks.scalar_or_each("eps", eps, x, least=0.0)
    if not -float("inf") < mu < float("inf"):
        raise ArgumentError(f"mu is {brief(mu)}; expected a finite number")
    if norm not in _NORMS:
        raise ArgumentError(f"norm is {brief(norm)}; expected 'l1' or 'l2'")
    if step not in _STEPS:
        raise ArgumentError(f"step is {brief(step)}; expected 'sign' or 'l2'")
    checks.per_image("active", active, x, torch.bool)
    checks.per_image("stats", stats, x, torch.int64, 2)
    checks.pixel_range(lo, hi)
    if workspace is None:
        workspace = momentum_workspace(x)
    checks.tensor("workspace", workspace)
    if workspace.dtype != torch.float64:
        raise ArgumentTypeError(
            f"workspace has dtype {workspace.dtype}; expected torch.float64, from momentum_workspace(x)"
        )
    checks.on_device("workspace", workspace, x)
    _op(
        *(x, grad, origin, velocity, alpha_each, alpha_all, eps_each, eps_all, mu, norm, step),
        *(active, stats, workspace, lo, hi, backend or "auto"),
    )
    return x  # type: ignore[return-value]


def _prepared(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    velocity: Tensor,
    stats: Tensor | None,
    workspace: Tensor,
    each: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    # Here, not in the public function: torch.compile may hand over other strides than it traced.
    checks.dense("x", x)
    checks.same_layout("velocity", velocity, x)
    checks.writable_rows("stats", stats)
    checks.writable_rows("workspace", workspace)
    alpha, eps, active = each
    checks.not_shared(
        (("x", x), ("velocity", velocity), ("stats", stats), ("workspace", workspace)),
        (("origin", origin), ("grad", grad), ("alpha", alpha), ("eps", eps), ("active", active)),
    )
    size = x.numel() // x.shape[0] if x.shape[0] else 0
    needed = 2 * x.shape[0] * max(1, min(_MOST_CHUNKS, -(-size // _CHUNK)))
    if workspace.numel() < needed:
        raise ArgumentError(
            f"workspace has {workspace.numel()} elements; expected {needed} or more, from momentum_workspace(x)"
        )
    return checks.restrided(grad, x), checks.restrided(origin, x)


def _reference(x: Tensor, grad: Tensor, origin: Tensor, velocity: Tensor, *rest: Any) -> None:
    active, stats, workspace = rest[7:10]
    _prepared(x, grad, origin, velocity, stats, workspace, (rest[0], rest[2], active))
    reference.momentum_step_(x, grad, origin, velocity, *rest[:9], *rest[10:])


def _native_arguments(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    velocity: Tensor,
    alpha_each: Tensor | None,
    alpha: float,
    eps_each: Tensor | None,
    eps: float,
    mu: float,
    norm: str,
    step: str,
    active: Tensor | None,
    stats: Tensor | None,
    workspace: Tensor,
    lo: float,
    hi: float,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of the compiled function, and the tensors that must outlive the call."""
    grad, origin = _prepared(x, grad, origin, velocity, stats, workspace, (alpha_each, eps_each, active))
    alpha_each, eps_each, active = map(checks.contiguous, (alpha_each, eps_each, active))
    address = checks.address
    images = x.shape[0]
    size = x.numel() // images if images else 0
    values = (
        *(
            x.data_ptr(),
            grad.data_ptr(),
            checks.GRAD_TYPES[grad.dtype],
            origin.data_ptr(),
            velocity.data_ptr(),
        ),
        *(address(alpha_each), alpha, address(eps_each), eps, mu, _NORMS[norm], _STEPS[step]),
        *(address(active), address(stats), workspace.data_ptr(), workspace.numel(), lo, hi, images, size),
    )
    return values, (grad, origin, alpha_each, eps_each, active)


def _cpu(x: Tensor, *rest: Any) -> None:
    values, keep = _native_arguments(x, *rest)
    if x.numel():
        _native.module().cpu_momentum_step(*values, torch.get_num_threads(), backends.cpu_isa())
    del keep


def _cuda(x: Tensor, *rest: Any) -> None:
    with torch.cuda.device(x.device):
        values, keep = _native_arguments(x, *rest)
        if x.numel():
            stream = torch.cuda.current_stream().cuda_stream
            _native.module().cuda_momentum_step(*values, x.device.index, stream)
        del keep


def _triton(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    velocity: Tensor,
    alpha_each: Tensor | None,
    alpha: float,
    eps_each: Tensor | None,
    eps: float,
    mu: float,
    norm: str,
    step: str,
    active: Tensor | None,
    stats: Tensor | None,
    workspace: Tensor,
    lo: float,
    hi: float,
) -> None:
    kernel = importlib.import_module("fastadv.kernels.triton.momentum_step")
    grad, origin = _prepared(x, grad, origin, velocity, stats, workspace, (alpha_each, eps_each, active))
    each = map(checks.contiguous, (alpha_each, eps_each, active))
    if x.numel():
        numbers = (alpha, eps, mu, lo, hi)
        kernel.launch(x, grad, origin, velocity, *each, stats, workspace, *numbers, _NORMS[norm], _STEPS[step])


_op = define_op(
    "momentum_step_(Tensor(a!) x, Tensor grad, Tensor origin, Tensor(b!) velocity, Tensor? alpha_each,"
    " float alpha, Tensor? eps_each, float eps, float mu, str norm, str step, Tensor? active,"
    " Tensor(c!)? stats, Tensor(d!) workspace, float lo, float hi, str backend) -> ()",
    {"reference": _reference, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
)
