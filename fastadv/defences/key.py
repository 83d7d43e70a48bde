"""What a random defence draws its numbers from: the image itself, and the defender's seed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.surrogates.key import StepKey

_GRAIN = 255 * 256  # far finer than a grey level, far coarser than float32
_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed number
_MIX = -4658895280553007687  # 0xBF58476D1CE4E5B9
_POSITIVE = (1 << 63) - 1


def content_ids(images: Tensor) -> Tensor:
    r"""A number for each image that depends on its pixels only: the same in any slot, batch, layout and run.

    With the levels :math:`v_i = \mathrm{round}(65280\,x_i)` in logical order and fixed odd words :math:`w_i`, it is
    :math:`\sum_i v_i w_i \bmod 2^{64}`, mixed once and cut to 63 bits. Integer sums have no order, and nothing waits
    for the device.

    Args:
        images: ``(N, ...)`` floating point; differences below 1/130560 are not seen.

    Returns:
        ``(N,)`` int64 in [0, 2**63), on the device of the images.
    """
    levels = (images.detach().flatten(1).double() * _GRAIN).round().long()
    words = torch.arange(1, levels.shape[1] + 1, device=images.device) * _GOLDEN
    words = ((words ^ (words >> 29)) * _MIX) | 1
    total = (levels * words).sum(1)
    total = (total ^ ((total >> 30) & _POSITIVE)) * _MIX
    return (total ^ ((total >> 27) & _POSITIVE)) & _POSITIVE


def content_key(images: Tensor, seed: int) -> StepKey:
    """The key of a defence's draws for these images, at draw 0.

    Args:
        images: ``(N, C, H, W)`` as the defence receives them.
        seed: The defender's secret, in [0, 2**64).
    """
    ids = content_ids(images)
    return StepKey(seed=seed, ids=ids, ticks=torch.zeros_like(ids))
