"""Lists with a tensor for each layer of a network: feature maps, features and centroids, as operations declare them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks
from fastadv.ops.arguments import Argument, choice

METRICS = {"l2": 0, "cosine": 1}

#: The distances of each metric of a detector.
DISTANCES = {"l2": ("l2",), "cosine": ("cosine",), "l2+cosine": ("l2", "cosine")}

#: What an image has of a layer in the reading relative to a class.
READING = ("own", "nearest other", "ratio", "rank", "own minus mean")
# The classes are walked in parts of a multiple of so many, and in at most so many: how sums are cut depends on the
# number of classes alone. kernels/common/relative_distances.h has the same numbers.
_PART, _MOST_PARTS, _SEEN = 64, 256, 4

#: Channels, positions, and strides of image, channel and position.
Described = tuple[Tensor, tuple[int, ...]]


def feature_maps() -> Argument:
    """``maps``, one ``(N, C, H, W)`` of one type of a gradient for each layer."""
    return Argument(
        kind="feature_maps",
        public=("maps",),
        schema="Tensor[] maps",
        check=("maps = check_maps(foreign.borrow_each('maps', maps))",),
        ready=("code, maps = GRAD_TYPES[maps[0].dtype], [described(value) for value in maps]",),
        whole=("maps",),
        native=("native_maps(maps)", "code"),
        launch=("maps",),
        uses={"check_maps": check_maps, "described": described, "native_maps": native_maps},
    )


def features() -> Argument:
    """``features``, one ``(N, C)`` float32 for each layer; :func:`centroids` hands them to the kernels."""
    return Argument(
        kind="features",
        public=("features",),
        schema="Tensor[] features",
        check=("features = check_features(foreign.borrow_each('features', features))",),
        ready=("features = [checks.row_major(value) for value in features]",),
        whole=("features",),
        uses={"check_features": check_features},
    )


def centroids(*, of: str) -> Argument:
    """``centroids``, one ``(K, C)`` float32 for each layer ``of`` maps or features, and the ``metric``."""
    metric = choice("metric", METRICS)
    return Argument(
        kind="centroids",
        public=("centroids", "metric"),
        schema=f"Tensor[] centroids, {metric.schema}",
        check=(
            f"centroids = check_centroids(foreign.borrow_each('centroids', centroids), {of}, '{of}')",
            *metric.check,
        ),
        ready=(
            "centroids = [checks.row_major(value) for value in centroids]",
            "scales = empty_scales(features, centroids, metric)",
        ),
        whole=("centroids", "metric"),
        native=("native_layers(features, centroids)", *metric.native, "checks.address(scales)"),
        launch=("features", "centroids", "scales"),
        uses={
            **{"check_centroids": check_centroids, "empty_scales": empty_scales, "native_layers": native_layers},
            **metric.uses,
        },
    )


def pooled() -> Argument:
    """The means ``pooled`` of ``maps``, a result of the operation, and its columns as ``features``."""
    return Argument(
        kind="pooled",
        ready=("features = columns_of(pooled, maps)",),
        native=("pooled.data_ptr()", "pooled.shape[1]"),
        launch=("pooled",),
        uses={"columns_of": _columns},
    )


def own_class(*, of: str) -> Argument:
    """``own``, the class of each image or None, and the result ``chosen``, which holds it; behind ``centroids``."""
    return Argument(
        kind="own",
        dtype=torch.int64,
        public=("own",),
        schema="Tensor? own",
        check=(f"own = check_own(foreign.borrow('own', own, written=False), centroids, {of}, '{of}')",),
        layout=("check_classes(own, centroids)",),
        ready=(
            "choose, seen = own is None, empty_seen(features, centroids)",
            "if not choose:",
            "    chosen.copy_(own)",
        ),
        whole=("own",),
        native=("chosen.data_ptr()", "choose", "seen.data_ptr()"),
        launch=("chosen", "choose", "seen"),
        uses={"check_own": check_own, "check_classes": check_classes, "empty_seen": empty_seen},
    )


def check_maps(maps: Any) -> list[Tensor]:
    """``maps`` as a list of tensors, or an error."""
    found = checks.tensors("maps", maps, "feature maps (N, C, H, W)")
    first = found[0]
    for i, value in enumerate(found):
        checks.of_type(f"maps[{i}]", value, checks.GRAD_TYPES)
        if value.dtype != first.dtype:
            raise ArgumentTypeError(f"maps[{i}]: expected dtype {first.dtype}, the dtype of maps[0], got {value.dtype}")
        if value.dim() != 4 or 0 in value.shape[1:]:
            raise ArgumentError(f"maps[{i}]: expected shape (N, C, H, W) with C, H, W >= 1, got {tuple(value.shape)}")
        if value.shape[0] != first.shape[0]:
            raise ArgumentError(f"maps[{i}]: expected {first.shape[0]} images, like maps[0], got {value.shape[0]}")
    return found


def check_features(features: Any) -> list[Tensor]:
    """``features`` as a list of tensors, or an error."""
    found = checks.tensors("features", features, "features (N, C)")
    for i, value in enumerate(found):
        checks.rows(f"features[{i}]", value, torch.float32, (found[0].shape[0] if i else None, None))
        checks.columns(f"features[{i}]", value, 1, "(N, C)")
    return found


def check_centroids(centroids: Any, layers: list[Tensor], name: str) -> list[Tensor]:
    """``centroids`` as a list of tensors that fit the ``layers``, whose second sizes are the channels, or an error."""
    found = checks.tensors("centroids", centroids, "centroids (K, C)")
    if len(found) != len(layers):
        raise ArgumentError(f"centroids: expected {len(layers)} layers, like {name}, got {len(found)}")
    for i, (value, layer) in enumerate(zip(found, layers, strict=True)):
        count = found[0].shape[0] if i and found[0].dim() else None
        checks.rows(f"centroids[{i}]", value, torch.float32, (count, layer.shape[1]))
        if value.shape[0] == 0:
            raise ArgumentError(f"centroids[{i}]: expected shape (K, C) with K >= 1, got {tuple(value.shape)}")
        checks.on_device(f"centroids[{i}]", value, layers[0], name)
        if value.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"centroids[{i}] requires grad, and has no derivative; pass a detached tensor")
    return found


def check_own(own: Any, centroids: list[Tensor], layers: list[Tensor], name: str) -> Tensor | None:
    """``own``, or an error unless it is None or has a class for each image; also where there is no other class."""
    if centroids[0].shape[0] < 2:
        raise ArgumentError(f"centroids[0]: expected shape (K, C) with K >= 2, got {tuple(centroids[0].shape)}")
    if own is None:
        return None
    checks.an_array("own", own)
    checks.of_type("own", own, (torch.int64,))
    if own.shape != layers[0].shape[:1]:
        raise ArgumentError(f"own: expected shape ({layers[0].shape[0]},), got {tuple(own.shape)}")
    checks.on_device("own", own, layers[0], name)
    checked: Tensor = own
    return checked


def check_classes(own: Tensor | None, centroids: list[Tensor]) -> None:
    """Raise ValueError for a class that there is not; on a GPU the values are not looked at."""
    if own is None or not own.is_cpu or not own.numel():
        return
    count = centroids[0].shape[0]
    wrong = own[(own < 0) | (own >= count)]
    if len(wrong):
        raise ArgumentError(f"own: expected classes in [0, {count}), got {int(wrong[0])}")


def described(value: Tensor) -> Described:
    """A map as kernels read it, and its channels, positions and strides.

    The positions of a channel lie together, or the channels of a position do; a map of another memory order is copied.
    """
    _, channels, height, width = value.shape
    of_image, of_channel, of_row, of_column = value.stride()
    positions = height * width
    together = height == 1 or width == 1 or of_row == width * of_column
    of_position = of_row if width == 1 else of_column
    if positions == 1:
        of_position = 1
    elif channels == 1:
        of_channel = 1
    if together and (of_position == 1 or (of_channel == 1 and of_position > 0)):
        return value, (channels, positions, of_image, of_channel, of_position)
    return value.contiguous(), (channels, positions, channels * positions, positions, 1)


def native_maps(maps: list[Described]) -> list[int]:
    """Every map as the compiled kernels take it."""
    return [number for value, sizes in maps for number in (value.data_ptr(), *sizes)]


def empty_rows(maps: list[Tensor]) -> Tensor:
    """A tensor for the means ``(N, sum C_l)``."""
    return maps[0].new_empty((maps[0].shape[0], sum(value.shape[1] for value in maps)), dtype=torch.float32)


def check_metric(metric: str) -> None:
    """Raise ValueError unless ``metric`` is known."""
    checks.one_of("metric", metric, METRICS)


def check_distances(metric: str) -> tuple[str, ...]:
    """The metrics that a detector's ``metric`` stands for.

    Raises:
        ValueError: it is not known.
    """
    checks.one_of("metric", metric, DISTANCES)
    return DISTANCES[metric]


def native_layers(features: list[Tensor], centroids: list[Tensor]) -> list[int]:
    """Every layer as the compiled kernels take it; rows are ``checks.row_major``."""
    numbers: list[int] = []
    for f, c in zip(features, centroids, strict=True):
        numbers += (f.data_ptr(), c.data_ptr(), f.shape[1], f.stride(0), c.stride(0))
    return numbers


def empty_scales(features: list[Tensor], centroids: list[Tensor], metric: str) -> Tensor | None:
    """Scratch for the inverse norms of the cosine distance ``(L, K + N)``; None for L2."""
    if metric == "l2":
        return None
    return features[0].new_empty((len(features), centroids[0].shape[0] + features[0].shape[0]), dtype=torch.float32)


def empty_distances(features: list[Tensor], centroids: list[Tensor], metric: str = "l2") -> Tensor:
    """A tensor for the distances ``(N, L, K)``."""
    return features[0].new_empty((features[0].shape[0], len(features), centroids[0].shape[0]), dtype=torch.float32)


def empty_reading(
    features: list[Tensor], centroids: list[Tensor], metric: str, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tensors for the reading relative to a class ``(N, L, 5)`` and the classes ``(N,)``."""
    first, count = features[0], features[0].shape[0]
    made = first.new_empty((count, len(features), len(READING)), dtype=torch.float32)
    return made, first.new_empty((count,), dtype=torch.int64)


def empty_seen(features: list[Tensor], centroids: list[Tensor]) -> Tensor:
    """Scratch ``(L, parts of the classes, N, 4)``: what was seen of each part."""
    count = centroids[0].shape[0]
    part = -(-count // (_PART * _MOST_PARTS)) * _PART
    shape = (len(features), -(-count // part), features[0].shape[0], _SEEN)
    return features[0].new_empty(shape, dtype=torch.float64)


def _columns(pooled: Tensor, maps: list[Described]) -> list[Tensor]:
    return list(pooled.split([sizes[0] for _, sizes in maps], dim=1))


def remember_maps(ctx: Any, maps: list[Tensor]) -> None:
    """What :func:`spread` needs to know of the maps: not their values."""
    ctx.maps = [(value.shape, value.dtype, _is_channels_last(value)) for value in maps]


def _is_channels_last(value: Tensor) -> bool:
    return value.shape[1] > 1 and value.stride(1) == 1 and not value.is_contiguous()


def spread(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The gradient of every map that needs one, from that of the means ``(N, sum C_l)``."""
    made: list[Tensor | None] = []
    columns = grad.split([shape[1] for shape, _, _ in ctx.maps], dim=1)
    for part, (shape, dtype, channels_last), needed in zip(columns, ctx.maps, ctx.needs_input_grad[0], strict=True):
        if not needed:
            made.append(None)
            continue
        value = (part / (shape[2] * shape[3])).to(dtype)[:, :, None, None].expand(shape)
        order = torch.channels_last if channels_last else torch.contiguous_format
        made.append(value.contiguous(memory_format=order))
    return made
