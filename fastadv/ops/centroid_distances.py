"""Distances from features to the centroids of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from fastadv.ops import foreign, layers
from fastadv.ops.arguments import Argument, result
from fastadv.ops.declaration import Op

Array = TypeVar("Array")


def centroid_distances(
    features: Sequence[Array], centroids: Sequence[Any], *, metric: str = "l2", backend: str | None = None
) -> Array:
    r"""Distance of every feature to every centroid of its layer, all layers in one call.

    .. math:: d_{n,l,k} = \|f_{l,n} - c_{l,k}\|_2 \quad\text{or}\quad
              d_{n,l,k} = 1 - \cos(f_{l,n}, c_{l,k})
              = \tfrac12 \left\| \frac{f_{l,n}}{\|f_{l,n}\|} - \frac{c_{l,k}}{\|c_{l,k}\|} \right\|_2^2

    Both are computed from differences: ``d(x, x)`` is exactly 0 and nothing cancels. L2 is within 1e-5 (relative) of
    float64, cosine within 1e-5 d + 2e-7 sqrt(d) + 1e-14, for all finite vectors: where a sum of squares is below 1e-28
    or overflows float32, it is made again in float64. A vector of zeros has no direction: its cosine distance is 1 to
    everything, itself included, with a derivative of 0. Nothing of shape (N, K, C) is ever made.

    Differentiable in the features. At distance 0 the derivative of L2 is taken as 0.

    Args:
        features: one ``(N, C_l)`` float32 for each layer. Tensors, or NumPy or CuPy arrays.
        centroids: one ``(K, C_l)`` float32 for each layer, K >= 1.
        metric: ``"l2"`` or ``"cosine"``.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``(N, L, K)`` float32.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: a centroid requires grad: there is no derivative in the centroids.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """
    return foreign.give_back(_op.call(features, centroids, metric, backend), features[0])


def distances(features: list[Tensor], centroids: list[Tensor], metric: str, backend: str) -> Tensor:
    """The operation behind its checks."""
    made: Tensor = _op.dispatch(features, centroids, metric, backend)
    return made


def gradient(
    grad: Tensor, distances: Tensor, features: list[Tensor], centroids: list[Tensor], metric: str, backend: str
) -> Tensor:
    """The gradient of all features ``(N, sum C_l)`` from that of the distances."""
    made: Tensor = _op_backward.dispatch(grad, distances, features, centroids, metric, backend)
    return made


def _empty_gradient(
    grad: Tensor, distances: Tensor, features: list[Tensor], centroids: list[Tensor], metric: str
) -> Tensor:
    return grad.new_empty((grad.shape[0], sum(value.shape[1] for value in features)))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, centroids, ctx.metric, ctx.backend = inputs
    ctx.save_for_backward(output, *features, *centroids)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    distances, *both = ctx.saved_tensors
    features, centroids = both[: len(both) // 2], both[len(both) // 2 :]
    made = gradient(grad, distances, features, centroids, ctx.metric, ctx.backend)
    parts = made.split([value.shape[1] for value in features], dim=1)
    return list(parts), [None] * len(centroids)


_op = Op(
    "centroid_distances",
    layers.features(),
    layers.centroids(of="features"),
    result(),
    make=layers.empty_distances,
    sizes=("out.shape[0]", "out.shape[2]"),
    setup=_setup,
    backward=_backward,
)
_op_backward = Op(
    "centroid_distances_backward",
    Argument(
        kind="distances",
        public=("grad", "distances"),
        schema="Tensor grad, Tensor distances",
        ready=("grad, distances = grad.contiguous(), distances.contiguous()",),
        whole=("grad", "distances"),
    ),
    layers.features(),
    layers.centroids(of="features"),
    Argument(kind="distances", native=("grad.data_ptr()", "distances.data_ptr()"), launch=("grad", "distances")),
    result(),
    stem="centroid_distances",
    make=_empty_gradient,
    sizes=("grad.shape[0]", "grad.shape[2]", "out.shape[1]"),
)
