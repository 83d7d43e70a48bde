"""The medoids of classes: exact, by all distances within a class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fastadv import ops
from fastadv.core.errors import ArgumentError
from fastadv.detection.moments import check_rows
from fastadv.detection.representatives import Batch, Representatives, check_batch, check_complete, check_names
from fastadv.ops.layers import check_metric

_CELLS = 1 << 24  # distances at a time


@torch.no_grad()
def medoids(
    batches: Iterable[Batch],
    *,
    layers: Sequence[str],
    classes: Sequence[str],
    model: str,
    metric: str = "l2",
    provenance: Mapping[str, str] | None = None,
) -> Representatives:
    r"""The member of every class that is nearest to the others, in every layer.

    .. math:: m_{l,k} = \arg\min_{x \in X_{l,k}} \sum_{y \in X_{l,k}} d(x, y)

    All distances of a class are measured (exact, but for their float32 rounding; of equal sums the image that came
    first wins), a block of rows at a time: nothing of the size N x N is kept. The images of a class must come one after
    the other, as an identity folder gives them; so the memory is that of the largest class, whatever the number of
    classes.

    Args:
        batches: as for :func:`centroids`; a class may go over several of them.
        layers: their names.
        classes: the names of the classes; they may come in any order.
        model: the name of the network.
        metric: ``"l2"`` or ``"cosine"``. **Choice**: the paper does not say which; L2 by default.
        provenance: further facts to keep; the metric is added.

    Raises:
        TypeError, ValueError: a batch does not fit, a class had no image, or came back after another one.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """
    layers, classes = check_names("layers", layers), check_names("classes", classes)
    check_metric(metric)
    counts = torch.zeros(len(classes), dtype=torch.int64)
    members = torch.zeros((len(layers), len(classes)), dtype=torch.int64)
    vectors: list[Tensor] = []
    first = 0
    for label, parts in _runs(batches, len(layers), classes):
        values = [torch.cat(list(column)) for column in zip(*parts, strict=True)]
        if not vectors:
            vectors = [value.new_empty((len(classes), value.shape[1])) for value in values]
        places = _central(values, metric)
        for total, value, place in zip(vectors, values, places, strict=True):
            check_rows("values", value, total.shape[1])
            total[label] = value[place]
        counts[label] = len(values[0])
        members[:, label] = torch.tensor(places) + first
        first += len(values[0])
    check_complete(counts, classes)
    return Representatives(
        kind="medoid",
        layers=layers,
        classes=classes,
        vectors=tuple(vectors),
        counts=counts,
        members=members,
        model=model,
        provenance={**(provenance or {}), "medoid_metric": metric},
    )


def _runs(batches: Iterable[Batch], layers: int, classes: tuple[str, ...]) -> Iterator[tuple[int, list[list[Tensor]]]]:
    """Every class with its images, when the next one begins."""
    seen: set[int] = set()
    label = -1
    parts: list[list[Tensor]] = []
    for values, labels in batches:
        found = check_batch(values, labels, layers, len(classes))
        runs, sizes = labels.unique_consecutive(return_counts=True)
        begin = 0
        for following, size in zip(runs.tolist(), sizes.tolist(), strict=True):
            if following != label:
                if parts:
                    yield label, parts
                if following in seen:
                    raise ArgumentError(
                        "labels: expected the images of a class one after the other, got class "
                        f"{classes[following]!r} again after another one"
                    )
                seen.add(following)
                label, parts = following, []
            parts.append([value[begin : begin + size] for value in found])
            begin += size
    if parts:
        yield label, parts


def _central(values: list[Tensor], metric: str) -> list[int]:
    """In every layer, the row with the least sum of distances to the others."""
    count = len(values[0])
    totals = []
    for begin in range(0, count, max(1, _CELLS // (count * len(values)))):
        block = [value[begin : begin + max(1, _CELLS // (count * len(values)))] for value in values]
        totals.append(ops.centroid_distances(block, values, metric=metric).sum(2, dtype=torch.float64))
    found: list[int] = torch.cat(totals).argmin(0).tolist()
    return found
