"""The score of a predicted label among the nearest neighbours in Triton: the kernel and its launcher."""

# ruff: noqa: RET505  (Triton compiles the branches as they are written)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device

BLOCK = 256


@triton.jit
def neighbour_weight(i, distance, WEIGHTING: tl.constexpr):
    # Of a neighbour at a distance above zero.
    if WEIGHTING == 0:
        return tl.full(distance.shape, 1.0, tl.float64)
    elif WEIGHTING == 1:
        return 1.0 / (i + 1).to(tl.float64)
    else:
        wide = tl.where(distance == 0.0, 1.0, distance).to(tl.float64)
        return 1.0 / (wide * wide)


@triton.jit
def knn_score_kernel(
    p_distances,  # (rows, neighbours) float32
    p_labels,  # (rows, neighbours) int64
    p_predicted,  # (rows,) int64
    p_out,  # (rows,) float32
    neighbours,
    distance_stride,
    label_stride,
    WEIGHTING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A row is read once: neighbours at distance zero are counted beside the weights of the others.
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)  # [BLOCK]
    predicted = tl.load(p_predicted + row)
    total = tl.zeros((BLOCK,), tl.float64)
    same = tl.zeros((BLOCK,), tl.float64)
    zeros = tl.zeros((BLOCK,), tl.int32)
    same_zeros = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, neighbours, BLOCK):
        mask = start + i < neighbours
        distance = tl.load(p_distances + row * distance_stride + start + i, mask=mask, other=1.0)
        label = tl.load(p_labels + row * label_stride + start + i, mask=mask, other=0)
        weight = tl.where(mask, neighbour_weight(start + i, distance, WEIGHTING), 0.0)
        if WEIGHTING == 2:
            zero = distance == 0.0
            weight = tl.where(zero, 0.0, weight)
            zeros += zero.to(tl.int32)
            same_zeros += (zero & (label == predicted)).to(tl.int32)
        total += weight
        same += tl.where(label == predicted, weight, 0.0)
    all_zeros = tl.sum(zeros, axis=0)
    share = tl.where(all_zeros > 0, all_zeros.to(tl.float64), tl.sum(total, axis=0))
    mine = tl.where(all_zeros > 0, tl.sum(same_zeros, axis=0).to(tl.float64), tl.sum(same, axis=0))
    score = mine / tl.where(share == 0.0, 1.0, share)
    tl.store(p_out + row, tl.where(share == 0.0, float("nan"), score).to(tl.float32))


def launch(distances: Tensor, labels: Tensor, predicted: Tensor, out: Tensor, weighting: int) -> None:
    """Run on the current stream."""
    rows, neighbours = distances.shape
    with on_device(out):
        knn_score_kernel[(rows,)](
            *(distances, labels, predicted, out, neighbours, distances.stride(0), labels.stride(0)),
            WEIGHTING=weighting,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
