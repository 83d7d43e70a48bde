"""What the random draws of one evaluation hang on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepKey:
    """The key of every random draw of one evaluation, image by image.

    Together with a Philox layer it fixes a draw, so an image meets the same numbers in any slot, with any neighbours
    and after any restart. Layer 0 is the random start's, 1 to 3999 are feature masks, the rest are input diversity's.

    Attributes:
        seed: The run's, in [0, 2**64).
        ids: ``(N,)`` int64, the number that keys each image.
        ticks: ``(N,)`` int64, the evaluations that each image has consumed.
    """

    seed: int
    ids: Tensor
    ticks: Tensor
