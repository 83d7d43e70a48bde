"""What a random operation draws its numbers from: (seed, image ids, tick, layer), checked and taken apart.

Seed and ticks may be tensors on the device of the images: a captured CUDA graph reads them at every replay.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks

TICKS = 1 << 20  #: ticks a layer has before it would run into the next one
LAYERS = 1 << 12
MOST = 1 << 34  #: numbers per image, four for each value of a 32-bit counter

#: The arguments of a schema that :func:`split` fills.
SCHEMA = "Tensor ids, Tensor? seed_at, SymInt seed, Tensor? tick_each, SymInt tick, int layer"

Split = tuple[Tensor | None, Tensor | None, int, Tensor | None, int, int]

#: The key of what draws nothing, taken apart.
NO_KEY: Split = (None, None, 0, None, 0, 0)


def check(seed: int | Tensor, ids: Tensor, tick: int | Tensor, layer: int, count: int) -> None:
    """Raise TypeError or ValueError where an argument of a random operation is wrong."""
    for name, value in (("ids", ids), ("seed", seed), ("tick", tick)):
        if isinstance(value, Tensor):
            checks.strided(name, value)
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
        came = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ArgumentTypeError(f"ids: expected an int64 tensor (N,), got {came}")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != ids.device:
            raise ArgumentTypeError(
                f"seed: expected an int64 tensor of one element on {ids.device}, like ids, got {seed.dtype} "
                f"{tuple(seed.shape)} on {seed.device}"
            )
    elif not 0 <= seed < 1 << 64:
        raise ArgumentError(f"seed: expected an integer in [0, 2**64), got {seed}")
    check_layer(layer)
    check_count(count)
    if isinstance(tick, Tensor):
        shapes = ((), (1,), tuple(ids.shape))
        if tick.dtype != torch.int64 or tuple(tick.shape) not in shapes or tick.device != ids.device:
            raise ArgumentTypeError(
                f"tick: expected an int64 tensor {tuple(ids.shape)} or of one element on {ids.device}, like ids, "
                f"got {tick.dtype} {tuple(tick.shape)} on {tick.device}"
            )
    elif not 0 <= tick < TICKS:
        raise ArgumentError(f"tick: expected an integer in [0, {TICKS}), got {tick}")


def check_layer(layer: int) -> None:
    """Raise ValueError unless ``layer`` is in range."""
    if not 0 <= layer < LAYERS:
        raise ArgumentError(f"layer: expected an integer in [0, {LAYERS}), got {layer}")


def check_count(count: int) -> None:
    """Raise ValueError where an image needs more numbers than a counter reaches."""
    if not 0 <= count <= MOST:
        raise ArgumentError(f"count: expected at most 2**34 numbers for an image, got {count}")


def for_batch(x: Tensor, seed: int | Tensor, ids: Tensor, tick: int | Tensor, layer: int) -> Split:
    """Check the key against the batch ``x`` ``(N, ...)`` and take it apart for a schema."""
    if isinstance(ids, Tensor):
        checks.strided("ids", ids)
    if isinstance(ids, Tensor) and (ids.device != x.device or ids.shape != x.shape[:1]):
        raise ArgumentError(
            f"ids: expected shape {tuple(x.shape[:1])} on {x.device}, like x, got {tuple(ids.shape)} on {ids.device}"
        )
    return split(seed, ids, tick, layer, x.numel() // x.shape[0] if x.shape[0] else 0)


def split(seed: int | Tensor, ids: Tensor, tick: int | Tensor, layer: int, count: int) -> Split:
    """Check the key and take it apart: ``(ids, seed_at, seed, tick_each, tick, layer)``."""
    check(seed, ids, tick, layer, count)
    seed_at, seed = (seed, 0) if isinstance(seed, Tensor) else (None, seed)
    tick_each, tick = (tick, 0) if isinstance(tick, Tensor) else (None, tick)
    # A schema's integers have 64 bits and a sign; the bits are what counts.
    return ids, seed_at, seed - (1 << 64) if seed >= 1 << 63 else seed, tick_each, tick, layer


def whole(
    ids: Tensor | None, seed_at: Tensor | None, seed: int, tick_each: Tensor | None, tick: int, layer: int
) -> Any:
    """Put together again: ``(ids, seed, tick, layer)``, the arguments of the reference."""
    return ids, seed if seed_at is None else seed_at, tick if tick_each is None else tick_each, layer


def numbers(
    ids: Tensor | None, seed_at: Tensor | None, seed: int, tick_each: Tensor | None, tick: int, layer: int
) -> tuple[int, ...]:
    """The seven arguments of a compiled function; the tensors are contiguous, and must outlive the call."""
    seeds, ticks = checks.address(seed_at), checks.address(tick_each)
    return checks.address(ids), seeds, seed, ticks, tick, tick_step(tick_each), layer


class BatchKey:
    """The key of a batch, checked once for every layer that draws from it.

    Attributes:
        seed: see :func:`check`; likewise ``ids`` and ``tick``. Without ``ids`` nothing can be drawn.
        count: How many images; 0 without ``ids``.
        in_memory: Whether a compiled function can read its tensors where they lie.

    Raises:
        TypeError, ValueError: as :func:`check`.
    """

    def __init__(self, seed: int | Tensor = 0, ids: Tensor | None = None, tick: int | Tensor = 0) -> None:
        self._split = NO_KEY if ids is None else split(seed, ids, tick, 0, 0)
        self.seed, self.ids, self.tick, self.count = seed, ids, tick, 0 if ids is None else ids.shape[0]
        self._tensors = [part for part in (seed, ids, tick) if isinstance(part, Tensor)]
        self.in_memory = torch.compiler.is_compiling() or all(checks.has_memory(part) for part in self._tensors)

    def of_layer(self, layer: int) -> Split:
        """As a schema takes it."""
        return (*self._split[:5], layer)

    def versions(self) -> list[int]:
        """How often each of its tensors has been written."""
        return [part._version for part in self._tensors]

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """What a compiled function takes of it, all but the layer."""
        ids, seed_at, seed, tick_each, tick, layer = self._split
        self._kept = (checks.contiguous(ids), seed_at, seed, checks.contiguous(tick_each), tick, layer)
        return numbers(*self._kept)[:-1]


def tick_step(tick_each: Tensor | None) -> int:
    """1 where every image has its own tick, else 0."""
    return int(tick_each is not None and tick_each.numel() > 1)
