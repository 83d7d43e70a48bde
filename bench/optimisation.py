"""The attacks that L-BFGS-B solves against SciPy's L-BFGS-B, one image at a time, as every other code does it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from fastadv.attacks import Attack, ClassifyAs, Goal, Linf, Recipe, Rows
from fastadv.attacks.feature_goals import GalleryClass, MatchFeatures
from fastadv.attacks.gallery import Gallery
from fastadv.attacks.lbfgs_penalty import LBFGS
from fastadv.attacks.lbfgsb import LBFGSB
from fastadv.attacks.optimisation_catalog import knn_df
from fastadv.data import LFW
from fastadv.data.dealt_pairs import by_identity
from fastadv.engine import Engine, run
from fastadv.models import FaceModel, load, prepare

EPS, WIDE, MARGIN, SCALE = 5 / 255, 10 / 255, 0.01, 32.0
GREY = 255.0  # the unit of SciPy's variables where they are grey levels
WEIGHTS = "mobilefacenet_relu6_ms1m_arcface.safetensors"
# Of the DF attack, for the same distance to the guide; with rounded gradients it takes more of them.
SCIPY_EVALUATIONS, OUR_EVALUATIONS = 60, {"fp32": 45, "bf16": 55}
Floats = NDArray[np.float64]


class _Cosines(nn.Module):
    """A class head made of templates: scaled cosines."""

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.register_buffer("templates", nn.functional.normalize(templates, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return SCALE * nn.functional.normalize(features, dim=1) @ self.templates.T


@dataclass(frozen=True, kw_only=True)
class Faces:
    """One image for each of some identities, templates of all of them, and a model that knows them."""

    model: FaceModel
    gallery: Gallery
    images: Tensor
    labels: Tensor


def several_images(source: LFW) -> list[list[str]]:
    """The names of the images of each person with three or more."""
    return [names for names in by_identity(source.names).values() if len(names) >= 3]


def lfw_faces(data: Path, device: str, identities: int, attacked: int) -> Faces:
    """The first identities of LFW with three images: two make the template, one is attacked."""
    lfw = LFW(data / "lfw")
    people = [names[:3] for names in several_images(lfw)[:identities]]
    model = load("mobilefacenet", weights=data / "weights" / WEIGHTS, device=device).eval()
    known = torch.stack([lfw.load(n).image for names in people for n in names[1:]]).to(device)
    with torch.no_grad():
        embedded = torch.cat([model(part) for part in known.split(64)])
    labels = torch.arange(len(people))
    gallery = Gallery.from_embeddings(embedded, labels.repeat_interleave(2).to(device))
    model.head = _Cosines(gallery.templates).eval()
    images = torch.stack([lfw.load(names[0]).image for names in people[:attacked]]).to(device)
    return Faces(model=model, gallery=gallery, images=images, labels=labels[:attacked].to(device))


@dataclass(kw_only=True)
class _Objective:
    """``-objective`` of one image as SciPy wants it, and what it has seen on the way."""

    attack: Attack[Any]
    goal: Goal
    model: FaceModel
    image: Tensor
    weight: float = 1.0  # C of L-BFGS
    penalty: float = 0.0  # of the squared length
    stop: bool = False
    evaluations: int = 0
    best: float = np.inf
    result: Tensor | None = None
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        with torch.no_grad():
            reference = None if self.goal.references is None else self.model(self.goal.references)
        self.rows = Rows(reference=reference, label=self.goal.labels)

    def __call__(self, flat: Floats) -> tuple[float, Floats]:
        self.evaluations += 1
        leaf = torch.from_numpy(flat).to(self.image).view_as(self.image).requires_grad_(True)
        outputs = self.model.logits(leaf) if self.goal.output == "logits" else self.model(leaf)
        loss = -self.attack.objective(self.goal, outputs, self.rows, None).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        achieved = bool(self.goal.achieved(outputs, self.rows, self.attack.margin))
        delta = leaf.detach() - self.image
        length = float(delta.square().sum())
        value = self.weight * float(loss.detach()) + self.penalty * length
        rank = length if self.penalty else value
        if rank < self.best and (achieved or not self.penalty):
            self.best, self.result = rank, leaf.detach()
        if achieved and self.stop:
            self.result = leaf.detach()
            raise StopIteration
        total = self.weight * gradient + 2 * self.penalty * delta
        return value, total.flatten().double().cpu().numpy()


def _box(image: Tensor, eps: float) -> Floats:
    x = image.flatten().double().cpu().numpy()
    return np.stack([np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)], 1)


def _minimise(f: Callable[[Floats], tuple[float, Floats]], start: Floats, box: Floats, **options: float) -> Floats:
    from scipy.optimize import minimize  # here: an extra, which other benchmarks do not need

    try:
        return minimize(f, start, jac=True, method="L-BFGS-B", bounds=box, options=options).x
    except StopIteration:
        return start


def scipy_box(attack: LBFGSB, goal: Goal, model: FaceModel, image: Tensor, *, unit: float = 1.0) -> tuple[Tensor, int]:
    """What ``LBFGSB`` does, by SciPy, on one image ``(1, 3, H, W)``; its variables are ``unit`` times the pixels."""
    f = _Objective(attack=attack, goal=goal, model=model, image=image, stop=attack.stop_at_success)
    most = attack.evaluations or 15_000
    start = image.flatten().double().cpu().numpy()

    def scaled(flat: Floats) -> tuple[float, Floats]:
        value, gradient = f(flat / unit)
        return value, gradient / unit

    box = _box(image, attack.budget.eps) * unit
    _minimise(scaled, start * unit, box, maxiter=attack.steps, maxfun=most, ftol=0.0, gtol=0.0)
    assert f.result is not None
    return f.result, f.evaluations


def scipy_smallest(attack: LBFGS, goal: Goal, model: FaceModel, image: Tensor) -> tuple[Tensor, int]:
    """What ``LBFGS`` does, by SciPy: the same weights, each minimisation from the last one's point."""
    f = _Objective(attack=attack, goal=goal, model=model, image=image, penalty=1.0)
    point = image.flatten().double().cpu().numpy()
    f.penalty = 0.0
    loss, gradient = f(point)
    weight, low, high = 4 * loss / float(gradient @ gradient), 0.0, np.inf
    f.penalty, f.best = 1.0, np.inf
    for _ in range(attack.searches):
        f.weight = weight
        point = _minimise(f, point, _box(image, 1.0), maxiter=attack.steps_each, ftol=attack.tolerance, gtol=0.0)
        with torch.no_grad():
            outputs = model.logits(torch.from_numpy(point).to(image).view_as(image))
        if bool(goal.achieved(outputs, f.rows, attack.margin)):
            high = min(high, weight)
        else:
            low = max(low, weight)
        weight = (low + high) / 2 if np.isfinite(high) else weight * 10
    return (image if f.result is None else f.result), f.evaluations


Solver = Callable[[Any, Goal, FaceModel, Tensor], tuple[Tensor, int]]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One attack, by the engine and by SciPy, on the first faces.

    Attributes:
        name: What the table calls it.
        count: Faces.
        goal: Of the first ``count`` faces.
        ours: By the engine, for each precision.
        warm: The same with one step, to have every memory and primitive ready.
        theirs: What SciPy is told.
        solver: How.
    """

    name: str
    count: int
    goal: Goal
    ours: Mapping[str, Attack[Any]]
    warm: Attack[Any]
    theirs: Attack[Any]
    solver: Solver


def _cases(faces: Faces, quick: bool) -> list[_Case]:
    """SciPy's L-BFGS takes so long that it gets half of the faces."""
    few, half = len(faces.images), max(2, len(faces.images) // 2)
    guides, others = faces.images.roll(1, 0), faces.labels.roll(1)
    knn, wide = (knn_df(eps=eps, margin=MARGIN).attack for eps in (EPS, WIDE))
    theirs, *both = (
        LBFGSB(budget=Linf(EPS), evaluations=most // 3 if quick else most, tolerance=0.0)
        for most in (SCIPY_EVALUATIONS, *OUR_EVALUATIONS.values())
    )
    smallest = LBFGS(searches=3, steps_each=8) if quick else LBFGS()
    return [
        _Case(
            name="knn-df",
            count=few,
            goal=GalleryClass(gallery=faces.gallery, labels=others, guides=guides),
            ours=dict.fromkeys(OUR_EVALUATIONS, knn),
            warm=replace(knn, steps=1),
            theirs=knn,
            solver=scipy_box,
        ),
        _Case(
            name="knn-df, 10/255",
            count=few,
            goal=GalleryClass(gallery=faces.gallery, labels=others, guides=guides),
            ours=dict.fromkeys(OUR_EVALUATIONS, wide),
            warm=replace(wide, steps=1),
            theirs=wide,
            solver=scipy_box,
        ),
        _Case(
            name="df",
            count=few,
            goal=MatchFeatures(guides),
            ours=dict(zip(OUR_EVALUATIONS, both, strict=True)),
            warm=replace(theirs, steps=1),
            theirs=theirs,
            solver=scipy_box,
        ),
        _Case(
            name="l-bfgs",
            count=half,
            goal=_first(ClassifyAs(others), half),
            ours=dict.fromkeys(OUR_EVALUATIONS, smallest),
            warm=replace(smallest, searches=1, steps_each=1),
            theirs=smallest,
            solver=scipy_smallest,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One way through all images: seconds on the clock and of the processor, 8-bit images, mean evaluations."""

    seconds: float
    processor: float
    images: Tensor
    evaluations: float


def _by_scipy(case: _Case, model: FaceModel, images: Tensor) -> _Run:
    found, evaluations = [], []
    begin, used = time.perf_counter(), time.process_time()
    with threadpool_limits(1, user_api="blas"):
        for i in range(len(images)):
            result, count = case.solver(case.theirs, case.goal.row(i), model, images[i : i + 1])
            found.append(result)
            evaluations.append(count)
    seconds, processor = time.perf_counter() - begin, time.process_time() - used
    rounded = case.theirs.budget.round8(torch.cat(found), images)
    return _Run(seconds=seconds, processor=processor, images=rounded, evaluations=statistics.mean(evaluations))


def _by_engine(case: _Case, attack: Attack[Any], model: FaceModel, images: Tensor, engine: Engine) -> _Run:
    begin, used = time.perf_counter(), time.process_time()
    made = run(Recipe(attack), case.goal, model, images, engine=engine)
    seconds, processor = time.perf_counter() - begin, time.process_time() - used
    ticks = float(made.ticks.float().mean())
    return _Run(seconds=seconds, processor=processor, images=made.images.to(images.device), evaluations=ticks)


def _verdict(case: _Case, faces: Faces, images: Tensor, scipys: Tensor) -> dict[str, float]:
    """Share of successes and what is compared, on 8-bit images and in float32; lengths also against SciPy's images."""
    count = len(images)
    wanted, clean = faces.labels.roll(1)[:count], faces.images[:count]
    length, theirs = ((each - clean).flatten(1).norm(dim=1) for each in (images, scipys))
    found = {"median_l2": float(length.median()), "median_l2_ratio_to_scipy": float((length / theirs).median())}
    with torch.no_grad():
        embedded = faces.model(images)
        if case.name == "df":
            guide = faces.model(faces.images.roll(1, 0)[:count])
            distance = float((embedded - guide).norm(dim=1).median())
            return {"success": float("nan"), "median_distance": distance, **found}
        said = faces.gallery.vote(faces.gallery.distances(embedded), 1)
        if case.name == "l-bfgs":
            said = faces.model.logits(images).argmax(1)
        else:
            found["share_of_pixels_within_5"] = float(((images - clean).abs() * 255 <= 5.01).float().mean())
    return {"success": float((said == wanted).float().mean()), **found}


def lbfgsb(*, data: Path | None, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """Milliseconds an image, on the clock and of the processor, evaluations, success and result.

    SciPy runs once, over hundreds of evaluations an image; the engine, which is done in seconds, three times, of which
    the table has the median and the ends.
    """
    assert data is not None
    faces = lfw_faces(data, device, 20 if quick else 100, 2 if quick else 16)
    prepared = prepare(faces.model)
    rows: list[Mapping[str, Any]] = []
    for case in _cases(faces, quick):
        images = faces.images[: case.count]
        seen: dict[str, list[_Run]] = {}
        for name, model in (("SciPy, as written", faces.model), ("SciPy, prepared model", prepared)):
            case.solver(case.warm, case.goal.row(0), model, images[:1])
            seen[name] = [_by_scipy(case, model, images)]
        if case.name.startswith("knn-df"):
            levels = replace(case, solver=partial(scipy_box, unit=GREY))
            seen["SciPy, grey levels"] = [_by_scipy(levels, faces.model, images)]
        for precision in ("fp32", "bf16"):
            engine = Engine(batch=case.count, precision=precision)
            _by_engine(case, case.warm, faces.model, images, engine)
            runs = [
                _by_engine(case, case.ours[precision], faces.model, images, engine) for _ in range(1 if quick else 3)
            ]
            seen[f"engine, {precision}"] = runs
        (base,) = seen["SciPy, as written"]
        for name, runs in seen.items():
            times = [each.seconds for each in runs]
            middle, processor = statistics.median(times), statistics.median(each.processor for each in runs)
            rows.append(
                {
                    "attack": case.name,
                    "run": name,
                    "images": case.count,
                    "ms_per_image": 1e3 * middle / case.count,
                    "ms_min": 1e3 * min(times) / case.count,
                    "ms_max": 1e3 * max(times) / case.count,
                    "ratio_to_scipy": base.seconds / middle,
                    "processor_ms_per_image": 1e3 * processor / case.count,
                    "processor_ratio_to_scipy": base.processor / processor,
                    "evaluations": runs[-1].evaluations,
                    **_verdict(case, faces, runs[-1].images, base.images),
                }
            )
    return rows


def _first(goal: Goal, count: int) -> Goal:
    """The goal of the first images."""
    parts = {
        f.name: value[:count]
        for f in fields(goal)  # type: ignore[arg-type]
        if isinstance(value := getattr(goal, f.name), Tensor)
    }
    return replace(goal, **parts)  # type: ignore[type-var]
