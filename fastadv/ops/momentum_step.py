"""The momentum step: one step of MI-FGSM, M-FIM and their like, in place."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks, foreign
from fastadv.ops.arguments import (
    IMAGES_AND_SIZE,
    Argument,
    choice,
    counts,
    each,
    images,
    number,
    per_image,
    pixel_range,
    read,
    written,
)
from fastadv.ops.declaration import Op

Array = TypeVar("Array")

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
    batch = foreign.borrow("x", x, written=False)
    checks.tensor("x", batch)
    return torch.empty((2, batch.shape[0], _chunks(batch)), dtype=torch.float64, device=batch.device)


def _chunks(x: Tensor) -> int:
    size = x.numel() // x.shape[0] if x.dim() and x.shape[0] else 0
    return max(1, min(_MOST_CHUNKS, -(-size // _CHUNK)))


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
        ``x`` itself; ``velocity``, ``stats`` and ``workspace`` are written too.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device, layout or value.
        RuntimeError: ``x`` or ``velocity`` requires grad: there is no derivative.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Dong et al. 2018, "Boosting adversarial attacks with momentum", eq. 6 and 7 (sign) and 8 (L2).
    """
    made: Array = _op.call(
        *(x, grad, origin, velocity, alpha, eps, mu, norm, step, active, stats, workspace, lo, hi, backend)
    )
    return made


def _check_workspace(workspace: Any, x: Tensor) -> Tensor:
    if workspace is None:
        return momentum_workspace(x)
    checks.tensor("workspace", workspace)
    if workspace.dtype != torch.float64:
        raise ArgumentTypeError(
            f"workspace: expected dtype torch.float64, from momentum_workspace(x), got {workspace.dtype}"
        )
    checks.on_device("workspace", workspace, x)
    made: Tensor = workspace
    return made


def _check_room(workspace: Tensor, x: Tensor) -> None:
    checks.writable_rows("workspace", workspace)
    needed = 2 * x.shape[0] * _chunks(x)
    if workspace.numel() < needed:
        raise ArgumentError(
            f"workspace: expected {needed} elements or more, from momentum_workspace(x), got {workspace.numel()}"
        )


_op = Op(
    "momentum_step_",
    images("x"),
    read("grad", half=True),
    read("origin"),
    written("velocity"),
    each("alpha"),
    each("eps", least=0.0),
    number("mu"),
    choice("norm", {"l1": 0, "l2": 1}),
    choice("step", {"sign": 0, "l2": 1}),
    per_image("active", torch.bool, optional=True),
    counts("stats", 2),
    Argument(
        kind="workspace",
        public=("workspace",),
        schema="Tensor(!) workspace",
        check=("workspace = check_workspace(workspace, x)",),
        layout=("check_room(workspace, x)",),
        native=("workspace.data_ptr()", "workspace.numel()"),
        launch=("workspace",),
        uses={"check_workspace": _check_workspace, "check_room": _check_room},
    ),
    pixel_range(),
    sizes=IMAGES_AND_SIZE,
)
