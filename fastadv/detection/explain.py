"""Which layers, and which numbers of each, made a detector's score."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv import ops
from fastadv.core.errors import ArgumentError
from fastadv.detection.detectors import Detector
from fastadv.detection.trajectory import Trajectory
from fastadv.ops.layers import READING

_STEPS = 512
_NUMBERS = 1 << 24  # of the points of the path


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The score of one image, shared out among what the detector's network reads.

    Attributes:
        score: The detector's logit.
        baseline: Its logit of the natural mean, where every number is the mean that the network standardises by.
        layers: Names, L.
        columns: What the network reads of each layer, W: the distances to the classes, by their names, or the five
            numbers of the reading ``relative``; with the metric where both are read, such as ``"ratio (cosine)"``.
        contributions: ``(L, W)`` float64; together they are ``score - baseline``, but for ``remainder``.
        own: The own class: the one that was given, or the nearest in the last layer; by L2 where the detector reads
            both distances, and the numbers by the cosine are then relative to the class nearest by that.
        others: For each layer, the nearest other class; by L2 where the detector reads both.
    """

    score: float
    baseline: float
    layers: tuple[str, ...]
    columns: tuple[str, ...]
    contributions: Tensor
    own: str
    others: tuple[str, ...]

    @property
    def by_layer(self) -> tuple[float, ...]:
        """The contribution of each layer."""
        return tuple(self.contributions.sum(1).tolist())

    @property
    def remainder(self) -> float:
        """What the finite number of steps leaves out."""
        return self.score - self.baseline - float(self.contributions.sum())

    def leading(self, count: int = 2) -> tuple[int, ...]:
        """Places of the columns with the largest contributions over all layers, of either sign, the largest first."""
        total = self.contributions.sum(0).abs()
        return tuple(total.sort(descending=True, stable=True).indices[:count].tolist())


def explain(detector: Detector, values: Sequence[Tensor], own: Tensor | None = None) -> Explanation:
    r"""Integrated gradients of the score, from the natural mean to the image.

    .. math:: a_{l,k} = (t_{l,k} - \mu_{l,k}) \int_0^1
              \frac{\partial f}{\partial t_{l,k}}\bigl(\mu + \alpha (t - \mu)\bigr)\, d\alpha

    with the detector's network f, the image's trajectory t and the mean :math:`\mu` that the network standardises by:
    of the natural examples it was fitted on, by default one for all numbers of a layer. They are complete:
    :math:`\sum a = f(t) - f(\mu)`. Setting one layer after another to its mean instead would count what two layers do
    together twice, or not at all. The integral is a midpoint sum of 512 steps in float64, of fewer where a trajectory
    has more than 32,768 numbers.

    Args:
        detector: Where its network does not standardise (``FitConfig.standard`` is ``"none"``), the mean is 0.
        values: Of its layers, as :class:`fastadv.detection.LayerTap` gives them: pooled, of one image.
        own: ``(1,)`` int64, its own class, as :meth:`Detector.score` takes it.

    Raises:
        TypeError, ValueError: The values do not fit, or are of several images.

    Source:
        Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks", equation 1.
    """
    trajectory, representatives = detector.trajectory, detector.trajectory.representatives
    with torch.no_grad():
        read = trajectory(values, own).cpu().double()
        distances = ops.centroid_distances(values, representatives.vectors, metric=trajectory.metrics[0]).cpu()
    if len(read) != 1:
        raise ArgumentError(f"values: expected those of one image, got {len(read)}")
    network = copy.deepcopy(detector.network).cpu().double().requires_grad_(False)
    change = read[0] - network.mean
    steps = max(1, min(_STEPS, _NUMBERS // change.numel()))
    share = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    points = (network.mean + share[:, None, None] * change).requires_grad_(True)
    (slopes,) = torch.autograd.grad(network(points).sum(), points)
    with torch.no_grad():
        score, baseline = network(torch.stack([read[0], network.mean])).tolist()
    names = representatives.classes
    chosen = -1 if own is None else int(own)
    chosen = int(distances[0, -1].argmin()) if chosen < 0 else chosen
    distances[:, :, chosen] = torch.inf
    return Explanation(
        score=score,
        baseline=baseline,
        layers=representatives.layers,
        columns=_columns(trajectory),
        contributions=change * slopes.mean(0),
        own=names[chosen],
        others=tuple(names[k] for k in distances[0].argmin(1).tolist()),
    )


def _columns(trajectory: Trajectory) -> tuple[str, ...]:
    one = READING if trajectory.relative else trajectory.representatives.classes
    if len(trajectory.metrics) == 1:
        return one
    return tuple(f"{column} ({metric})" for metric in trajectory.metrics for column in one)
