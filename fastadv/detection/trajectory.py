"""The way of an image through the layers, told by its distances to the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastadv import ops
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_one_of
from fastadv.detection.representatives import Representatives, check_names
from fastadv.ops import checks
from fastadv.ops.layers import DISTANCES, READING, check_distances
from fastadv.ops.prepared_score import READINGS


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    r"""Distances of an image to the representatives of the classes, layer by layer, and what is read of them.

    .. math:: d_{n,l,k} = d(p_{l,n}, r_{l,k})

    with the pooled output p of layer l and the representative r of class k there. The reading ``raw`` (Massoli et al.)
    is d itself, ``(N, L, K)``: one number for each class, in the order of the classes. The reading ``relative`` (ours)
    is ``(N, L, 5)``: with the own class o of image n,

    .. math::
        d_o, \quad m = \min_{k \ne o} d_k, \quad \frac{d_o}{d_o + m}, \quad
        \frac{|\{k \ne o: d_k < d_o\}|}{K - 1}, \quad d_o - \frac{1}{K - 1} \sum_{k \ne o} d_k

    in every layer (the ratio is 1/2 where d_o and m are both 0). It does not depend on the order of the classes, and
    its width not on their number: a network that reads it works with other people's representatives. The own class
    should be what the recogniser decides or is asked to confirm: the class that its head chooses (:meth:`own_of`) or
    the claimed identity. An attack that crosses the head's border leaves the image nearer to its former class, which
    the class nearest in the last layer, taken where there is neither, does not show.

    With the metric ``l2+cosine`` a layer has the numbers by both distances, side by side: those by L2 first.

    Differentiable in the values (the rank has the derivative 0), and with :class:`fastadv.detection.LayerTap` in the
    image: an attack can see through it. Capturable in a CUDA graph.

    Attributes:
        representatives: centroids or medoids; of two classes or more for ``relative``.
        metric: ``"l2"``, ``"cosine"`` (1 - cos), or ``"l2+cosine"``.
        reading: ``"raw"`` or ``"relative"``.
        head: who each logit of the model's class head is, or None; only with ``relative``.
        backend: of the operation.

    Raises:
        TypeError, ValueError: a field is of the wrong type or value.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4 (``raw``).
    """

    representatives: Representatives
    metric: str = "l2"
    reading: str = "raw"
    head: tuple[str, ...] | None = None
    backend: str | None = None
    _places: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.representatives, Representatives):
            raise ArgumentTypeError(
                f"representatives: expected Representatives, got {type(self.representatives).__name__}"
            )
        check_distances(self.metric)
        check_one_of("reading", self.reading, READINGS)
        if self.relative and len(self.representatives.classes) < 2:
            raise ArgumentError("representatives: expected two classes or more with the reading 'relative', got one")
        if self.head is not None and not self.relative:
            raise ArgumentError(f"head: expected None with the reading 'raw', got {len(self.head)} names")
        object.__setattr__(self, "_places", None if self.head is None else self._placed(check_names("head", self.head)))

    @property
    def relative(self) -> bool:
        """Whether the reading is ``relative``."""
        return self.reading == "relative"

    @property
    def shape(self) -> tuple[int, int]:
        """L layers, and K classes or the 5 columns of ``relative`` by each of :attr:`metrics`."""
        representatives = self.representatives
        width = len(READING if self.relative else representatives.classes)
        return len(representatives.layers), len(self.metrics) * width

    @property
    def metrics(self) -> tuple[str, ...]:
        """The distances that are read: one, or two of ``l2+cosine``."""
        return DISTANCES[self.metric]

    def __call__(self, values: Sequence[Tensor], own: Tensor | None = None) -> Tensor:
        """Embed images.

        Args:
            values: one for each layer of the representatives, in their order: pooled ``(N, C_l)`` float32, or maps
                ``(N, C_l, H_l, W_l)``, which are pooled here, in the same launch.
            own: ``(N,)`` int64, the class of each image, only with ``relative``. In place of -1, and of None: the class
                nearest in the last layer by each of :attr:`metrics`, the first of equally near ones.

        Returns:
            ``(N, L, K)`` or ``(N, L, 5)`` float32, twice as wide with two :attr:`metrics`.

        Raises:
            TypeError, ValueError: the values do not fit the representatives, or ``own`` does not fit the reading.
        """
        maps = bool(values) and isinstance(values[0], Tensor) and values[0].dim() == 4
        if not self.relative and own is not None:
            raise ArgumentError("own: expected None with the reading 'raw', which knows no own class, got classes")
        if maps and len(self.metrics) > 1:  # once for both
            values, maps = ops.average_pool(values, backend=self.backend), False
        read = [self._read(values, own, metric, maps=maps) for metric in self.metrics]
        return torch.cat(read, dim=2) if len(read) > 1 else read[0]

    def _read(self, values: Sequence[Tensor], own: Tensor | None, metric: str, *, maps: bool) -> Tensor:
        vectors = self.representatives.vectors
        if self.relative:
            own = None if own is None else self._filled(values, own, metric)
            relative = ops.pooled_relative_distances if maps else ops.relative_distances
            return relative(values, vectors, own, metric=metric, backend=self.backend)
        measure = ops.pooled_centroid_distances if maps else ops.centroid_distances
        return measure(values, vectors, metric=metric, backend=self.backend)

    def own_of(self, predicted: Tensor) -> Tensor | None:
        """The classes ``(N,)`` int64 of images whose largest logits are these, ``(N,)`` int64; None without a ``head``.

        -1 for somebody who is none of the classes.
        """
        return None if self._places is None else self._places[predicted]

    def filled(self, values: Sequence[Tensor], own: Tensor) -> Tensor:
        """``own`` with the class nearest in the last layer in place of -1; ``(2, N)`` with two :attr:`metrics`."""
        made = [self._filled(values, own, metric) for metric in self.metrics]
        return torch.stack(made) if len(made) > 1 else made[0]

    @torch.no_grad()
    def _filled(self, values: Sequence[Tensor], own: Tensor, metric: str) -> Tensor:
        checks.per_image("own", own, values[0], torch.int64)
        if own.is_cpu and bool((own >= 0).all()):  # on a GPU looking would wait for it
            return own
        measure = ops.pooled_centroid_distances if values[-1].dim() == 4 else ops.centroid_distances
        vectors = self.representatives.vectors[-1:]
        distances = measure(values[-1:], vectors, metric=metric, backend=self.backend)
        return torch.where(own < 0, distances[:, 0].argmin(1), own)

    def _placed(self, head: Sequence[str]) -> Tensor:
        place = {name: k for k, name in enumerate(self.representatives.classes)}
        device = self.representatives.vectors[0].device
        return torch.tensor([place.get(name, -1) for name in head], device=device)

    def to(self, device: torch.device | str) -> Trajectory:
        """The same on another device."""
        return replace(self, representatives=self.representatives.to(device))
