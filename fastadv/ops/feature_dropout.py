"""Feature dropout: a fresh Bernoulli mask on a feature map, of which nothing is stored."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from fastadv.ops import foreign, layout
from fastadv.ops.arguments import BATCH_SIZES, feature_map, key, result
from fastadv.ops.declaration import Op
from fastadv.ops.mask import mask_rate

Array = TypeVar("Array")


def feature_dropout(
    x: Array,
    *,
    rate: float,
    seed: int | Any,
    ids: Any,
    tick: int | Any,
    layer: int,
    rescale: bool = False,
    backend: str | None = None,
) -> Array:
    r"""Multiply a feature map by a Bernoulli mask.

    .. math:: y_e = m_e\,x_e, \qquad m_e = [\,r_e \ge \mathrm{round}(2^{16}\,\mathrm{rate})\,]

    where :math:`r_e` is the element's draw of 16 bits, a function of (seed, image id, tick, layer, place of the element
    in (C, H, W) order), whatever the memory order. So two images of one id have one mask (the pair of DFANet), and an
    image has its mask in any slot, with any neighbours and on every backend. Sixteen elements share a block of
    Philox4x32-7: with its bytes :math:`b_0, \dots, b_{15}`, draw k is
    :math:`2^8\,b_k + (b_{k \oplus 1} \oplus b_{(k \oplus 1) + 4 \bmod 16})`. Any two draws are independent, and so are
    the upper bytes of all, which are enough for all but one decision in 256. What is dropped is +0, also where ``x`` is
    not finite. Differentiable any number of times: the backward pass generates the mask again. Every backend gives the
    same bits.

    Args:
        x: feature map ``(N, ...)``, float32, bfloat16 or float16; contiguous or channels-last as it is, any other
            memory order is copied. A tensor, or a NumPy or CuPy array.
        rate: share of the elements that is dropped, in ``[0, 1)``; rounded to a multiple of 2^-16, at most 1 - 2^-16.
        seed: in ``[0, 2**64)``; a number, or an int64 tensor of one element on the device of ``x``.
        ids: ``(N,)`` int64, one per image, on the device of ``x``.
        tick: in ``[0, 2**20)``; a number, or an int64 tensor of one element or ``(N,)``, one per image. The values of
            tensors are not looked at: a captured CUDA graph reads them at each replay. They must not change between
            a forward pass and its backward pass, which raises then.
        layer: in ``[0, 2**12)``, another one for every place of the network.
        rescale: multiply what is kept by ``1 / (1 - rate)``, rounded to float32; products are rounded once.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        A new map like ``x``: channels-last where ``x`` is, else contiguous.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Zhong and Deng 2020, "Towards transferable adversarial attack against deep face recognition", eq. 12; Salmon et
        al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2: seven rounds are Crush-resistant.
    """
    return foreign.give_back(_op.call(x, seed, ids, tick, layer, rate, rescale, backend), x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ids, seed_at, seed, tick_each, tick, *rest = inputs
    ctx.save_for_backward(ids, seed_at, tick_each)
    ctx.numbers = (seed, tick, rest)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    ids, seed_at, tick_each = ctx.saved_tensors
    seed, tick, rest = ctx.numbers
    return (_op.dispatch(grad, ids, seed_at, seed, tick_each, tick, *rest),)


_op = Op(
    "feature_dropout",
    feature_map("x", "(N, ...)", least=1),
    result(code_of="x"),
    key(lent=True),
    mask_rate(),
    make=layout.empty,
    sizes=BATCH_SIZES,
    setup=_setup,
    backward=_backward,
)
