"""Feature dropout: a fresh Bernoulli mask on a feature map, of which nothing is stored."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks, foreign, layout, random_key
from fastadv.ops._define import define_op
from fastadv.ops.reference import feature_dropout as reference

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
    value, key = borrowed(x, seed, ids, tick, layer)
    made = _op(value, *key, *threshold_and_factor(rate, rescale), backend or "auto")
    return foreign.give_back(made, x)


def borrowed(x: Any, seed: Any, ids: Any, tick: Any, layer: int) -> tuple[Tensor, random_key.Split]:
    """The feature map as a tensor and the checked key."""
    value = foreign.borrow("x", x, written=False)
    if not checks.is_tensor(value):
        raise ArgumentTypeError(f"x is a {type(x).__name__}; expected a torch.Tensor or a NumPy or CuPy array")
    checks.strided("x", value)
    if value.dtype not in checks.GRAD_TYPES:
        raise ArgumentTypeError(f"x has dtype {value.dtype}; expected torch.float32, torch.bfloat16 or torch.float16")
    if value.dim() < 1:
        raise ArgumentError("x has shape (); expected a batch (N, ...)")
    lent = {"seed": seed, "ids": ids, "tick": tick}
    seed, ids, tick = (foreign.borrow(name, part, written=False) for name, part in lent.items())
    return value, random_key.for_batch(value, seed, ids, tick, layer)


def threshold_and_factor(rate: float, rescale: bool) -> tuple[int, float]:
    """Below which draw an element is dropped, and what a kept one is multiplied by."""
    if not 0 <= rate < 1:
        raise ArgumentError(f"rate is {brief(rate)}; expected a number in [0, 1)")
    threshold = min(round(rate * 2**16), 2**16 - 1)
    return threshold, float(np.float32(1 / (1 - rate))) if rescale else 1.0


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return layout.empty(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ids, seed_at, seed, tick_each, tick, *rest = inputs
    ctx.save_for_backward(ids, seed_at, tick_each)
    ctx.numbers = (seed, tick, rest)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    ids, seed_at, tick_each = ctx.saved_tensors
    seed, tick, rest = ctx.numbers
    return (_op(grad, ids, seed_at, seed, tick_each, tick, *rest),)


def _reference(x: Tensor, *rest: Any) -> Tensor:
    return layout.empty(x).copy_(reference.feature_dropout(x, *random_key.whole(*rest[:6]), *rest[6:]))


def _native_call(function: str, x: Tensor, rest: tuple[Any, ...], where: tuple[int, int]) -> Tensor:
    x = layout.readable(x)
    out = layout.empty(x)
    key, keep = random_key.native(*rest[:6])
    if x.numel():
        call = getattr(_native.module(), function)
        pointers = (x.data_ptr(), out.data_ptr(), checks.GRAD_TYPES[x.dtype])
        call(*pointers, *key, *rest[6:], *layout.sizes(x), *where)
    del keep
    return out


def _cpu(x: Tensor, *rest: Any) -> Tensor:
    return _native_call("cpu_feature_dropout", x, rest, (torch.get_num_threads(), backends.cpu_isa()))


def _cuda(x: Tensor, *rest: Any) -> Tensor:
    with torch.cuda.device(x.device):
        where = (x.device.index, torch.cuda.current_stream().cuda_stream)
        return _native_call("cuda_feature_dropout", x, rest, where)


def _triton(x: Tensor, *rest: Any) -> Tensor:
    kernel = importlib.import_module("fastadv.kernels.triton.feature_dropout")
    x = layout.readable(x)
    out = layout.empty(x)
    if x.numel():
        key = random_key.for_triton(*rest[:6])
        kernel.launch(x, out, layout.sizes(x), key, *rest[6:])
    return out


_op = define_op(
    f"feature_dropout(Tensor x, {random_key.SCHEMA}, int threshold, float factor, str backend) -> Tensor",
    {"reference": _reference, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
