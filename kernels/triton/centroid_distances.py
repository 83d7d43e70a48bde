"""Distances to centroids and their derivative in Triton: the kernels and their launchers, one launch for all layers.

Differences first, as everywhere: d(x, x) = 0.
"""

# ruff: noqa: SIM102  (Triton compiles the branches as they are written)
from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import MOST_LAYERS, of_layer, on_device

BLOCK_K = 16
BLOCK_C = 128
#: Arguments that change from call to call: a kernel is compiled once for all their values.
VARYING = ("columns", "centroids", "vectors", "tiles")
# Beyond these, sums of float32 squares have lost digits, and are made again in float64: kernels/common has the reasons.
LEAST_SQUARES = tl.constexpr(1e-28)
MOST_SQUARES = tl.constexpr(3.40282347e38)
MEASURE_AGAIN = tl.constexpr(-1.0)


@triton.jit
def lost_digits(squares):
    return (squares < LEAST_SQUARES) | (squares > MOST_SQUARES)


@triton.jit
def wide_inverse(squares):
    return tl.where(squares == 0.0, 0.0, 1.0 / tl.sqrt(tl.where(squares == 0.0, 1.0, squares)))


@triton.jit
def wide_squares(p_vector, channels, BLOCK_C: tl.constexpr):
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float64)
    for start in range(0, channels, BLOCK_C):
        value = tl.load(p_vector + start + c, mask=start + c < channels, other=0.0).to(tl.float64)
        total += value * value
    return tl.sum(total, axis=0)


@triton.jit
def wide_row_squares(p_vectors, inside, channels, stride, k, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float64)
    for start in range(0, channels, BLOCK_C):
        mask = inside[:, None] & (start + c < channels)[None, :]
        value = tl.load(p_vectors + k[:, None] * stride + (start + c)[None, :], mask=mask, other=0.0).to(tl.float64)
        total += value * value
    return tl.sum(total, axis=1)


@triton.jit
def extreme(distance):
    return ((distance > 0.0) & (distance < 1e-14)) | (distance > 1e14)


@triton.jit(do_not_specialize=VARYING)
def scales_kernel(
    features,  # of every layer (images, channels) float32
    centroids_of,  # of every layer (centroids, channels) float32
    layer_channels,
    feature_strides,
    centroid_strides,
    p_scales,  # (layers, centroids + images) float32
    centroids,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1)
    channels = of_layer(layer_channels, layer)
    p_feature = of_layer(features, layer) + (row - centroids) * of_layer(feature_strides, layer)
    p_centroid = of_layer(centroids_of, layer) + row * of_layer(centroid_strides, layer)
    p_vector = tl.where(row < centroids, p_centroid, p_feature)
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        value = tl.load(p_vector + start + c, mask=start + c < channels, other=0.0)
        total += value * value
    squares = tl.sum(total, axis=0)
    again = lost_digits(squares)
    scale = tl.where(again, MEASURE_AGAIN, tl.div_rn(1.0, tl.sqrt_rn(tl.where(again, 1.0, squares))))
    if again:
        if wide_squares(p_vector, channels, BLOCK_C) == 0.0:
            scale = 0.0
    tl.store(p_scales + layer.to(tl.int64) * tl.num_programs(0) + row, scale)


@triton.jit
def distances_to(
    p_features,
    p_centroids,
    p_scales,  # of the layer; None for L2
    image,
    k,  # [BLOCK_K]
    centroids,
    channels,
    feature_stride,
    centroid_stride,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # Of an image of a layer to some centroids.
    if p_scales is not None:
        f_scale = tl.load(p_scales + centroids + image)
        c_scale = tl.load(p_scales + k, mask=k < centroids, other=0.0)
    c = tl.arange(0, BLOCK_C)  # [BLOCK_C]
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for start in range(0, channels, BLOCK_C):
        inside = start + c < channels
        f = tl.load(p_features + image * feature_stride + start + c, mask=inside, other=0.0)
        mask = (k[:, None] < centroids) & inside[None, :]
        v = tl.load(p_centroids + k[:, None] * centroid_stride + (start + c)[None, :], mask=mask, other=0.0)
        if p_scales is not None:
            f = f * f_scale
            v = v * c_scale[:, None]
        difference = f[None, :] - v
        total += difference * difference
    squares = tl.sum(total, axis=1)
    if p_scales is None:
        distance = tl.sqrt_rn(squares)
        again = (k < centroids) & lost_digits(squares)
    else:
        distance = tl.where(c_scale == 0.0, 1.0, tl.where(f_scale == 0.0, 1.0, 0.5 * squares))
        again = (k < centroids) & (tl.where(f_scale < 0.0, 1, (c_scale < 0.0).to(tl.int32)) > 0)
    if tl.max(again.to(tl.int32), axis=0) > 0:
        p_feature = p_features + image * feature_stride
        if p_scales is not None:
            wide_f = f_scale.to(tl.float64)
            if f_scale < 0.0:
                wide_f = wide_inverse(wide_squares(p_feature, channels, BLOCK_C))
            wide_c = wide_row_squares(p_centroids, k < centroids, channels, centroid_stride, k, BLOCK_K, BLOCK_C)
            wide_c = tl.where(c_scale < 0.0, wide_inverse(wide_c), c_scale.to(tl.float64))
        wide = tl.zeros((BLOCK_K, BLOCK_C), tl.float64)
        for start in range(0, channels, BLOCK_C):
            inside = start + c < channels
            apart = tl.load(p_feature + start + c, mask=inside, other=0.0).to(tl.float64)
            mask = (k[:, None] < centroids) & inside[None, :]
            from_k = tl.load(p_centroids + k[:, None] * centroid_stride + (start + c)[None, :], mask=mask, other=0.0)
            if p_scales is None:
                difference = apart[None, :] - from_k.to(tl.float64)
            else:
                difference = (apart * wide_f)[None, :] - from_k.to(tl.float64) * wide_c[:, None]
            wide += tl.where(mask, difference * difference, 0.0)
        made = tl.sum(wide, axis=1)
        if p_scales is None:
            made = tl.sqrt(made)
        else:
            made = tl.where(c_scale == 0.0, 1.0, tl.where(f_scale == 0.0, 1.0, 0.5 * made))
        distance = tl.where(again, made.to(tl.float32), distance)
    return distance


@triton.jit(do_not_specialize=VARYING)
def distances_kernel(
    features,  # of every layer (images, channels) float32
    centroids_of,  # of every layer (centroids, channels) float32
    layer_channels,
    feature_strides,
    centroid_strides,
    p_scales,  # (layers, vectors) float32, 1 / norm; None for L2
    p_out,  # (images, out_stride) float32; an image's layers, `centroids` apart
    centroids,
    vectors,  # centroids + images
    out_stride,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    layer = tl.program_id(1)
    channels = of_layer(layer_channels, layer)
    p_features = of_layer(features, layer)
    p_centroids = of_layer(centroids_of, layer)
    feature_stride = of_layer(feature_strides, layer)
    centroid_stride = of_layer(centroid_strides, layer)
    if p_scales is not None:
        p_scales += layer.to(tl.int64) * vectors
    p_out += layer.to(tl.int64) * centroids
    task = tl.program_id(0)
    tiles = tl.cdiv(centroids, BLOCK_K)
    image = (task // tiles).to(tl.int64)
    k = (task % tiles).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    distance = distances_to(
        p_features,
        p_centroids,
        p_scales,
        image,
        k,
        centroids,
        channels,
        feature_stride,
        centroid_stride,
        BLOCK_K,
        BLOCK_C,
    )
    tl.store(p_out + image * out_stride + k, distance, mask=k < centroids)


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    features,
    centroids_of,
    layer_channels,
    feature_strides,
    centroid_strides,
    columns,
    p_scales,
    p_grad,  # (images, grad_stride) float32; an image's layers, `centroids` apart
    p_distances,  # likewise
    p_out,  # (images, out_stride) float32
    centroids,
    vectors,
    tiles,  # of the layer with the most channels
    grad_stride,
    out_stride,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    layer = tl.program_id(1)
    channels = of_layer(layer_channels, layer)
    task = tl.program_id(0)
    if task % tiles * BLOCK_C >= channels:
        return
    p_features = of_layer(features, layer)
    p_centroids = of_layer(centroids_of, layer)
    feature_stride = of_layer(feature_strides, layer)
    centroid_stride = of_layer(centroid_strides, layer)
    if p_scales is not None:
        p_scales += layer.to(tl.int64) * vectors
    p_grad += layer.to(tl.int64) * centroids
    p_distances += layer.to(tl.int64) * centroids
    p_out += of_layer(columns, layer)
    image = (task // tiles).to(tl.int64)
    c = (task % tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    k = tl.arange(0, BLOCK_K).to(tl.int64)  # [BLOCK_K]
    unit = tl.load(p_features + image * feature_stride + c, mask=c < channels, other=0.0)
    if p_scales is not None:
        f_scale = tl.load(p_scales + centroids + image)
        unit = unit * f_scale
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    weighted = tl.zeros((BLOCK_K,), tl.float32)
    again = tl.zeros((BLOCK_K,), tl.int32)
    for start in range(0, centroids, BLOCK_K):
        inside = start + k < centroids
        grad = tl.load(p_grad + image * grad_stride + start + k, mask=inside, other=0.0)
        distance = tl.load(p_distances + image * grad_stride + start + k, mask=inside, other=0.0)
        mask = inside[:, None] & (c[None, :] < channels)
        v = tl.load(p_centroids + (start + k)[:, None] * centroid_stride + c[None, :], mask=mask, other=0.0)
        if p_scales is None:
            weight = tl.where(distance == 0.0, 0.0, tl.div_rn(grad, tl.where(distance == 0.0, 1.0, distance)))
            again |= extreme(distance).to(tl.int32)
        else:
            c_scale = tl.load(p_scales + start + k, mask=inside, other=0.0)
            weight = tl.where(c_scale == 0.0, 0.0, grad)
            again |= (c_scale < 0.0).to(tl.int32)
            v = v * c_scale[:, None]
            weighted += weight * distance
        total += weight[:, None] * (unit[None, :] - v)
    made = tl.sum(total, axis=0)
    if p_scales is not None:
        made = (made - tl.sum(weighted, axis=0) * unit) * f_scale
        again = tl.where(f_scale < 0.0, 1, again)
    if tl.max(again, axis=0) > 0:
        p_feature = p_features + image * feature_stride
        wide_unit = tl.load(p_feature + c, mask=c < channels, other=0.0).to(tl.float64)
        if p_scales is not None:
            wide_f = f_scale.to(tl.float64)
            if f_scale < 0.0:
                wide_f = wide_inverse(wide_squares(p_feature, channels, BLOCK_C))
            wide_unit = wide_unit * wide_f
        wide = tl.zeros((BLOCK_K, BLOCK_C), tl.float64)
        share = tl.zeros((BLOCK_K,), tl.float64)
        for start in range(0, centroids, BLOCK_K):
            inside = start + k < centroids
            grad = tl.load(p_grad + image * grad_stride + start + k, mask=inside, other=0.0).to(tl.float64)
            distance = tl.load(p_distances + image * grad_stride + start + k, mask=inside, other=0.0).to(tl.float64)
            mask = inside[:, None] & (c[None, :] < channels)
            v = tl.load(p_centroids + (start + k)[:, None] * centroid_stride + c[None, :], mask=mask, other=0.0)
            wide_v = v.to(tl.float64)
            if p_scales is None:
                weight = tl.where(distance == 0.0, 0.0, grad / tl.where(distance == 0.0, 1.0, distance))
            else:
                c_scale = tl.load(p_scales + start + k, mask=inside, other=0.0)
                weight = tl.where(c_scale == 0.0, 0.0, grad)
                own = wide_row_squares(p_centroids, inside, channels, centroid_stride, start + k, BLOCK_K, BLOCK_C)
                wide_v = wide_v * tl.where(c_scale < 0.0, wide_inverse(own), c_scale.to(tl.float64))[:, None]
                share += weight * distance
            wide += tl.where(mask, weight[:, None] * (wide_unit[None, :] - wide_v), 0.0)
        wide_made = tl.sum(wide, axis=0)
        if p_scales is not None:
            wide_made = (wide_made - tl.sum(share, axis=0) * wide_unit) * wide_f
        made = wide_made.to(tl.float32)
    tl.store(p_out + image * out_stride + c, made, mask=c < channels)


Layers = tuple[tuple[Any, ...], ...]


def launches(features: list[Tensor], centroids: list[Tensor], scales: Tensor | None) -> Iterator[tuple[int, Layers]]:
    """The first layer of every launch, and of its layers what the kernels take; their norms are made before."""
    for first in range(0, len(features), MOST_LAYERS):
        part = slice(first, first + MOST_LAYERS)
        pairs = [
            (f, c, f.shape[1], f.stride(0), c.stride(0)) for f, c in zip(features[part], centroids[part], strict=True)
        ]
        layers = tuple(zip(*pairs, strict=True))
        if scales is not None:
            scales_kernel[(scales.shape[1], len(pairs))](
                *(*layers, scales[part], centroids[0].shape[0]), BLOCK_C=BLOCK_C, enable_fp_fusion=False
            )
        yield first, layers


def launch(
    features: list[Tensor], centroids: list[Tensor], scales: Tensor | None, out: Tensor, images: int, count: int
) -> None:
    """Run on the current stream. ``out``: ``(N, L, K)``; ``scales``: ``(L, K + N)`` for the cosine distance."""
    with on_device(out):
        for first, layers in launches(features, centroids, scales):
            own = None if scales is None else scales[first:]
            distances_kernel[(images * triton.cdiv(count, BLOCK_K), len(layers[0]))](
                *(*layers, own, out[:, first:], count, count + images, out.stride(0)),
                BLOCK_K=BLOCK_K,
                BLOCK_C=BLOCK_C,
                enable_fp_fusion=False,
            )


def launch_backward(
    features: list[Tensor],
    centroids: list[Tensor],
    scales: Tensor | None,
    grad: Tensor,
    distances: Tensor,
    out: Tensor,
    images: int,
    count: int,
    row: int,
) -> None:
    """Run on the current stream. ``out``: ``(N, row)``, the layers' channels one after the other."""
    columns = [0, *accumulate(f.shape[1] for f in features)]
    with on_device(out):
        for first, layers in launches(features, centroids, scales):
            own = None if scales is None else scales[first:]
            each = tuple(columns[first : first + len(layers[0])])
            tiles = triton.cdiv(max(layers[2]), BLOCK_C)
            gradient_kernel[(images * tiles, len(each))](
                *(*layers, each, own, grad[:, first:], distances[:, first:], out),
                *(count, count + images, tiles, grad.stride(0), row),
                BLOCK_K=BLOCK_K,
                BLOCK_C=BLOCK_C,
                enable_fp_fusion=False,
            )
