"""Distances to centroids, read relative to one class: five numbers of a layer whatever the number of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv.ops import foreign, layers
from fastadv.ops.arguments import result
from fastadv.ops.centroid_distances import distances as measure
from fastadv.ops.centroid_distances import gradient as gradient_of
from fastadv.ops.declaration import Op

Array = TypeVar("Array")
_ELEMENTS = 1 << 24  # distances of a block of classes in the backward pass


def relative_distances(
    features: Sequence[Array],
    centroids: Sequence[Any],
    own: Any = None,
    *,
    metric: str = "l2",
    backend: str | None = None,
) -> Array:
    r"""The own class among all classes, layer by layer, in five numbers; all layers in one call.

    With the distances d of :func:`centroid_distances`, the own class o of image n and
    :math:`m_{n,l} = \min_{k \ne o} d_{n,l,k}`:

    .. math:: \left(d_o,\quad m,\quad \frac{d_o}{d_o + m},\quad \frac{\#\{k \ne o : d_k < d_o\}}{K - 1},\quad
              d_o - \frac{1}{K - 1} \sum_{k \ne o} d_k\right)_{n,l}

    that is ``own``, ``nearest other``, ``ratio`` (1/2 where both are 0), ``rank`` and ``own minus mean``. The order of
    the classes and their number change no meaning of these. They are those of the float32 distances, rounded once:
    sums are float64, in an order that depends on K alone, and an image's numbers do not depend on its batch. Another
    order of the classes changes no bit of the first four, and at most the last bit of the mean. A distance that is NaN
    makes every number NaN but those of ``own`` and ``rank``, which are NaN where the own distance is.

    The distances are reduced where they are computed. Memory beside the result: 32 bytes for each image, layer and 64
    classes, 8 KiB at most for each image and layer.

    Differentiable in the features. The rank has derivative 0, and so has the choice of the own class; at distance 0
    the derivative is that of :func:`centroid_distances`, and that of the ratio is 0 where both distances are. The
    backward pass measures the distances again, and needs N L K numbers for at most 2^24 of them at a time.

    Args:
        features: one ``(N, C_l)`` float32 for each layer. Tensors, or NumPy or CuPy arrays.
        centroids: one ``(K, C_l)`` float32 for each layer, K >= 2.
        own: ``(N,)`` int64 in [0, K): the class that each image is compared with, predicted or claimed. None for the
            nearest one at the last layer, the lowest of several that are equally near.
        metric: ``"l2"`` or ``"cosine"``.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``(N, L, 5)`` float32.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value. On a GPU the values of ``own``
            are not looked at, since that would wait for it: a class that there is not has an own distance of NaN.
        RuntimeError: a centroid requires grad: there is no derivative in the centroids.
        BackendUnavailable: the backend that was named cannot run here.
    """
    found, _ = _op.call(features, centroids, metric, own, backend)
    return foreign.give_back(found, features[0])


def gradient(
    grad: Tensor,
    found: Tensor,
    own: Tensor,
    features: list[Tensor],
    centroids: list[Tensor],
    metric: str,
    backend: str,
) -> Tensor:
    """The gradient of all features ``(N, sum C_l)`` from that of the numbers ``found`` ``(N, L, 5)``."""
    a, m = found[..., 0].double(), found[..., 1].double()
    share = torch.where(a + m == 0, 0.0, grad[..., 2].double() / (a + m).square())
    of_own = (grad[..., 0] + grad[..., 4] + share * m).float()[..., None]
    of_other = (grad[..., 1] - share * a).float()[..., None]
    of_each = grad[..., 4, None] / (1 - centroids[0].shape[0])
    own = own[:, None, None]
    least, other = torch.full_like(of_own, float("inf")), torch.zeros_like(of_own, dtype=torch.int64)
    for k, _, distances in _blocks(features, centroids, metric, backend):
        value, at = torch.where(k == own, float("inf"), distances).min(dim=2, keepdim=True)
        other, least = torch.where(value < least, k[0] + at, other), torch.where(value < least, value, least)
    made = torch.zeros((), device=grad.device)
    for k, part, distances in _blocks(features, centroids, metric, backend):
        weight = torch.where(k == own, of_own, of_each + torch.where(k == other, of_other, 0.0))
        made = made + gradient_of(weight, distances, features, part, metric, backend)
    return made


def _blocks(
    features: list[Tensor], centroids: list[Tensor], metric: str, backend: str
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Some classes after the others: their indices, centroids and distances ``(N, L, k)``."""
    count = centroids[0].shape[0]
    step = max(1, _ELEMENTS // max(1, len(features) * features[0].shape[0]))
    for first in range(0, count, step):
        part = [value[first : first + step] for value in centroids]
        k = torch.arange(first, min(count, first + step), device=features[0].device)
        yield k, part, measure(features, part, metric, backend)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, centroids, ctx.metric, _, ctx.backend = inputs
    ctx.save_for_backward(*output, *features, *centroids)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    found, own, *both = ctx.saved_tensors
    features, centroids = both[: len(both) // 2], both[len(both) // 2 :]
    made = gradient(grad, found, own, features, centroids, ctx.metric, ctx.backend)
    return list(made.split([value.shape[1] for value in features], dim=1)), [None] * len(centroids)


_op = Op(
    "relative_distances",
    layers.features(),
    layers.centroids(of="features"),
    layers.own_class(of="features"),
    result(),
    make=layers.empty_reading,
    results=("out", "chosen"),
    sizes=("out.shape[0]", "centroids[0].shape[0]"),
    setup=_setup,
    backward=_backward,
)
