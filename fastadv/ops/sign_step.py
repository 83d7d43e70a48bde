"""The sign step: one step of FGSM, BIM, PGD, FIM and their like, in place."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from fastadv.ops.arguments import IMAGES_AND_SIZE, counts, each, images, per_image, pixel_range, read
from fastadv.ops.declaration import Op

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
    made: Array = _op.call(x, grad, origin, alpha, eps, active, stats, lo, hi, backend)
    return made


_op = Op(
    "sign_step_",
    images("x"),
    read("grad", half=True),
    read("origin"),
    each("alpha"),
    each("eps", least=0.0),
    per_image("active", torch.bool, optional=True),
    counts("stats", 2),
    pixel_range(),
    sizes=IMAGES_AND_SIZE,
)
