"""The mean of the channels in front of a network: what an attack on a grey picture moves through."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastadv.attacks import Recipe
from fastadv.defences.compose import Wraps
from fastadv.surrogates import Ensemble
from fastadv.surrogates.key import StepKey


@dataclass(frozen=True, kw_only=True)
class Grey(Wraps):
    r"""Replace each channel by the mean of the three.

    .. math:: y_c = \frac{1}{3} (x_1 + x_2 + x_3)

    A grey image stays what it is (up to rounding), and the gradient through the mean is the same in all channels: an
    attack without a random start that begins at a grey image ends at one.
    """

    @property
    def name(self) -> str:
        """``"grey"``."""
        return "grey"

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The grey images."""
        last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        return images.mean(1, keepdim=True).expand_as(images).contiguous(memory_format=layout)


def in_grey(moves: Recipe) -> Recipe:
    """The recipe with the further networks of its surrogate behind ``Grey`` too."""
    ensemble = moves.surrogate.ensemble
    if ensemble is None:
        return moves
    others = tuple(Grey().wrap(model) for model in ensemble.others)
    return replace(
        moves, surrogate=replace(moves.surrogate, ensemble=Ensemble(others=others, weights=ensemble.weights))
    )
