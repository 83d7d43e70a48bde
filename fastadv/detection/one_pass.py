"""A model and the score of its layers as one forward pass, which a guard calls and an exporter writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.detection.taps import EMBEDDING, submodules
from fastadv.detection.trajectory import Trajectory
from fastadv.models import FaceModel

_LEAST_NORM = 1e-12  # of torch.nn.functional.normalize, whose norm is wanted here too

#: Unit embeddings, logits if the model has a head, scores, which images are flagged, and the features' norms.
Outputs = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]

#: Scores ``(N,)`` of the tapped layers' maps, of the images and of the classes that they claim to show, -1 for none;
#: and which are flagged.
Score = Callable[[list[Tensor], Tensor, Tensor | None], tuple[Tensor, Tensor]]


class OnePass(nn.Module):
    """A model whose layers are tapped for good, and the score of what they gave.

    Args:
        model: its layers are tapped for good: a copy of its own.
        trajectory: names the layers, and the classes of the model's head; on the model's device.
        score: makes ``(N,)`` scores, and flags, of the layers' maps, of the images and of the classes that they claim
            to show.
        pool: makes ``(N, C, 1, 1)`` means of a map ``(N, C, H, W)``.
        early: the size from which on a layer's output is pooled at once; None for never.
        hooks: whether layers are tapped by hooks alone, which copies and exporters of modules follow; else by their
            ``forward`` where that sees the same: PyTorch calls a module without hooks on a shorter way.
    """

    def __init__(
        self,
        model: FaceModel,
        trajectory: Trajectory,
        score: Score,
        *,
        pool: Callable[[Tensor], Tensor],
        early: int | None,
        hooks: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.score = score
        self.pool = pool
        self.early = early
        layers = trajectory.representatives.layers
        self._own_of = trajectory.own_of
        self._layers = layers
        self._caught = threading.local()
        for name in submodules(layers):
            module, place = model.backbone.get_submodule(name), layers.index(name)
            if hooks or module._forward_hooks or isinstance(module, torch.jit.ScriptModule):
                module.register_forward_hook(partial(self._catch, place))
            else:
                module.forward = self._catching(place, module.forward)

    def forward(self, images: Tensor, own: Tensor | None = None) -> Outputs:
        """Embeddings, logits, scores, flags, norms of ``(N, 3, H, W)`` images in [0, 1] with ``(N,)`` claims."""
        values: list[Tensor] = [images] * len(self._layers)
        self._caught.values = values
        try:
            features = self.model.features(images)
        finally:
            self._caught.values = []
        norms = features.norm(dim=1, keepdim=True)
        embeddings = features / norms.clamp_min(_LEAST_NORM)
        if EMBEDDING in self._layers:
            values[self._layers.index(EMBEDDING)] = embeddings[:, :, None, None]
        logits = None if self.model.head is None else self.model.head(features)
        chosen = None if logits is None else self._own_of(logits.argmax(1))
        if own is not None and chosen is not None:
            chosen = torch.where(own < 0, chosen, own)
        scores, flagged = self.score(values, images, own if chosen is None else chosen)
        return embeddings, logits, scores, flagged, norms[:, 0]

    def _catching(self, place: int, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def caught(*args: Any, **named: Any) -> Tensor:
            output = forward(*args, **named)
            self._catch(place, None, None, output)
            return output

        return caught

    def _catch(self, place: int, module: Any, inputs: Any, output: Tensor) -> None:
        value = output if output.dim() == 4 else output[:, :, None, None]
        self._caught.values[place] = value if self.early is None or value.numel() < self.early else self.pool(value)


def with_flags(scores: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Scores, and which are flagged: written so that one that is no number is."""
    return scores, ~(scores < threshold)


def only_of_finite(scores: Tensor, images: Tensor) -> Tensor:
    """The scores, NaN for an image that is not finite: a runtime's own tanh may make a number of NaN."""
    return torch.where(images.sum((1, 2, 3)).isfinite(), scores, torch.nan)
