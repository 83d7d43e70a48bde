"""How much the nearest neighbours of an image support the label that was predicted for it."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks, foreign
from fastadv.ops._define import define_op
from fastadv.ops.reference import knn_score as reference

Array = TypeVar("Array")

_WEIGHTINGS = {"uniform": 0, "rank": 1, "inverse_square": 2}


def knn_score(
    distances: Array,
    labels: Any,
    predicted: Any,
    *,
    weighting: str = "uniform",
    backend: str | None = None,
) -> Array:
    r"""Weighted share of the nearest neighbours that carry the predicted label.

    .. math:: s_n = \frac{\sum_{i=1}^{k} w_{n,i}\,[c_{n,i} = c_n]}{\sum_{i=1}^{k} w_{n,i}}

    with ``w = 1`` ("uniform", kNN), ``1/i`` ("rank", W-kNN) or ``1/d^2`` ("inverse_square", DW-kNN). Where a neighbour
    is at distance 0, "inverse_square" is the limit: the neighbours at distance 0 vote alone, all alike. A neighbour at
    infinity has no weight there; the score is NaN where no weight is left, or where a distance is NaN. Sums are made in
    float64. There is no derivative.

    Args:
        distances: ``(N, k)`` float32, k >= 1, ascending in every row: "rank" counts on it.
        labels: ``(N, k)`` int64, those of the neighbours.
        predicted: ``(N,)`` int64.
        weighting: ``"uniform"``, ``"rank"`` or ``"inverse_square"``.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``(N,)`` float32 in [0, 1]; the values of ``distances`` are not looked at, since that would wait for the device.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Carrara et al. 2017, "Detecting adversarial example attacks to deep neural networks", eq. 2 and table 1.
    """
    arrays = {"distances": distances, "labels": labels, "predicted": predicted}
    d, c, p = (foreign.borrow(name, value, written=False) for name, value in arrays.items())
    for name, value in (("distances", d), ("labels", c), ("predicted", p)):
        if not checks.is_tensor(value):
            raise ArgumentTypeError(
                f"{name} is a {type(value).__name__}; expected a torch.Tensor or a NumPy or CuPy array"
            )
        checks.strided(name, value)
    checks.rows("distances", d, torch.float32, (None, None))
    if d.shape[1] == 0:
        raise ArgumentError(f"distances has shape {tuple(d.shape)}; expected (N, k) with k >= 1")
    checks.rows("labels", c, torch.int64, (d.shape[0], d.shape[1]))
    checks.per_image("predicted", p, d, torch.int64)
    if c.device != d.device:
        raise ArgumentError(f"labels is on {c.device}; expected {d.device}, the device of distances")
    if weighting not in _WEIGHTINGS:
        raise ArgumentError(f"weighting is {brief(weighting)}; expected 'uniform', 'rank' or 'inverse_square'")
    return foreign.give_back(_op(d, c, p, weighting, backend or "auto"), distances)


def _prepared(distances: Tensor, labels: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = distances.new_empty((distances.shape[0],))
    return checks.row_major(distances), checks.row_major(labels), predicted.contiguous(), out


def _compiled(distances: Tensor, labels: Tensor, predicted: Tensor, weighting: str, name: str, *where: Any) -> Tensor:
    d, c, p, out = _prepared(distances, labels, predicted)
    if out.numel():
        getattr(_native.module(), name)(
            *(d.data_ptr(), d.stride(0), c.data_ptr(), c.stride(0), p.data_ptr(), out.data_ptr(), *d.shape),
            *(_WEIGHTINGS[weighting], *where),
        )
    return out


def _cpu(*args: Any) -> Tensor:
    return _compiled(*args, "cpu_knn_score", torch.get_num_threads(), backends.cpu_isa())


def _cuda(distances: Tensor, *rest: Any) -> Tensor:
    with torch.cuda.device(distances.device):
        where = (distances.device.index, torch.cuda.current_stream().cuda_stream)
        return _compiled(distances, *rest, "cuda_knn_score", *where)


def _triton(distances: Tensor, labels: Tensor, predicted: Tensor, weighting: str) -> Tensor:
    kernel = importlib.import_module("fastadv.kernels.triton.knn_score")
    d, c, p, out = _prepared(distances, labels, predicted)
    if out.numel():
        kernel.launch(d, c, p, out, _WEIGHTINGS[weighting])
    return out


def _fake(distances: Tensor, labels: Tensor, predicted: Tensor, weighting: str) -> Tensor:
    return distances.new_empty((distances.shape[0],))


_op = define_op(
    "knn_score(Tensor distances, Tensor labels, Tensor predicted, str weighting, str backend) -> Tensor",
    {"reference": reference.knn_score, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
    fake=_fake,
)
