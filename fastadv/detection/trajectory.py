"""The way of an image through the layers, told by its distances to the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv import ops
from fastadv.core.errors import ArgumentTypeError
from fastadv.detection.representatives import Representatives
from fastadv.ops.layers import check_metric


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    r"""Distances of an image to the representative of every class, layer by layer.

    .. math:: t_{n,l,k} = d(p_{l,n}, r_{l,k})

    with the pooled output p of layer l and the representative r of class k there. Differentiable in the values, and
    with :class:`fastadv.detection.LayerTap` in the image: an attack can see through it. Capturable in a CUDA graph.

    Attributes:
        representatives: centroids or medoids.
        metric: ``"l2"`` or ``"cosine"`` (1 - cos).
        backend: of the operation.

    Raises:
        TypeError, ValueError: a field is of the wrong type or value.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """

    representatives: Representatives
    metric: str = "l2"
    backend: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.representatives, Representatives):
            raise ArgumentTypeError(
                f"representatives: expected Representatives, got {type(self.representatives).__name__}"
            )
        check_metric(self.metric)

    @property
    def shape(self) -> tuple[int, int]:
        """L layers and K classes."""
        return len(self.representatives.layers), len(self.representatives.classes)

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """Embed images.

        Args:
            values: one for each layer of the representatives, in their order: pooled ``(N, C_l)`` float32, or maps
                ``(N, C_l, H_l, W_l)``, which are pooled here, in the same launch.

        Returns:
            ``(N, L, K)`` float32.

        Raises:
            TypeError, ValueError: the values do not fit the representatives.
        """
        maps = bool(values) and isinstance(values[0], Tensor) and values[0].dim() == 4
        measure = ops.pooled_centroid_distances if maps else ops.centroid_distances
        return measure(values, self.representatives.vectors, metric=self.metric, backend=self.backend)

    def to(self, device: torch.device | str) -> Trajectory:
        """The same on another device."""
        return Trajectory(representatives=self.representatives.to(device), metric=self.metric, backend=self.backend)
