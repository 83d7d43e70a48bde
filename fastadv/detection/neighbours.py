"""The nearest neighbours of a feature among labelled ones: exact, the same with every backend, ties by index."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastadv import ops
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError, MissingPackageError
from fastadv.models.float32_math import float32_math
from fastadv.models.modes import plain_modes

_QUERIES = 256  # of one matrix product
_ROWS = 8192  # of the index in one matrix product
_GATHERED = 1 << 24  # numbers that are gathered at a time to measure candidates
_SELECTED = 2048  # rows that FAISS finds for a query on a GPU, at most

BACKENDS = ("brute", "faiss")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The nearest neighbours of N queries, nearest first.

    Attributes:
        distances: ``(N, k)`` float32, L2, ascending.
        indices: ``(N, k)`` int64, rows of the index; among equal distances the lower one comes first.
        labels: ``(N, k)`` int64.
    """

    distances: Tensor
    indices: Tensor
    labels: Tensor


class _Candidates(Protocol):
    """Proposes rows by distances that may be rounded."""

    def propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Squared distances ``(N, count)`` ascending, and the rows."""
        ...


class _MatrixProduct:
    """``|x|^2 - 2 q x + |q|^2`` by matrix products over blocks of the index; keeps the best of each block."""

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self.squares = features.square().sum(1)

    def propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best = queries.new_empty((queries.shape[0], 0))
        rows = torch.empty(best.shape, dtype=torch.int64, device=queries.device)
        for begin in range(0, self.features.shape[0], _ROWS):
            part = slice(begin, begin + _ROWS)
            scores = torch.addmm(self.squares[None, part], queries, self.features[part].T, alpha=-2)
            numbers = torch.arange(begin, begin + scores.shape[1], device=queries.device).expand_as(scores)
            scores, numbers = torch.cat([best, scores], 1), torch.cat([rows, numbers], 1)
            best, places = scores.topk(min(count, scores.shape[1]), dim=1, largest=False)
            rows = numbers.gather(1, places)
        return best + queries.square().sum(1, keepdim=True), rows


class _Faiss:
    """FAISS's flat index, on the CPU. It gets the addresses of tensors, as an index on a GPU does."""

    _extra = "faiss"

    def __init__(self, features: Tensor) -> None:
        if importlib.util.find_spec("faiss") is None:
            raise MissingPackageError(
                "backend: expected the package faiss for 'faiss', got no such package; "
                f"pip install 'fastadv[{self._extra}]'"
            )
        self._features = features
        self._index = self._empty(features)
        with self._in_order():
            self._index.add_c(len(features), _floats(features))

    def propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        queries = queries.contiguous()
        squares = queries.new_empty((len(queries), count))
        rows = torch.empty(squares.shape, dtype=torch.int64, device=queries.device)
        places = _faiss().cast_integer_to_idx_t_ptr(rows.data_ptr())
        with self._in_order():
            self._index.search_c(len(queries), _floats(queries), count, _floats(squares), places)
        return squares.masked_fill_(rows < 0, torch.nan), rows  # -1: there is no row, since the squares overflowed

    def _empty(self, features: Tensor) -> Any:
        return _faiss().IndexFlatL2(features.shape[1])

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """Within, FAISS works in the order of PyTorch's current stream."""
        yield


class _FaissOnCuda(_Faiss):
    """FAISS's flat index on the CUDA device of the features."""

    _extra = "faiss-gpu"

    def propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if count > _SELECTED:
            return _MatrixProduct(self._features).propose(queries, count)
        return super().propose(queries, count)

    def _empty(self, features: Tensor) -> Any:
        faiss, self._number = _faiss(), features.device.index or 0
        if self._number >= faiss.get_num_gpus():
            raise MissingPackageError(
                f"backend: expected a FAISS that uses {features.device}, got one that sees {faiss.get_num_gpus()} CUDA "
                f"devices; pip install 'fastadv[{self._extra}]' in place of faiss-cpu, or choose 'brute'"
            )
        self._resources, self._lock = _shared(self._number)
        config = faiss.GpuIndexFlatConfig()
        config.device = self._number
        config.use_cuvs = False  # the bound on the rounding is that of cuBLAS's float32 products
        return faiss.GpuIndexFlatL2(self._resources, features.shape[1], config)

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        stream = torch.cuda.current_stream(self._features.device).cuda_stream
        with self._lock:
            self._resources.setDefaultStream(self._number, _faiss().cast_integer_to_cudastream_t(stream))
            yield


@functools.cache
def _shared(number: int) -> tuple[Any, threading.Lock]:
    """What all indices on a device share: memory to work in (1.5 GiB), and a lock, since threads must not share it."""
    resources = _faiss().StandardGpuResources()
    resources.setPinnedMemory(0)  # nothing is copied from the host
    return resources, threading.Lock()


def _faiss() -> Any:
    return importlib.import_module("faiss")


def _floats(values: Tensor) -> Any:
    return _faiss().cast_integer_to_float_ptr(values.data_ptr())


def _proposer(features: Tensor, backend: str) -> _Candidates:
    if backend == "brute":
        return _MatrixProduct(features)
    if features.device.type not in ("cpu", "cuda"):
        raise ArgumentError(
            f"features: expected a tensor on a CPU or CUDA for the backend 'faiss', got one on {features.device}"
        )
    return (_Faiss if features.device.type == "cpu" else _FaissOnCuda)(features)


class Neighbours:
    """An index of labelled features.

    A backend proposes a few more candidates than were asked for, by rounded distances. Those are measured again from
    differences (:func:`fastadv.ops.centroid_distances`), and a bound on the rounding says whether a row that was not
    proposed could belong to the nearest. Where it could, the whole index is measured. So the result is that of
    measuring everything, whatever the backend, and whatever precision of float32 products PyTorch is set to.

    Memory beyond the features: blocks of 8,192 rows by 256 queries, and 64 MiB of gathered candidates; with FAISS a
    copy of the features, and on a GPU 1.5 GiB that all indices of a device share.

    Source:
        Carrara et al. 2017, "Detecting adversarial example attacks to deep neural networks", section 4.
    """

    def __init__(self, features: Tensor, labels: Tensor, *, backend: str = "brute") -> None:
        """Take M features.

        Args:
            features: ``(M, D)`` float32, finite, M >= 1; not copied where it is contiguous.
            labels: ``(M,)`` int64, on the same device.
            backend: ``"brute"`` (matrix product and top-k, any device) or ``"faiss"`` (a flat index on the device of
                the features: on a CPU with the extra ``fastadv[faiss]``, on CUDA with ``fastadv[faiss-gpu]``).

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, device or value.
            ImportError: FAISS is asked for and not installed, or cannot use the CUDA device of the features.
        """
        _check("features", features, None)
        if features.shape[0] == 0:
            raise ArgumentError(f"features: expected shape (M, D) with M >= 1, got {tuple(features.shape)}")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            came = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise ArgumentTypeError(f"labels: expected a torch.int64 tensor, got {came}")
        if labels.shape != features.shape[:1]:
            raise ArgumentError(f"labels: expected shape ({features.shape[0]},), got {tuple(labels.shape)}")
        if labels.device != features.device:
            raise ArgumentError(f"labels: expected {features.device}, the device of features, got {labels.device}")
        if backend not in BACKENDS:
            raise ArgumentError(f"backend: expected 'brute' or 'faiss', got {brief(backend)}")
        #: One of ``BACKENDS``.
        self.backend = backend
        self._features = features.detach().contiguous()
        self._labels = labels
        self._candidates = _proposer(self._features, backend)
        self._reach = float(self._features.norm(dim=1).max())

    def __len__(self) -> int:
        """How many features it holds."""
        return self._features.shape[0]

    @property
    def features(self) -> Tensor:
        """``(M, D)`` float32: not to be written."""
        return self._features

    @property
    def labels(self) -> Tensor:
        """``(M,)`` int64: not to be written."""
        return self._labels

    def search(self, queries: Tensor, k: int) -> Found:
        """The k nearest features of every query, by L2 distance.

        Args:
            queries: ``(N, D)`` float32, finite, on the device of the features.
            k: in ``[1, M]``.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, device or value.
        """
        _check("queries", queries, self._features)
        if not 1 <= k <= len(self):
            raise ArgumentError(f"k: expected an integer in [1, {len(self)}], the size of the index, got {k}")
        device = self._features.device
        # The bound on the rounding is that of float32: no autocast, no TF32, no bfloat16, whatever the caller has set.
        with plain_modes(device), torch.no_grad(), float32_math(device, tf32=False):
            found = [self._search(part, k) for part in queries.detach().split(_QUERIES)]
            distances, rows = (torch.cat([pair[i] for pair in found]) for i in (0, 1))
            return Found(distances=distances, indices=rows, labels=self._labels[rows])

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if not len(queries):
            return queries.new_empty((0, k)), torch.empty((0, k), dtype=torch.int64, device=queries.device)
        count = min(len(self), k + max(16, k // 8))
        if count == len(self):
            return self._nearest(queries, torch.arange(count, device=queries.device).expand(len(queries), count), k)
        squares, rows = self._candidates.propose(queries, count)
        distances, rows = self._nearest(queries, rows.sort(dim=1).values, k)
        for i in self._unsure(queries, squares[:, -1], distances[:, -1]):
            distances[i], rows[i] = self._scan(queries[i], k)
        return distances, rows

    def _nearest(self, queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of rows ``(N, count)`` in ascending order: a stable sort by distance leaves ties in that order."""
        distances, order = self._measure(queries, rows).sort(dim=1, stable=True)
        return distances[:, :k].contiguous(), rows.gather(1, order)[:, :k].contiguous()

    def _unsure(self, queries: Tensor, worst: Tensor, last: Tensor) -> list[int]:
        # |q|^2 + |x|^2 - 2 q x in float32 is off by at most (D + 3) 2^-24 (|q| + |x|)^2; a measured distance by 1e-5 of
        # itself. What was not proposed is no nearer than the worst that was, less that.
        depth = (queries.shape[1] + 3) * 2.0**-23 * (queries.double().norm(dim=1) + self._reach).square()
        # The squares of large features overflow: a comparison with NaN is false, and the query is unsure.
        sure = last.double().square() * (1 + 1e-4) < worst.double() - depth
        return (~sure).nonzero()[:, 0].tolist()

    def _measure(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Distances ``(N, count)`` from differences. Each query is a layer with its own centroids, in one call."""
        count, width = rows.shape[1], queries.shape[1]
        made = []
        size = max(1, _GATHERED // (count * width))
        for q, r in zip(queries.split(size), rows.split(size), strict=True):
            gathered = self._features[r.flatten()].view(*r.shape, width)
            made.append(ops.centroid_distances(list(q[:, None]), list(gathered))[0])
        return torch.cat(made)

    def _scan(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        distances = ops.centroid_distances([query[None]], [self._features])[0, 0]
        # The bits of a float32 that is not negative are in its order; the row below them decides a tie.
        rows = torch.arange(len(self), device=distances.device)
        keys = (distances.view(torch.int32).to(torch.int64) << 32) + rows
        rows = keys.topk(k, largest=False, sorted=True).values & 0xFFFFFFFF
        return distances[rows], rows


def _check(name: str, value: object, like: Tensor | None) -> None:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype != torch.float32:
        raise ArgumentTypeError(f"{name}: expected dtype torch.float32, got {value.dtype}")
    width = None if like is None else like.shape[1]
    if value.dim() != 2 or value.shape[1] == 0 or width not in (None, value.shape[1]):
        raise ArgumentError(f"{name}: expected shape (any, {width or 'any but 0'}), got {tuple(value.shape)}")
    if like is not None and value.device != like.device:
        raise ArgumentError(f"{name}: expected {like.device}, the device of the features, got {value.device}")
    if not bool(value.isfinite().all()):
        raise ArgumentError(f"{name}: expected finite values, got NaN or infinity")
