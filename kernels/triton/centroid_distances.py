"""Distances to centroids and their derivative in Triton: the kernels and their launchers, one launch for each layer.

Differences first, as everywhere: d(x, x) = 0.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .sign_step import on_device

BLOCK_K = 16
BLOCK_C = 128
TINY = tl.constexpr(1.17549435e-38)


@triton.jit
def scales_kernel(p_vectors, p_scales, channels, stride, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        value = tl.load(p_vectors + row * stride + start + c, mask=start + c < channels, other=0.0)
        total += value * value
    squares = tl.sum(total, axis=0)
    small = squares < TINY
    tl.store(p_scales + row, tl.where(small, 0.0, tl.div_rn(1.0, tl.sqrt_rn(tl.where(small, 1.0, squares)))))


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
    else:
        distance = tl.where(c_scale == 0.0, 1.0, tl.where(f_scale == 0.0, 1.0, 0.5 * squares))
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
    for start in range(0, centroids, BLOCK_K):
        inside = start + k < centroids
        grad = tl.load(p_grad + image * grad_stride + start + k, mask=inside, other=0.0)
        distance = tl.load(p_distances + image * grad_stride + start + k, mask=inside, other=0.0)
        mask = inside[:, None] & (c[None, :] < channels)
        v = tl.load(p_centroids + (start + k)[:, None] * centroid_stride + c[None, :], mask=mask, other=0.0)
        if p_scales is None:
            weight = tl.where(distance == 0.0, 0.0, tl.div_rn(grad, tl.where(distance == 0.0, 1.0, distance)))
        else:
            c_scale = tl.load(p_scales + start + k, mask=inside, other=0.0)
            weight = tl.where(c_scale == 0.0, 0.0, grad)
            v = v * c_scale[:, None]
            weighted += weight * distance
        total += weight[:, None] * (unit[None, :] - v)
    made = tl.sum(total, axis=0)
    if p_scales is not None:
        made = (made - tl.sum(weighted, axis=0) * unit) * f_scale
    tl.store(p_out + image * out_stride + c, made, mask=c < channels)


def _scale(features: Tensor, centroids: Tensor, scales: Tensor | None) -> None:
    if scales is None:
        return
    count, channels = centroids.shape
    for vectors, into in ((centroids, scales), (features, scales[count:])):
        scales_kernel[(vectors.shape[0],)](
            *(vectors, into, channels, vectors.stride(0)), BLOCK_C=BLOCK_C, enable_fp_fusion=False
        )


def launch(features: list[Tensor], centroids: list[Tensor], scales: Tensor | None, out: Tensor) -> None:
    """Run on the current stream. ``out``: ``(N, L, K)``; ``scales``: ``(L, K + N)`` for the cosine distance."""
    images, _, count = out.shape
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
    grad: Tensor,
    distances: Tensor,
    features: list[Tensor],
    centroids: list[Tensor],
    scales: Tensor | None,
    out: Tensor,
) -> None:
    """Run on the current stream. ``out``: ``(N, row)``, the layers' channels one after the other."""
    images, _, count = grad.shape
    column = 0
    with on_device(out):
        for layer, (f, c) in enumerate(zip(features, centroids, strict=True)):
            own = None if scales is None else scales[layer]
            _scale(f, c, own)
            channels = f.shape[1]
            gradient_kernel[(images * triton.cdiv(channels, BLOCK_C),)](
                *(f, c, own, grad[:, layer], distances[:, layer], out[:, column:], channels, count),
                *(f.stride(0), c.stride(0), grad.stride(0), out.stride(0)),
                BLOCK_K=BLOCK_K,
                BLOCK_C=BLOCK_C,
                enable_fp_fusion=False,
            )
            column += channels
