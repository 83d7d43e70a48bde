"""Random numbers that depend on (seed, image, tick, layer, element) only: Philox4x32.

The key is the 64-bit seed; the counter is ``(element // 4, layer * 2**20 + tick, id_lo, id_hi)`` and
``element % 4`` picks the word. So an image draws the same numbers in any slot, with any neighbours, after any
restart.

Source:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.ops import native_only, random_key
from fastadv.ops.add_noise import add_noise_
from fastadv.ops.random_key import LAYERS, TICKS
from fastadv.ops.reference import philox as reference
from fastadv.ops.reference.philox import MASK_ROUNDS, NUMBER_ROUNDS, block

__all__ = ["LAYERS", "MASK_ROUNDS", "NUMBER_ROUNDS", "TICKS", "block", "normal", "uniform", "words"]


def words(
    seed: int | Tensor, ids: Tensor, tick: int | Tensor, layer: int, count: int, *, rounds: int = NUMBER_ROUNDS
) -> Tensor:
    """Raw 32-bit words.

    Args:
        seed: in ``[0, 2**64)``; a number, or an int64 tensor of one element on the device of ``ids``.
        ids: ``(N,)`` int64, one per image.
        tick: in ``[0, 2**20)``; a number, or an int64 tensor of one element, or ``(N,)`` where images are at
            different ticks. The values of a tensor are not looked at, so that nothing waits for the device.
        layer: in ``[0, 2**12)``: separates independent draws of one tick.
        count: words per image, at most ``2**34``.
        rounds: of Philox: 10 for the numbers of every other function, 7 for the masks of feature dropout.

    Returns:
        ``(N, count)`` int64, each in ``[0, 2**32)``, on the device of ``ids``.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """
    random_key.check(seed, ids, tick, layer, count)
    if rounds not in (MASK_ROUNDS, NUMBER_ROUNDS):
        raise ArgumentError(f"rounds: expected {MASK_ROUNDS} or {NUMBER_ROUNDS}, got {brief(rounds)}")
    return reference.words(seed, ids, tick, layer, count, rounds)


def uniform(
    seed: int | Tensor,
    ids: Tensor,
    tick: int | Tensor,
    layer: int,
    shape: tuple[int, ...],
    *,
    backend: str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1): multiples of 2**-24, from the upper 24 bits of each word.

    Args:
        seed: see :func:`words`; likewise ``ids``, ``tick`` and ``layer``.
        shape: of one image; elements are numbered in logical (C, H, W) order, whatever the memory order.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run: on a GPU that is ``add_noise_``. All
            give the same bits.

    Returns:
        ``(N, *shape)`` float32, contiguous, on the device of ``ids``.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
        BackendUnavailable: ``backend="cpu"`` cannot run here.
    """
    size = math.prod(shape)
    given = [part for part in (ids, seed, tick) if isinstance(part, Tensor)]
    native = native_only.chosen("cpu_philox_uniform", "philox.uniform", given, backend)
    random_key.check(seed, ids, tick, layer, size)
    if size == 0:
        return _empty(ids, shape)
    if not native:
        if ids.is_cuda and backend != "reference" and not torch.compiler.is_compiling() and size < 1 << 32:
            # 1/2 + (2u - 1) / 2 is u without rounding: one kernel, where the tensor form starts about 150
            half = _empty(ids, (size,)).fill_(0.5)
            return add_noise_(half, scale=0.5, seed=seed, ids=ids, tick=tick, layer=layer).view(-1, *shape)
        return reference.uniform(reference.words(seed, ids, tick, layer, size)).view(-1, *shape)
    out = _empty(ids, shape)
    if out.numel():
        key = random_key.BatchKey(seed, ids, tick)
        _native.module().cpu_philox_uniform(out.data_ptr(), *key.numbers, layer, len(ids), size, *backends.on_cpu())
    return out


def normal(seed: int | Tensor, ids: Tensor, tick: int | Tensor, layer: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers by Box and Muller, two from each pair of words.

    Elements 2k and 2k + 1 are ``sqrt(-2 ln u) cos(2 pi v)`` and ``... sin(2 pi v)`` with ``u`` in (0, 1] and
    ``v`` in [0, 1) from words 2k and 2k + 1; computed in float64 and rounded once, so that devices agree but
    for rare ties.

    Args:
        seed: see :func:`words`; likewise ``ids``, ``tick`` and ``layer``.
        shape: of one image.

    Returns:
        ``(N, *shape)`` float32 on the device of ``ids``.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.

    Source:
        Box and Muller 1958, "A note on the generation of random normal deviates".
    """
    size = math.prod(shape)
    random_key.check(seed, ids, tick, layer, size)
    if size == 0:
        return _empty(ids, shape)
    return reference.normal(reference.words(seed, ids, tick, layer, size + size % 2))[:, :size].reshape(-1, *shape)


def _empty(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty((ids.shape[0], *shape), dtype=torch.float32, device=ids.device)
