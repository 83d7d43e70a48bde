"""Distances to centroids, read relative to one class: five numbers of a layer whatever the number of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

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
    backward pass measures the distances again, twice where there are more than 2^24 of them, and needs memory for
    2 N L K numbers, of at most 2^24 distances at a time.

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
    count = centroids[0].shape[0]
    a, m = found[..., :2].double().unbind(-1)
    on_own, on_nearest, on_ratio, _, on_mean = grad.unbind(-1)
    total = a + m
    share = torch.where(total == 0, 0.0, on_ratio / total.square())
    of_own = (on_own + on_mean + share * m).float()[..., None]
    of_each = (on_mean / (1 - count))[..., None]
    of_nearest = of_each + (on_nearest - share * a).float()[..., None]
    # On a GPU, `own` may name no class: its distance is NaN, and so is every weight, wherever it is written.
    own = own.clamp(0, count - 1)[:, None, None].expand(-1, len(features), 1)
    fixed = [value.detach() for value in features]  # distances are written to; `gradient_of` has no derivative
    least, at = [], []
    for block in _blocks(fixed, centroids, metric, backend):
        _put(block, own, float("inf"), block.distances)
        value, place = block.distances.min(dim=2, keepdim=True)
        least.append(value)
        at.append(place + block.first)
    nearest = at[0] if block.whole else torch.cat(at, 2).gather(2, torch.cat(least, 2).argmin(2, keepdim=True))
    made: Tensor | None = None
    again = iter([block]) if block.whole else _blocks(fixed, centroids, metric, backend)
    for block in again:
        _put(block, own, found[..., :1], block.distances)  # over the infinity
        weight = of_each.expand_as(block.distances).contiguous()
        _put(block, nearest, of_nearest, weight)
        _put(block, own, of_own, weight)
        part = gradient_of(weight, block.distances, features, block.centroids, metric, backend)
        made = part if made is None else made + part
    assert made is not None
    return made


class _Block(NamedTuple):
    """Some classes: the first of them, their centroids and distances ``(N, L, k)``, and whether these are all."""

    first: int
    centroids: list[Tensor]
    distances: Tensor
    whole: bool


def _blocks(features: list[Tensor], centroids: list[Tensor], metric: str, backend: str) -> Iterator[_Block]:
    """Some classes after the others."""
    count = centroids[0].shape[0]
    step = max(1, _ELEMENTS // max(1, len(features) * features[0].shape[0]))
    for first in range(0, count, step):
        part = [value[first : first + step] for value in centroids]
        yield _Block(first, part, measure(features, part, metric, backend), step >= count)


def _put(block: _Block, at: Tensor, new: Any, values: Tensor) -> None:
    """Write ``new`` for the classes ``at``, both ``(N, L, 1)``, into ``values`` ``(N, L, k)`` of a block with them."""
    if not block.whole:
        at = at - block.first
        inside = at.clamp(0, values.shape[2] - 1)
        at, new = inside, torch.where(inside == at, new, values.gather(2, inside))
    values.scatter_(2, at, new)


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
