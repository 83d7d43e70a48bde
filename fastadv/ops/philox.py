"""Random numbers that depend on (seed, image, tick, layer, element) only: Philox4x32-10.

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

TICKS = 1 << 20  #: ticks a layer has before it would run into the next one
LAYERS = 1 << 12

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def block(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors that broadcast, each word in ``[0, 2**32)``.
        key: two words in ``[0, 2**32)``.

    Returns:
        Four int64 tensors, the words of the result.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # 32 x 32 bits wrap around in int64, which keeps the bits; the mask undoes the sign of the shift.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def words(seed: int, ids: Tensor, tick: int | Tensor, layer: int, count: int) -> Tensor:
    """Raw 32-bit words.

    Args:
        seed: in ``[0, 2**64)``.
        ids: ``(N,)`` int64, one per image.
        tick: in ``[0, 2**20)``; a number, or an int64 tensor ``(N,)`` where images are at different ticks
            (its values are not looked at, so that nothing waits for the device).
        layer: in ``[0, 2**12)``: separates independent draws of one tick.
        count: words per image, at most ``2**34``.

    Returns:
        ``(N, count)`` int64, each in ``[0, 2**32)``, on the device of ``ids``.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """
    stream = _stream(seed, ids, tick, layer, count)
    blocks = torch.arange(-(-count // 4), dtype=torch.int64, device=ids.device)
    column = ids[:, None]
    second = stream[:, None] if isinstance(stream, Tensor) else torch.full_like(column, stream)
    made = block((blocks[None], second, column & _LOW, (column >> 32) & _LOW), (seed & _LOW, seed >> 32))
    shape = (ids.shape[0], blocks.shape[0])
    return torch.stack([word.expand(shape) for word in made], dim=-1).reshape(ids.shape[0], -1)[:, :count]


def uniform(
    seed: int,
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
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run. Both give the same bits.

    Returns:
        ``(N, *shape)`` float32, contiguous, on the device of ``ids``.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
        BackendUnavailable: ``backend="cpu"`` cannot run here.
    """
    size = math.prod(shape)
    if not _use_native(ids, backend):
        bits = words(seed, ids, tick, layer, size)
        return ((bits >> 8).to(torch.float32) * 2.0**-24).view(-1, *shape) if size else _empty(ids, shape)
    stream = _stream(seed, ids, tick, layer, size)
    out = _empty(ids, shape)
    rows = ids.contiguous()
    each = stream.contiguous() if isinstance(stream, Tensor) else None
    if out.numel():
        _native.module().cpu_philox_uniform(
            *(out.data_ptr(), rows.data_ptr(), seed, 0 if each is None else each.data_ptr()),
            *(stream if isinstance(stream, int) else 0, rows.shape[0], size),
            *(torch.get_num_threads(), backends.cpu_isa()),
        )
    return out


def normal(seed: int, ids: Tensor, tick: int | Tensor, layer: int, shape: tuple[int, ...]) -> Tensor:
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
    if size == 0:
        return _empty(ids, shape)
    pairs = words(seed, ids, tick, layer, size + size % 2).view(ids.shape[0], -1, 2)
    u = ((pairs[..., 0] >> 8) + 1).double() * 2.0**-24
    angle = (pairs[..., 1] >> 8).double() * (2.0**-24 * 2.0 * math.pi)
    radius = torch.sqrt(-2.0 * torch.log(u))
    values = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return values.view(ids.shape[0], -1)[:, :size].float().reshape(-1, *shape)


def _stream(seed: int, ids: Tensor, tick: int | Tensor, layer: int, count: int) -> int | Tensor:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; expected an integer in [0, 2**64)")
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
        came = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"ids is {came}; expected an int64 tensor (N,)")
    if not 0 <= layer < LAYERS:
        raise ValueError(f"layer is {layer}; expected an integer in [0, {LAYERS})")
    if not 0 <= count <= 1 << 34:
        raise ValueError(f"{count} numbers per image were asked for; expected at most 2**34")
    if isinstance(tick, Tensor):
        if tick.dtype != torch.int64 or tick.shape != ids.shape or tick.device != ids.device:
            raise TypeError(
                f"tick is {tick.dtype} {tuple(tick.shape)} on {tick.device}; "
                f"expected an int64 tensor {tuple(ids.shape)} on {ids.device}, like ids"
            )
        return tick + layer * TICKS
    if not 0 <= tick < TICKS:
        raise ValueError(f"tick is {tick}; expected an integer in [0, {TICKS})")
    return layer * TICKS + tick


def _use_native(ids: Tensor, backend: str | None) -> bool:
    if backend not in (None, "auto", "reference", "cpu"):
        raise ValueError(f"backend is {backend!r}; expected 'reference', 'cpu' or None")
    possible = isinstance(ids, Tensor) and ids.device.type == "cpu" and _native.has("cpu_philox_uniform")
    if backend == "cpu" and not possible:
        raise backends.BackendUnavailable(
            f"philox.uniform: backend 'cpu' cannot run: {_native.PROBLEM or 'it takes CPU tensors'}"
        )
    # A compiled graph traces the tensor form; both are the same bits.
    return possible and backend != "reference" and not torch.compiler.is_compiling()


def _empty(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty((ids.shape[0], *shape), dtype=torch.float32, device=ids.device)
