"""A face recogniser and its detector as one forward pass: embedding, prediction and a verdict on each image."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_one_of, check_type
from fastadv.detection.calibration import Thresholds
from fastadv.detection.check_model import check_fits
from fastadv.detection.detectors import Detector
from fastadv.detection.one_pass import OnePass, Outputs, only_of_finite, with_flags
from fastadv.detection.taps import of_one_type, pooled, submodules
from fastadv.models import FaceModel, prepare
from fastadv.models.capture import Captured
from fastadv.models.checks import check_images
from fastadv.models.float32_math import float32_math
from fastadv.models.modes import plain_modes

PRECISIONS = ("fp32", "bf16")

# From so many elements on, a layer's output is pooled as soon as it has run: it is then still in a cache, and memory
# stays that of the bare model. Smaller ones wait for the one call for all layers, which is cheaper.
_EARLY = 1 << 19


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdicts:
    """What a guard says of N images.

    Attributes:
        embeddings: ``(N, D)`` float32, of norm 1.
        logits: ``(N, K)`` float32 of the model's class head, or None without one.
        scores: ``(N,)`` float32, the detector's logit: higher for what looks adversarial.
        flagged: ``(N,)`` bool: the score is at or above the threshold, or no number at all.
        norms: ``(N,)`` float32, of the backbone's features, before they were divided by it to be embeddings.
        thresholds: the detector's, which know what a score means; None where it is not calibrated.
    """

    embeddings: Tensor
    logits: Tensor | None
    scores: Tensor
    flagged: Tensor
    norms: Tensor
    thresholds: Thresholds | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """How many images."""
        return len(self.scores)

    @cached_property
    def p_values(self) -> Tensor | None:
        """``(N,)`` float64, the share of natural images that look at least as adversarial
        (:meth:`fastadv.detection.Thresholds.p_values`); None for a detector without a calibration set.
        """
        return None if self.thresholds is None else self.thresholds.p_values(self.scores)


@dataclass(frozen=True, kw_only=True, eq=False)
class Guard:
    """Recognises faces and says of each whether it looks adversarial, in one forward pass.

    Used as::

        guard = Guard(model=load("mobilefacenet", weights), detector=load_detector("detector.safetensors"))
        verdicts = guard(images)
        trusted = verdicts.embeddings[~verdicts.flagged]

    For verification, with a detector of the reading ``relative``, give the class that each image claims to show
    (``claimed``); :func:`fastadv.detection.enrol` adds the people of a gallery to the detector's classes.

    The model is copied and prepared (:func:`fastadv.models.prepare`); model and detector stay as they were. On a CUDA
    device the pass is recorded once for every size of ``sizes`` as a CUDA graph, a batch is filled up to the next size,
    and a larger one is cut. May be called from several threads, copied, and pickled for another process. Not
    differentiable: an attack that sees the detector goes through :class:`fastadv.detection.LayerTap` and
    :meth:`fastadv.detection.Detector.score`.

    Attributes:
        model: in evaluation mode; the guard works on its device.
        detector: fitted on the layers of that model.
        threshold: images with this score or a higher one are flagged. None for the detector's at a false-alarm rate of
            1 %, or, where it was not calibrated for that, at its :attr:`fastadv.detection.Thresholds.usual_rate`.
        precision: ``"fp32"`` or ``"bf16"``; the distances are float32 in both. A threshold that was calibrated on
            float32 scores is only near to the right one in bf16.
        capture: whether to record CUDA graphs; None for where there is a CUDA device.
        sizes: batch sizes to record, ascending.

    Raises:
        TypeError, ValueError: a field is of the wrong type or value, the detector was fitted on another model or on
            layers of other widths, there is no threshold, or what the model says of an image depends on the other
            images of the batch or on chance.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """

    model: FaceModel
    detector: Detector
    threshold: float | None = None
    precision: str = "fp32"
    capture: bool | None = None
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    _pass: OnePass = field(init=False, repr=False)
    _places: dict[str, int] = field(init=False, repr=False)
    _recorded: dict[tuple[int, bool], _Recorded] = field(init=False, repr=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        check_type("model", self.model, FaceModel)
        check_type("detector", self.detector, Detector)
        check_one_of("precision", self.precision, PRECISIONS)
        sizes = self.sizes
        if not sizes or any(type(n) is not int or n < 1 for n in sizes) or list(sizes) != sorted(set(sizes)):
            raise ArgumentError(f"sizes: expected ascending batch sizes >= 1, got {brief(sizes)}")
        cuda = self.model.device.type == "cuda"
        if self.capture and not cuda:
            raise ArgumentError(f"capture: expected a model on a CUDA device with True, got one on {self.model.device}")
        object.__setattr__(self, "capture", cuda if self.capture is None else self.capture)
        object.__setattr__(self, "threshold", _threshold(self.threshold, self.detector))
        classes = self.detector.trajectory.representatives.classes
        object.__setattr__(self, "_places", {name: k for k, name in enumerate(classes)})
        with plain_modes(self.model.device):
            check_fits(self.model, self.detector)
            object.__setattr__(self, "_pass", self._build())

    def __call__(self, images: Tensor, claimed: Sequence[str | None] | None = None) -> Verdicts:
        """Judge images.

        Args:
            images: ``(N, 3, H, W)``, N >= 1, floating point, RGB in [0, 1], aligned as the model takes them; any device
                and memory layout. With N = 1 and with other N, the last bits of a result may differ; an image's
                neighbours change nothing.
            claimed: the name of a class of the detector for each image, or None where it claims none; only with a
                detector of the reading ``relative``. Without a claim the class that the model's head chooses takes its
                place, where the detector knows the head, or else the class nearest in the last layer.

        Returns:
            The verdicts, on the model's device.

        Raises:
            TypeError, ValueError: another type or shape, a value that is not in [0, 1], or as :meth:`place`.
        """
        check_images("images", images)
        expected = self.model.image_shape
        if images.dim() != 4 or images.shape[1:] != expected or not len(images):
            raise ArgumentError(
                f"images: expected shape (N, {str(expected)[1:]} with N >= 1, got {tuple(images.shape)}"
            )
        own = None if claimed is None else self._own(claimed, len(images))
        # entering a mode that the caller is in already would only take time
        inference = nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode()
        with inference, plain_modes(self.model.device, inference=True):
            return self._captured(images, own) if self.capture else self._eager(images, own)

    def place(self, claimed: str | None) -> int:
        """The place of a class among the detector's, from 0; -1 for None.

        Raises:
            ValueError: there is no such class, or the detector's reading is ``raw``.
        """
        if claimed is None:
            return -1
        if not self.detector.trajectory.relative:
            raise ArgumentError(f"claimed: expected none for a detector of the reading 'raw', got {brief(claimed)}")
        if not isinstance(claimed, str) or claimed not in self._places:
            raise ArgumentError(
                f"claimed: expected one of the {len(self._places)} classes of the detector, got {brief(claimed)}"
            )
        return self._places[claimed]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied, and sent to another process, as its fields, and built anew there: locks and graphs stay here."""
        return _rebuilt, ({each.name: getattr(self, each.name) for each in fields(self) if each.init},)

    def warm_up(self) -> None:
        """Do now what the first calls would do: choose algorithms, allocate, and record the graphs, with claims too."""
        sizes = self.sizes if self.capture else (1, self.sizes[-1])
        trajectory = self.detector.trajectory
        claims = (None, trajectory.representatives.classes[0]) if self.capture and trajectory.relative else (None,)
        for size, claimed in itertools.product(sizes, claims):
            self(torch.full((size, *self.model.image_shape), 0.5), [claimed] * size)

    def _build(self) -> OnePass:
        # The layers that are tapped must not be folded with the batch norm after them.
        model = copy.copy(self.model)
        model.layers = tuple(dict.fromkeys((*model.layers, *submodules(self.detector.layers))))
        prepared = prepare(model, precision=self.precision)
        detector = replace(self.detector, network=copy.deepcopy(self.detector.network)).to(prepared.device)
        assert self.threshold is not None
        threshold = self.threshold

        def plain(values: list[Tensor], images: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
            return with_flags(only_of_finite(detector.score(of_one_type(values), own), images), threshold)

        compiled = detector.prepared()

        def fast(values: list[Tensor], images: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
            assert compiled is not None
            own = None if own is None else detector.trajectory.filled(values, own)
            return compiled.flagged(values, None, own, threshold=threshold)  # images with NaN have been refused

        pool, score = (pooled, plain) if compiled is None else (compiled.pool, fast)
        return OnePass(prepared, detector.trajectory, score, pool=pool, early=_EARLY, hooks=False)

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.to(self.model.device, torch.float32, memory_format=torch.channels_last)

    def _own(self, claimed: Sequence[str | None], count: int) -> Tensor | None:
        """The places ``(N,)`` int64 of the claimed classes; None where no image claims one."""
        if isinstance(claimed, str) or not isinstance(claimed, (list, tuple)):
            raise ArgumentTypeError(f"claimed: expected a sequence of names or None, got {brief(claimed)}")
        if len(claimed) != count:
            raise ArgumentError(f"claimed: expected {count} names, one for each image, got {len(claimed)}")
        places = [self.place(name) for name in claimed]
        return torch.tensor(places) if max(places) >= 0 else None

    def _eager(self, images: Tensor, own: Tensor | None) -> Verdicts:
        own = None if own is None else own.to(self.model.device)
        if self.model.device.type != "cuda":
            return self._verdicts(self._pass(self._laid_out(images), own))
        with self._lock, float32_math(self.model.device, tf32=False):  # what it sets is the whole process's
            return self._verdicts(self._pass(self._laid_out(images), own))

    def _captured(self, images: Tensor, own: Tensor | None) -> Verdicts:
        made = []
        most, claims = self.sizes[-1], own is not None
        with self._lock, torch.cuda.device(self.model.device), float32_math(self.model.device, tf32=False):
            for i, part in enumerate(images.split(most)):
                size = next(n for n in self.sizes if n >= len(part))
                if (size, claims) not in self._recorded:
                    shape = (size, *self.model.image_shape)
                    pool = next(iter(self._recorded.values())).pool if self._recorded else None
                    self._recorded[size, claims] = _Recorded(self._pass, shape, self.model.device, pool, claims=claims)
                made.append(self._recorded[size, claims](part, None if own is None else own[i * most :][: len(part)]))
        return self._verdicts(made[0] if len(made) == 1 else _joined(made))

    def _verdicts(self, outputs: Outputs) -> Verdicts:
        embeddings, logits, scores, flagged, norms = outputs
        return Verdicts(
            embeddings=embeddings,
            logits=logits,
            scores=scores,
            flagged=flagged,
            norms=norms,
            thresholds=self.detector.thresholds,
        )


def _rebuilt(given: dict[str, Any]) -> Guard:
    return Guard(**given)


class _Recorded:
    """The pass on one batch size as a CUDA graph, replayed on a stream of its own.

    The graphs of a guard share memory, and one stream keeps them apart whichever streams the callers use.
    """

    def __init__(
        self, run: OnePass, shape: tuple[int, ...], device: torch.device, pool: Any | None, *, claims: bool
    ) -> None:
        self.pool: tuple[Any, torch.cuda.Stream] = pool or (torch.cuda.graph_pool_handle(), torch.cuda.Stream())
        handle, stream = self.pool
        self._images = torch.full(shape, 0.5, device=device).contiguous(memory_format=torch.channels_last)
        self._own = torch.full(shape[:1], -1, device=device) if claims else None
        self._replay = Captured(lambda: run(self._images, self._own), pool=handle, stream=stream)

    def __call__(self, images: Tensor, own: Tensor | None) -> Outputs:
        current, (_, stream) = torch.cuda.current_stream(), self.pool
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._images[: len(images)].copy_(images)
            if self._own is not None and own is not None:
                self._own[: len(images)].copy_(own)
            embeddings, logits, scores, flagged, norms = (
                None if value is None else value[: len(images)].clone() for value in self._replay()
            )
        current.wait_stream(stream)
        if images.is_cuda:
            images.record_stream(stream)
        for value in (embeddings, logits, scores, flagged, norms):
            if value is not None:
                value.record_stream(current)
        assert embeddings is not None
        assert scores is not None
        assert flagged is not None
        assert norms is not None
        return embeddings, logits, scores, flagged, norms


def _threshold(given: float | None, detector: Detector) -> float:
    if given is None:
        if detector.thresholds is None:
            raise ArgumentError("threshold: expected a number, got None for a detector that is not calibrated")
        return detector.thresholds.at(detector.thresholds.usual_rate)
    if not math.isfinite(given):
        raise ArgumentError(f"threshold: expected a finite number, got {given}")
    return float(given)


def _joined(parts: Sequence[Outputs]) -> Outputs:
    embeddings, logits, scores, flagged, norms = zip(*parts, strict=True)
    return (
        torch.cat(embeddings),
        None if logits[0] is None else torch.cat(logits),
        torch.cat(scores),
        torch.cat(flagged),
        torch.cat(norms),
    )
