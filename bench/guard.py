"""What a guard adds to the bare model's forward pass, and what the same adds when written by hand with hooks."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure import synchronise
from fastadv.detection import Architecture, Detector, LayerTap, Network, Trajectory, centroids
from fastadv.detection.guard import Guard
from fastadv.detection.taps import EMBEDDING, submodules
from fastadv.models import FaceModel, load, prepare
from fastadv.models.capture import Captured

CLASSES = 158  # people with ten images or more in LFW
BATCHES = (1, 32)
_SECONDS = {"cpu": 60.0, "cuda": 15.0}  # of a network, detector and batch size: p99 wants many calls
_TOLERANCE = 1e-3
_HIDDEN = 100  # units for each distance

Call = Callable[[Tensor], Any]
PARTS = ("checks", "network", "between", "score", "verdicts")
"""Of a guard's call: before the network, the tapped network, up to the score, the score, and what follows."""


def made_up_detector(
    model: FaceModel, *, kind: str, metric: str = "l2", reading: str = "raw", classes: int = CLASSES
) -> Detector:
    """A detector of the usual size with random weights: its time is that of a fitted one."""
    tap = LayerTap(model=model, layers=(*model.layers, EMBEDDING) if reading == "relative" else None)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((16, 3, *model.input_size), generator=generator)
    with torch.no_grad():
        few = tap(images.to(model.device)).values
        values = [
            v[torch.arange(classes) % 16] * (1 + 0.1 * torch.randn(classes, v.shape[1], generator=generator).to(v))
            for v in few
        ]
        if tap.names[-1] == EMBEDDING:  # far apart, as those of people are and those of noise are not
            values[-1] = F.normalize(torch.randn(values[-1].shape, generator=generator)).to(values[-1])
        labels = torch.arange(classes, device=model.device)
        batch = (values, labels)
        names = tuple(f"person {i}" for i in range(classes))
        made = centroids([batch], layers=tap.names, classes=names, model=model.name)
        trajectory = Trajectory(representatives=made, metric=metric, reading=reading)
        embedded = trajectory(few)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = _HIDDEN * len(trajectory.metrics)
        made_up = Architecture(kind=kind, layers=len(tap.names), width=trajectory.shape[1], hidden=hidden)
        network = Network(made_up).to(model.device)
    network.mean.copy_(embedded.mean(0))
    network.scale.copy_(embedded.std(0).clamp(min=1e-3))
    network.eval().requires_grad_(False)
    with torch.no_grad():
        scores = Detector(trajectory=trajectory, network=network).score(few)
    return Detector(trajectory=trajectory, network=network).calibrated(scores[:8], scores[8:])


def by_hand(model: FaceModel, detector: Detector, *, mode: str = "use_mm_for_euclid_dist_if_necessary") -> Call:
    """The same as one would write it: hooks that keep the outputs, ``mean``, ``cdist`` a layer, the network.

    ``mode`` is that of ``cdist``; the default computes distances by a matrix product, which rounds more.
    """
    kept: dict[str, Tensor] = {}
    for name in submodules(detector.layers):
        module = model.backbone.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: kept.__setitem__(name, o))
    vectors = detector.trajectory.representatives.vectors

    def call(images: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = model(images)
        kept[EMBEDDING] = embeddings
        pooled = [kept[name].mean((2, 3)) if kept[name].dim() == 4 else kept[name] for name in detector.layers]
        read = []
        for metric in detector.trajectory.metrics:
            if metric == "l2":
                path = [torch.cdist(p, c, compute_mode=mode) for p, c in zip(pooled, vectors, strict=True)]
            else:
                units = [(F.normalize(p), F.normalize(c)) for p, c in zip(pooled, vectors, strict=True)]
                exact = "donot" in mode
                path = [0.5 * torch.cdist(p, c, compute_mode=mode) ** 2 if exact else 1 - p @ c.T for p, c in units]
            read.append(torch.stack(_relative(path) if detector.trajectory.relative else path, dim=1))
        return embeddings, detector.network(torch.cat(read, dim=2))

    return call


def _relative(path: list[Tensor]) -> list[Tensor]:
    """Five columns of each layer's distances, relative to the class nearest in the last layer."""
    own = path[-1].argmin(1, keepdim=True)
    found = []
    for distances in path:
        mine, others = distances.gather(1, own), distances.scatter(1, own, torch.inf)
        nearest, count = others.amin(1, keepdim=True), distances.shape[1] - 1
        rank = (others < mine).sum(1, keepdim=True) / count
        mean = (distances.sum(1, keepdim=True) - mine) / count
        found.append(torch.cat([mine, nearest, mine / (mine + nearest), rank, mine - mean], 1))
    return found


def run(*, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """Bare, guarded and by hand, in random order on the same images: a drift of the machine meets all alike."""
    rows: list[Mapping[str, Any]] = []
    usual = ("mlp", "relative", "l2+cosine")
    cases = (("mlp", "raw", "l2"), ("mlp", "relative", "l2"), usual, ("lstm", "raw", "l2"), ("lstm", "relative", "l2"))
    networks = (("mobilefacenet", cases), ("iresnet50", (usual,)))
    limit = _SECONDS[device.split(":")[0]]
    for name, kinds in networks[:1] if quick else networks:
        model = load(name, random_weights_seed=0, device=device)
        for kind, reading, metric in kinds:
            detector = made_up_detector(model, kind=kind, reading=reading, metric=metric)
            for batch in BATCHES:
                rows += _case(model, detector, batch, device=device, seconds=2.0 if quick else limit)
    return rows


def _case(model: FaceModel, detector: Detector, batch: int, *, device: str, seconds: float) -> list[Mapping[str, Any]]:
    images = torch.rand((batch, 3, *model.input_size), generator=torch.Generator().manual_seed(1)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    guard = Guard(model=model, detector=detector)
    parts = None if device.startswith("cuda") else _Parts(guard)
    bare, hooked = prepare(model), by_hand(prepare(model), detector)
    with torch.inference_mode():
        exact = by_hand(prepare(model), detector, mode="donot_use_mm_for_euclid_dist")
        found, (embeddings, scores) = guard(images), exact(images)
        for ours, theirs in ((found.embeddings, embeddings), (found.scores, scores)):
            error = float((ours - theirs).norm() / theirs.norm())
            if not error <= _TOLERANCE:
                raise AssertionError(f"the guard and the composition by hand differ by {error:.2g}")
        calls: dict[str, Call] = {"bare": bare, "guard": guard if parts is None else parts, "by hand": hooked}
        if device.startswith("cuda"):
            calls |= {"bare, captured": _captured(bare, images), "by hand, captured": _captured(hooked, images)}
        times = _in_turn(calls, images, device, seconds)
    rows = []
    for label, spent in times.items():
        against = times["bare, captured" if "bare, captured" in times else "bare"]
        middle, far = (_quantile(against, q) for q in (0.5, 0.99))
        rows.append(
            {
                "model": model.name,
                "detector": detector.network.architecture.kind,
                "reading": detector.trajectory.reading,
                "metric": detector.trajectory.metric,
                "batch": batch,
                "run": label,
                "ms_p50": 1e3 * _quantile(spent, 0.5),
                "ms_p99": 1e3 * _quantile(spent, 0.99),
                "adds_p50_percent": 100 * (_quantile(spent, 0.5) / middle - 1),
                "adds_p50_interval": interval(spent, against, 0.5),
                "adds_p99_percent": 100 * (_quantile(spent, 0.99) / far - 1),
                "adds_p99_interval": interval(spent, against, 0.99),
                # call by call against the bare one of the same turn: what a noisy machine leaves of the difference
                "adds_paired_percent": 100
                * statistics.median(a - b for a, b in zip(spent, against, strict=True))
                / middle,
                "calls": len(spent),
                **(parts.medians() if parts is not None and label == "guard" else {}),
            }
        )
    return rows


class _Parts:
    """Calls a guard, and notes how long its parts take: in the calls that are timed, so that caches are as they are."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._marks, self._found = guard, list[float](), list[tuple[float, ...]]()
        one = guard._pass
        object.__setattr__(one.model, "features", self._marked(one.model.features))
        one.score = self._marked(one.score)

    def _marked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            self._marks.append(time.perf_counter())
            found = function(*given)
            self._marks.append(time.perf_counter())
            return found

        return call

    def __call__(self, images: Tensor) -> Any:
        self._marks[:] = [time.perf_counter()]
        found = self._guard(images)
        self._marks.append(time.perf_counter())
        self._found.append(tuple(np.diff(self._marks)))
        return found

    def medians(self) -> dict[str, float]:
        """Milliseconds of each part."""
        middle = 1e3 * np.median(self._found, axis=0)
        return {f"ms_{part}": float(value) for part, value in zip(PARTS, middle, strict=True)}


def _captured(call: Call, images: Tensor) -> Call:
    replay = Captured(lambda: call(images))
    return lambda images: replay()


def _in_turn(calls: Mapping[str, Call], images: Tensor, device: str, seconds: float) -> dict[str, list[float]]:
    for call in calls.values():
        for _ in range(3):
            call(images)
    found: dict[str, list[float]] = {label: [] for label in calls}
    gc.collect()
    stop, least, draw = time.perf_counter() + seconds, 5, np.random.default_rng(0)
    while time.perf_counter() < stop or len(found["bare"]) < least:
        # a call meets the caches as the one before it left them
        for label, call in (list(calls.items())[k] for k in draw.permutation(len(calls))):
            synchronise(device)
            begin = time.perf_counter()
            call(images)
            synchronise(device)
            found[label].append(time.perf_counter() - begin)
    return found


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def interval(spent: list[float], against: list[float], share: float) -> tuple[float, float]:
    """The 95 % interval of what a quantile adds, in percent: a bootstrap over the turns, each with a call of both."""
    both, draw = np.asarray([spent, against]), np.random.default_rng(0)
    added = []
    for _ in range(2000):
        middle = np.quantile(both[:, draw.integers(both.shape[1], size=both.shape[1])], share, axis=1)
        added.append(100 * (middle[0] / middle[1] - 1))
    low, high = np.quantile(added, (0.025, 0.975))
    return float(low), float(high)
