"""Distances to centroids and their derivative in Triton: the kernels and their launchers, one launch for each layer.

Differences first, as everywhere: d(x, x) = 0.
"""

# ruff: noqa: SIM102  (Triton compiles the branches as they are written)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device

BLOCK_K = 16
BLOCK_C = 128
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


@triton.jit
def scales_kernel(p_vectors, p_scales, channels, stride, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        value = tl.load(p_vectors + row * stride + start + c, mask=start + c < channels, other=0.0)
        total += value * value
    squares = tl.sum(total, axis=0)
    again = lost_digits(squares)
    scale = tl.where(again, MEASURE_AGAIN, tl.div_rn(1.0, tl.sqrt_rn(tl.where(again, 1.0, squares))))
    if again:
        if wide_squares(p_vectors + row * stride, channels, BLOCK_C) == 0.0:
            scale = 0.0
    tl.store(p_scales + row, scale)


@triton.jit
def distances_kernel(
    p_features,  # (images, channels) float32
    p_centroids,  # (centroids, channels) float32
    p_scales,  # (centroids + images,) float32, 1 / norm; None for L2
    p_out,  # (images, out_stride) float32
    channels,
    centroids,
    feature_stride,
    centroid_stride,
    out_stride,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    task = tl.program_id(0)
    tiles = tl.cdiv(centroids, BLOCK_K)
    image = (task // tiles).to(tl.int64)
    k = (task % tiles).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    c = tl.arange(0, BLOCK_C)  # [BLOCK_C]
    if p_scales is not None:
        f_scale = tl.load(p_scales + centroids + image)
        c_scale = tl.load(p_scales + k, mask=k < centroids, other=0.0)
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
    tl.store(p_out + image * out_stride + k, distance, mask=k < centroids)


@triton.jit
def gradient_kernel(
    p_features,
    p_centroids,
    p_scales,
    p_grad,  # (images, grad_stride) float32
    p_distances,  # likewise
    p_out,  # (images, out_stride) float32
    channels,
    centroids,
    feature_stride,
    centroid_stride,
    grad_stride,
    out_stride,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    task = tl.program_id(0)
    tiles = tl.cdiv(channels, BLOCK_C)
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


def _scale(features: Tensor, centroids: Tensor, scales: Tensor | None) -> None:
    if scales is None:
        return
    count, channels = centroids.shape
    for vectors, into in ((centroids, scales), (features, scales[count:])):
        scales_kernel[(vectors.shape[0],)](
            *(vectors, into, channels, vectors.stride(0)), BLOCK_C=BLOCK_C, enable_fp_fusion=False
        )


def launch(
    features: list[Tensor], centroids: list[Tensor], scales: Tensor | None, out: Tensor, images: int, count: int
) -> None:
    """Run on the current stream. ``out``: ``(N, L, K)``; ``scales``: ``(L, K + N)`` for the cosine distance."""
    with on_device(out):
        for layer, (f, c) in enumerate(zip(features, centroids, strict=True)):
            own = None if scales is None else scales[layer]
            _scale(f, c, own)
            distances_kernel[(images * triton.cdiv(count, BLOCK_K),)](
                *(f, c, own, out[:, layer], f.shape[1], count, f.stride(0), c.stride(0), out.stride(0)),
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
    column = 0
    with on_device(out):
        for layer, (f, c) in enumerate(zip(features, centroids, strict=True)):
            own = None if scales is None else scales[layer]
            _scale(f, c, own)
            channels = f.shape[1]
            gradient_kernel[(images * triton.cdiv(channels, BLOCK_C),)](
                *(f, c, own, grad[:, layer], distances[:, layer], out[:, column:], channels, count),
                *(f.stride(0), c.stride(0), grad.stride(0), row),
                BLOCK_K=BLOCK_K,
                BLOCK_C=BLOCK_C,
                enable_fp_fusion=False,
            )
            column += channels
