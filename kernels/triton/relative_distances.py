"""Distances relative to a class in Triton: the kernels and their launchers; no distance goes to memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .centroid_distances import BLOCK_C, BLOCK_K, VARYING, distances_to, launches
from .common import of_layer, on_device

#: Classes of a part are a multiple of the first, and parts at most the second: kernels/common has the same numbers.
PART, MOST_PARTS = 64, 256
INF, NAN = tl.constexpr(float("inf")), tl.constexpr(float("nan"))


@triton.jit
def lower_of(a, b):
    return tl.where(b < a, b, a)


@triton.jit
def seen_together(least, second, place, at, BLOCK: tl.constexpr, CHOOSE: tl.constexpr):
    # Of several: the least and the next distance, and how many are nearer or, to CHOOSE, the index of the nearest.
    lowest = tl.reduce(least, 0, lower_of)
    first = tl.min(tl.where(least == lowest, at, BLOCK), axis=0)
    following = tl.reduce(tl.where(at == first, second, least), 0, lower_of)
    if CHOOSE:
        counted = tl.reduce(tl.where(least == lowest, place, float("inf")), 0, lower_of)
    else:
        counted = tl.sum(place, axis=0)
    return lowest, following, counted


@triton.jit(do_not_specialize=(*VARYING, "part", "parts"))
def relative_kernel(
    features,  # of every layer (images, channels) float32
    centroids_of,  # of every layer (centroids, channels) float32
    layer_channels,
    feature_strides,
    centroid_strides,
    p_scales,  # (layers, vectors) float32, 1 / norm; None for L2
    p_own,  # (images,) int64
    p_seen,  # (layers, parts, images, 4) float64
    p_out,  # (images, out_stride) float32; an image's layers, five numbers each
    centroids,
    vectors,  # centroids + images
    part,  # classes of a part
    parts,
    out_stride,
    CHOOSE: tl.constexpr,
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
    image = (tl.program_id(0) // parts).to(tl.int64)
    which = tl.program_id(0) % parts
    lanes = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    if not CHOOSE:
        own = tl.load(p_own + image)
        known = (own >= 0) & (own < centroids)
        own = tl.where(known, own, 0)
        k = own // BLOCK_K * BLOCK_K + lanes  # the tile that it is measured in below: the same bits
        near = distances_to(
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
        mine = tl.where(known, tl.sum(tl.where(k == own, near, 0.0), axis=0), NAN)
        if which == 0:
            tl.store(p_out + image * out_stride + layer * 5, mine)
    total = tl.zeros((BLOCK_K,), tl.float64)
    least = tl.full((BLOCK_K,), INF, tl.float32)
    second = tl.full((BLOCK_K,), INF, tl.float32)
    place = tl.zeros((BLOCK_K,), tl.float64)
    for start in range(which * part, tl.minimum(centroids, (which + 1) * part), BLOCK_K):
        k = start + lanes.to(tl.int64)
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
        value = tl.where(k < centroids, distance, INF)
        total += tl.where(k < centroids, distance, 0.0).to(tl.float64)
        lower = value < least
        other = tl.where(lower, least, value)
        second = tl.where(other < second, other, second)
        least = tl.where(lower, value, least)
        if CHOOSE:
            place = tl.where(lower, k.to(tl.float64), place)
        else:
            place += (value < mine).to(tl.float64)
    lowest, following, counted = seen_together(least, second, place, lanes, BLOCK_K, CHOOSE)
    images = tl.num_programs(0) // parts
    p_own_seen = p_seen + ((layer.to(tl.int64) * parts + which) * images + image) * 4
    tl.store(p_own_seen, tl.sum(total, axis=0))
    tl.store(p_own_seen + 1, lowest.to(tl.float64))
    tl.store(p_own_seen + 2, following.to(tl.float64))
    tl.store(p_own_seen + 3, counted)


@triton.jit(do_not_specialize=("centroids", "parts"))
def finish_kernel(
    p_own,  # (images,) int64; written to CHOOSE
    p_seen,  # (layers, parts, images, 4) float64
    p_out,  # (images, out_stride) float32
    centroids,
    parts,
    out_stride,
    CHOOSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    p = tl.arange(0, BLOCK)
    p_each = p_seen + ((layer * parts + p) * tl.num_programs(0) + image) * 4
    total = tl.sum(tl.load(p_each, mask=p < parts, other=0.0), axis=0)
    least = tl.load(p_each + 1, mask=p < parts, other=INF)
    second = tl.load(p_each + 2, mask=p < parts, other=INF)
    place = tl.load(p_each + 3, mask=p < parts, other=0.0)
    least, second, place = seen_together(least, second, place, p, BLOCK, CHOOSE)
    p_reading = p_out + image * out_stride + layer * 5
    if CHOOSE:
        tl.store(p_own + image, place.to(tl.int64))
        own = tl.where(least == INF, total, least)
        tl.store(p_reading, own.to(tl.float32))
    else:
        own = tl.load(p_reading).to(tl.float64)
    other = tl.where(own == least, second, least)
    other = tl.where(total != total, total, other)
    others = (centroids - 1).to(tl.float64)
    ratio = tl.where(own == other, 0.5, own / tl.where(own == other, 1.0, own + other))
    rank = place / others
    if CHOOSE:
        rank = others * 0.0
    tl.store(p_reading + 1, other.to(tl.float32))
    tl.store(p_reading + 2, ratio.to(tl.float32))
    tl.store(p_reading + 3, tl.where(own != own, own, rank).to(tl.float32))
    tl.store(p_reading + 4, (own - (total - own) / others).to(tl.float32))


def launch(
    features: list[Tensor],
    centroids: list[Tensor],
    scales: Tensor | None,
    own: Tensor,
    choose: bool,
    seen: Tensor,
    out: Tensor,
    images: int,
    count: int,
) -> None:
    """Run on the current stream. To ``choose`` the class ``own`` ``(N,)``, the last layer goes first.

    ``seen``: ``(L, parts, N, 4)`` float64; ``out``: ``(N, L, 5)``; ``scales``: ``(L, K + N)`` for the cosine distance.
    """
    last = len(features) - int(choose)
    if choose:
        rest = None if scales is None else scales[last:]
        _read(features[last:], centroids[last:], rest, own, True, seen[last:], out[:, last:], images, count)
    if last:
        _read(features[:last], centroids[:last], scales, own, False, seen, out, images, count)


def _read(
    features: list[Tensor],
    centroids: list[Tensor],
    scales: Tensor | None,
    own: Tensor,
    choose: bool,
    seen: Tensor,
    out: Tensor,
    images: int,
    count: int,
) -> None:
    part, parts = triton.cdiv(count, PART * MOST_PARTS) * PART, seen.shape[1]
    with on_device(out):
        for first, layers in launches(features, centroids, scales):
            norms = None if scales is None else scales[first:]
            relative_kernel[(images * parts, len(layers[0]))](
                *(*layers, norms, own, seen[first:], out[:, first:]),
                *(count, count + images, part, parts, out.stride(0)),
                CHOOSE=choose,
                BLOCK_K=BLOCK_K,
                BLOCK_C=BLOCK_C,
                enable_fp_fusion=False,
            )
            finish_kernel[(images, len(layers[0]))](
                *(own, seen[first:], out[:, first:], count, parts, out.stride(0)),
                CHOOSE=choose,
                BLOCK=MOST_PARTS,
                enable_fp_fusion=False,
            )
