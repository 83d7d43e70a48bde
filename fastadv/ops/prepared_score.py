"""A detector's whole way on a CPU, prepared: from the maps of a batch to its scores in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks
from fastadv.ops.declaration import OPERATIONS
from fastadv.ops.layers import METRICS, READING, Described, check_classes, check_distances, check_own, described

#: What of the distances a detector's network reads.
READINGS = ("raw", "relative")

_LINEAR, _PERCEPTRON, _RECURRENT = range(3)
_LANES = 16  # units are filled up with zeros to a multiple of so many
_MOST_KNOWN = 64  # shapes of batches that need no more checks


class PreparedScore:
    r"""Scores of trajectories: the distances of maps, then a small network, all fixed but maps.

    .. math:: s_n = w^\top h\left(\frac{d_{n} - \mu}{\sigma}\right) + b

    with d ``(N, L, R)`` of :func:`fastadv.ops.pooled_centroid_distances` (``"raw"``, R = K) or of
    :func:`fastadv.ops.pooled_relative_distances` (``"relative"``, R = 5), by both metrics side by side 2 K or 10
    numbers, and h one of: the L R numbers themselves; a linear map of them and ReLU; the last output of an LSTM that
    reads the L layers one after the other. A guard needs the score of one face at a time, and then each of the many
    small operations that this replaces takes longer to call than to compute.

    Sums of the network are float32 over at most 256 products, and those are added in float64; the exponential function
    is within 2e-7 of the true one. Beyond the distances, a score is the same bits on every instruction set, with every
    number of threads and in every batch. Not differentiable. May be called from several threads.

    Args:
        centroids: one ``(K, C_l)`` float32 for each of L layers; K >= 2 to read them ``"relative"``.
        metric: ``"l2"``, ``"cosine"``, or ``"l2+cosine"`` for both.
        mean: mu, ``(L, R)`` float32.
        scale: sigma, ``(L, R)`` float32.
        hidden: a linear map of L R numbers, an LSTM of R numbers (one layer and direction, batch first, with biases),
            or None.
        last: the linear map w, b, with one output.
        reading: ``"raw"`` or ``"relative"``.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device.
        ImportError: the compiled module is missing.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """

    def __init__(
        self,
        *,
        centroids: Sequence[Tensor],
        metric: str,
        mean: Tensor,
        scale: Tensor,
        hidden: nn.Linear | nn.LSTM | None,
        last: nn.Linear,
        reading: str = "raw",
    ) -> None:
        vectors = checks.tensors("centroids", centroids, "centroids (K, C)")
        for i, value in enumerate(vectors):
            checks.rows(f"centroids[{i}]", value, torch.float32, (len(vectors[0]), None))
            if not value.numel():
                raise ArgumentError(f"centroids[{i}]: expected shape (K, C) with K, C >= 1, got {tuple(value.shape)}")
        metrics = check_distances(metric)
        checks.one_of("reading", reading, READINGS)
        self._metrics = len(metrics)
        self._relative = reading == "relative"
        if self._relative:
            check_own(None, vectors, vectors, "centroids")
        shape = (len(vectors), len(metrics) * (len(READING) if self._relative else len(vectors[0])))
        for name, value in (("mean", mean), ("scale", scale)):
            checks.rows(name, value, torch.float32, shape)
        kind, units, weights = _network(hidden, last, *shape)
        vectors = [checks.row_major(value.detach()) for value in vectors]
        kept = [*vectors, *(value.detach().contiguous() for value in (mean, scale)), *weights]
        # Copies that nobody else has: a tensor that is sent to another process moves to shared memory.
        kept = [value.clone() for value in kept]
        vectors = kept[: len(vectors)]
        for value in kept:
            if value.device.type != "cpu" or value.dtype != torch.float32:
                raise ArgumentError(
                    f"parameters: expected torch.float32 on the CPU, got {value.dtype} on {value.device}"
                )
        kept = [checks.in_memory("a parameter", value) for value in kept]
        vectors = kept[: len(vectors)]
        self._kept = kept  # the compiled part knows addresses only
        self._channels = [value.shape[1] for value in vectors]
        self._known: dict[Any, tuple[Tensor, int]] = {}  # how maps lie in memory, and room for results and scratch
        layers = [number for v in vectors for number in (v.data_ptr(), v.shape[1], v.stride(0))]
        addresses = [value.data_ptr() for value in kept[len(vectors) :]]
        bias = 0.0 if last.bias is None else float(last.bias.detach())
        sizes = ([METRICS[each] for each in metrics], len(vectors[0]), self._relative, kind, units)
        self._native = _native.module().PreparedScore(layers, *sizes, addresses, bias)

    def __call__(self, maps: Sequence[Tensor], images: Tensor | None = None, own: Tensor | None = None) -> Tensor:
        """Scores.

        Args:
            maps: one ``(N, C_l, H_l, W_l)`` for each layer, each float32, bfloat16 or float16; contiguous or
                channels-last, as they are; other memory orders are copied.
            images: what they were made of, ``(N, 3, H, W)``. Where one holds a number that is not finite, its score is
                NaN, whatever the maps hold. None: all are known to be finite.
            own: ``(N,)`` int64 in [0, K), the class that each image is read relative to, or ``(M, N)`` with a row for
                each of M metrics; None for the nearest one at the last layer, by each metric its own.

        Returns:
            ``(N,)`` float32.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or device.
            RuntimeError: one requires grad while gradients are recorded.
        """
        return self._run(maps, images, own, None)[0]

    def flagged(
        self, maps: Sequence[Tensor], images: Tensor | None = None, own: Tensor | None = None, *, threshold: float
    ) -> tuple[Tensor, Tensor]:
        """Scores, and ``(N,)`` bool: whether each is at or above the float32 of ``threshold``, or no number.

        Raises:
            TypeError, ValueError, RuntimeError: as for scores alone.
        """
        scores, flags = self._run(maps, images, own, threshold)
        assert flags is not None
        return scores, flags

    def _run(
        self, maps: Sequence[Tensor], images: Tensor | None, own: Tensor | None, threshold: float | None
    ) -> tuple[Tensor, Tensor | None]:
        values = list(maps) if images is None else [*maps, images]
        if torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values):
            raise RuntimeError(
                "maps require grad, and a PreparedScore has no derivative; call it under torch.no_grad()"
            )
        key = (images is None, *map(_form, values))
        known = self._known.get(key)
        if known is None:
            values, known = self._laid_out(values, with_images=images is not None, key=key)
        (layouts, room), count = known, len(values[-1])
        if own is not None:
            own = self._checked_own(own, values[-1], "images" if images is not None else f"maps[{len(values) - 1}]")
        # the caller may have another default type or device
        made = torch.empty(room, dtype=torch.float32, device="cpu")
        flags = None if threshold is None else torch.empty(count, dtype=torch.bool, device="cpu")
        if count:
            addresses = [value.data_ptr() for value in values]
            to = made.data_ptr(), checks.address(own), checks.address(flags), threshold or 0.0
            self._native.run(layouts.data_ptr(), addresses, *to, count, *backends.on_cpu())
        return made[:count], flags

    def _laid_out(self, given: list[Any], *, with_images: bool, key: Any) -> tuple[list[Tensor], tuple[Tensor, int]]:
        """Maps as the compiled part reads them, and how they lie in memory: remembered for the next ones alike."""
        checked = self._checked(given, with_images=with_images)
        pairs = [described(value) for value in checked]
        if with_images:
            pairs[-1] = _in_a_row(*pairs[-1])
        values = [value for value, _ in pairs]
        rows = [(checks.GRAD_TYPES[value.dtype], *numbers) for value, numbers in pairs]
        layouts = torch.tensor(rows, dtype=torch.int64, device="cpu")
        known = layouts, len(values[-1]) + self._native.scratch(len(values[-1]))
        as_it_is = None not in key and all(a is b for a, b in zip(given, values, strict=True))
        if as_it_is and len(self._known) < _MOST_KNOWN:
            self._known[key] = known
        return values, known

    @staticmethod
    def pool(value: Tensor) -> Tensor:
        """Means ``(N, C, 1, 1)`` float32 of one map ``(N, C, H, W)``, to be handed over in its place.

        :func:`fastadv.ops.average_pool` without PyTorch's dispatcher, for a large map while it is in the cache.

        Raises:
            TypeError, ValueError: it is of the wrong type, shape or device.
        """
        _check_map("value", value, None)
        made: Tensor = OPERATIONS["average_pool"].implementations["cpu"]([checks.in_memory("value", value)])
        return made[:, :, None, None]

    def _checked_own(self, own: Tensor, images: Tensor, name: str) -> Tensor:
        if not self._relative:
            raise ArgumentError("own: expected None, since the distances are read 'raw', got a class for each image")
        rows = own.unbind(0) if isinstance(own, Tensor) and own.dim() == 2 and len(own) == self._metrics else [own]
        checked = []
        for row in rows:
            one = check_own(row, self._kept, [images], name)
            assert one is not None
            one = checks.in_memory("own", one)
            check_classes(one, self._kept)
            checked.append(one)
        return (
            checked[0].contiguous()
            if self._metrics == 1
            else torch.stack(checked).expand(self._metrics, -1).contiguous()
        )

    def _checked(self, values: list[Any], *, with_images: bool) -> list[Tensor]:
        count = len(values) - with_images
        if count != len(self._channels):
            raise ArgumentError(f"maps: expected {len(self._channels)} layers, like centroids, got {count}")
        names = [f"maps[{i}]" for i in range(count)] + ["images"] * with_images
        channels = [*self._channels, 3][: len(values)]
        for name, value, each in zip(names, values, channels, strict=True):
            _check_map(name, value, each)
        like, size = names[-1], len(values[-1])
        for name, value in zip(names, values, strict=True):
            if len(value) != size:
                raise ArgumentError(f"{name}: expected {size} images, like {like}, got {len(value)}")
        return [checks.in_memory(name, value) for name, value in zip(names, values, strict=True)]


def _form(value: object) -> object:
    """What has to be checked once of a map: two that are alike in it are read in the same way."""
    if not isinstance(value, Tensor) or not checks.has_memory(value):
        return None
    return value.shape, value.stride(), value.dtype, value.is_cpu


def _in_a_row(images: Tensor, sizes: tuple[int, ...]) -> Described:
    """Dense images as if they were contiguous: all that is asked of one is whether its numbers are finite."""
    channels, positions, of_image, of_channel, of_position = sizes
    if (of_channel, of_position) == (1, channels):
        return images, (channels, positions, of_image, positions, 1)
    return images, sizes


def _check_map(name: str, value: Any, channels: int | None) -> None:
    checks.tensor_of(name, value, checks.GRAD_TYPES)
    checks.strided(name, value)
    if not value.is_cpu:
        raise ArgumentError(f"{name}: expected a tensor on the CPU, got one on {value.device}")
    if value.dim() != 4 or channels not in (None, value.shape[1]) or 0 in value.shape[1:]:
        expected = f"(N, {'C' if channels is None else channels}, H, W) with C, H, W >= 1"
        raise ArgumentError(f"{name}: expected shape {expected}, got {tuple(value.shape)}")


def _network(
    hidden: nn.Linear | nn.LSTM | None, last: nn.Linear, layers: int, classes: int
) -> tuple[int, int, list[Tensor]]:
    """Kind, hidden units and the weights as the compiled part takes them: first, bias, recurrent, last."""
    flat = layers * classes
    none = torch.empty(0)
    if isinstance(hidden, nn.LSTM):
        plain = hidden.num_layers == 1 and hidden.batch_first and hidden.bias and not hidden.bidirectional
        if not plain or hidden.proj_size or hidden.input_size != classes:
            raise ArgumentError(
                f"hidden: expected one layer and direction, batch first, with biases, of {classes} numbers, got "
                f"{brief(hidden)}"
            )
        kind, units = _RECURRENT, hidden.hidden_size
        parameters: dict[str, Tensor] = dict(hidden.named_parameters())
        bias = parameters["bias_ih_l0"] + parameters["bias_hh_l0"]
        through = (parameters["weight_ih_l0"], bias[:, None], parameters["weight_hh_l0"])
        weights = [_gates(value, units) for value in through]
    elif isinstance(hidden, nn.Linear):
        _takes("hidden", hidden, flat)
        kind, units = _PERCEPTRON, hidden.out_features
        weights = [_padded(hidden.weight.T), _padded(_bias(hidden)), none]
    elif hidden is None:
        kind, units = _LINEAR, 1
    else:
        raise ArgumentTypeError(f"hidden: expected a Linear, an LSTM or None, got {type(hidden).__name__}")
    if not isinstance(last, nn.Linear):
        raise ArgumentTypeError(f"last: expected a Linear, got {type(last).__name__}")
    _takes("last", last, flat if hidden is None else units)
    if last.out_features != 1:
        raise ArgumentError(f"last: expected 1 output, got {last.out_features}")
    if hidden is None:  # the sums of a unit whose weight is 1
        return kind, units, [_padded(last.weight.T), torch.zeros(_LANES), none, torch.ones(1)]
    return kind, units, [*weights, last.weight.detach().flatten()]


def _takes(name: str, linear: nn.Linear, size: int) -> None:
    if linear.in_features != size:
        raise ArgumentError(f"{name}: expected {size} inputs, got {linear.in_features}")


def _bias(linear: nn.Linear) -> Tensor:
    return torch.zeros(linear.out_features) if linear.bias is None else linear.bias


def _padded(rows: Tensor) -> Tensor:
    return F.pad(rows.detach(), (0, -rows.shape[-1] % _LANES)).contiguous()


def _gates(weight: Tensor, units: int) -> Tensor:
    """``(4 units, inputs)`` as ``(inputs, 4 lanes)``: the gates side by side, each filled up."""
    return _padded(weight.T.reshape(-1, 4, units)).flatten(1)
