"""Philox4x32 and what is drawn from it, in plain PyTorch: the specification of every random operation.

The key is the 64-bit seed; the counter is ``(element // 4, layer * 2**20 + tick, id_lo, id_hi)`` and
``element % 4`` picks the word.

Source:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TICKS = 1 << 20

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
#: Numbers take the ten rounds that the authors recommend, a mask the seven that they call Crush-resistant.
NUMBER_ROUNDS = 10
MASK_ROUNDS = 7


def block(
    counter: tuple[Tensor, Tensor, Tensor, Tensor],
    key: tuple[int | Tensor, int | Tensor],
    rounds: int = NUMBER_ROUNDS,
) -> tuple[Tensor, ...]:
    """Philox4x32 of that many rounds.

    Args:
        counter: four int64 tensors that broadcast, each word in ``[0, 2**32)``.
        key: two words in ``[0, 2**32)``.
        rounds: 10 for numbers, 7 for the masks of feature dropout.

    Returns:
        Four int64 tensors, the words of the result.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
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


def words(
    seed: int | Tensor, ids: Tensor, tick: int | Tensor, layer: int, count: int, rounds: int = NUMBER_ROUNDS
) -> Tensor:
    """``(N, count)`` int64 in ``[0, 2**32)``; see :func:`fastadv.ops.philox.words`, which checks."""
    blocks = torch.arange(-(-count // 4), dtype=torch.int64, device=ids.device)
    column = ids[:, None]
    second = tick.reshape(-1, 1) if isinstance(tick, Tensor) else torch.full_like(column, tick)
    second = (second + layer * TICKS) & _LOW
    seed = seed.reshape(()) if isinstance(seed, Tensor) else seed
    counter = (blocks[None], second, column & _LOW, (column >> 32) & _LOW)
    made = block(counter, (seed & _LOW, (seed >> 32) & _LOW), rounds)
    shape = (ids.shape[0], blocks.shape[0])
    return torch.stack([word.expand(shape) for word in made], dim=-1).reshape(ids.shape[0], -1)[:, :count]


def uniform(bits: Tensor) -> Tensor:
    """float32 in [0, 1) from the upper 24 bits of each word."""
    return (bits >> 8).to(torch.float32) * 2.0**-24


def normal(bits: Tensor) -> Tensor:
    """Standard normal float32 ``(N, count)``, by Box and Muller from the words ``(N, count)``; count is even."""
    pairs = bits.view(bits.shape[0], -1, 2)
    u = ((pairs[..., 0] >> 8) + 1).double() * 2.0**-24
    angle = (pairs[..., 1] >> 8).double() * (2.0**-24 * 2.0 * math.pi)
    radius = torch.sqrt(-2.0 * torch.log(u))
    values = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return values.view(bits.shape[0], -1).float()
