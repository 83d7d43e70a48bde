"""C&W-L2 and DeepFool on real faces against the fastest peers, and against the published loops by hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bench import minimal_norm_by_hand as by_hand
from bench.optimisation import lfw_faces
from bench.peers import adv_lib, foolbox
from fastadv.attacks import Attack, Misclassify, Recipe
from fastadv.attacks.budget import Box
from fastadv.attacks.carlini_wagner import CarliniWagner
from fastadv.attacks.deepfool import DeepFool
from fastadv.data import LFW
from fastadv.engine import Engine, run
from fastadv.models import FaceModel

BATCH = 8
SEARCHES, STEPS = 5, 40  # of C&W for everyone
IDENTITIES, FEW = 158, 10
SLOW = 2.0  # a peer that took so many times the fastest one's time is not timed again

Row = Mapping[str, Any]
Run = Callable[[], tuple[Tensor, float]]


class _Counting(nn.Module):
    """Images to logits, as a peer gets them; counts images."""

    def __init__(self, model: FaceModel) -> None:
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.model.logits(images)


class _Unrounded(Box):
    """The pixel range, with the float image as the result."""

    def round8(self, x: Tensor, origin: Tensor) -> Tensor:
        return x


class _InFloat:
    """An attack whose results are not rounded: to compare float images, as the peers give them."""

    budget = _Unrounded()

    def __init__(self, attack: Attack[Any]) -> None:
        self._attack = attack

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attack, name)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Faces that a model identifies, and what is timed on them: a name, and images with evaluations an image."""

    attack: str
    model: FaceModel
    x: Tensor
    label: Tensor
    peers: Mapping[str, Run]
    ours: Mapping[str, Run]


def _ours(attack: Attack[Any], model: FaceModel, x: Tensor, label: Tensor) -> tuple[Tensor, float]:
    made = run(Recipe(_InFloat(attack)), Misclassify(label), model, x, engine=Engine(batch=min(BATCH, len(x))))
    return made.images, float(made.ticks.double().mean())


def _theirs(call: Callable[..., Tensor], model: FaceModel, x: Tensor, label: Tensor) -> tuple[Tensor, float]:
    counting = _Counting(model).eval()
    made = torch.cat([call(counting, *part) for part in zip(x.split(BATCH), label.split(BATCH), strict=True)])
    return made.detach().cpu(), counting.seen / len(x)


def _yardsticks(attack: str, *peers: ModuleType) -> list[ModuleType]:
    """The loop by hand, and the peers that can be imported here."""
    for peer in peers:
        if peer.missing():
            print(f"{attack}: without {peer.NAME} ({peer.missing()})")
    return [by_hand, *(peer for peer in peers if not peer.missing())]


def _faces(data: Path, device: str, identities: int, count: int) -> tuple[FaceModel, Tensor, Tensor]:
    """A model with a class for each identity, so many faces of theirs, and the classes that it gives them."""
    model = lfw_faces(data, device, identities, 1).model
    lfw = LFW(data / "lfw")
    by_name: dict[str, list[str]] = {}
    for name in lfw.names:
        by_name.setdefault(name.rpartition("/")[0], []).append(name)
    people = [names for names in by_name.values() if len(names) >= 3][:identities]
    others = [name for names in people for name in (names[0], *names[3:])]  # the templates are of the second and third
    chosen = [others[i * len(others) // count] for i in range(count)]
    x = torch.stack([lfw.load(name).image for name in chosen]).to(device)
    with torch.no_grad():
        label = torch.cat([model.logits(part).argmax(1) for part in x.split(BATCH)])
    return model, x, label


def _cw_case(data: Path, device: str, quick: bool) -> Case:
    model, x, label = _faces(data, device, IDENTITIES, 4 if quick else BATCH)
    searches, steps, few = (2, 20, 20) if quick else (SEARCHES, STEPS, 60)
    attacks = (CarliniWagner(search_steps=searches, inner_steps=steps), CarliniWagner(search_steps=1, inner_steps=few))
    peer = _yardsticks("cw-l2", adv_lib)[-1]  # the loop by hand only where there is no other: it does the same
    call = partial(peer.carlini_wagner, searches=searches, steps=steps)
    peers = {f"{peer.NAME}, {searches} x {steps}": partial(_theirs, call, model, x, label)}
    ours = {f"fastadv, {a.search_steps} x {a.inner_steps}": partial(_ours, a, model, x, label) for a in attacks}
    return Case(attack="cw-l2", model=model, x=x, label=label, peers=peers, ours=ours)


def _deepfool_case(data: Path, device: str, quick: bool, identities: int) -> Case:
    model, x, label = _faces(data, device, identities, 4 if quick else 3 * BATCH)
    # adv-lib takes the gradients of all classes: for few only
    named = (foolbox,) if identities > FEW else (adv_lib, foolbox)
    peers = {p.NAME: partial(_theirs, p.deepfool, model, x, label) for p in _yardsticks("deepfool", *named)}
    back = DeepFool(candidates=1, returns=1)
    attacks = {
        "fastadv, as published": DeepFool(),
        "fastadv, 1 candidate, 1 return": back,
        "fastadv, the same, overshoot 0.1": replace(back, overshoot=0.1),
    }
    ours = {name: partial(_ours, attack, model, x, label) for name, attack in attacks.items()}
    return Case(attack=f"deepfool, {identities} classes", model=model, x=x, label=label, peers=peers, ours=ours)


def _measured(case: Case, images: Tensor, rounded: Tensor) -> dict[str, float]:
    """Success and length of float images and of 8-bit ones."""
    found: dict[str, float] = {}
    for suffix, made in (("", images), ("_8bit", rounded)):
        made = made.to(case.x.device)
        with torch.no_grad():
            wrong = case.model.logits(made).argmax(1) != case.label
        length = (made - case.x).flatten(1).norm(dim=1)[wrong]
        found[f"success{suffix}"] = float(wrong.float().mean())
        found[f"l2_median{suffix}"] = float(length.median()) if len(length) else float("nan")
        found[f"l2_mean{suffix}"] = float(length.mean()) if len(length) else float("nan")
    return found


def _timed(case: Case, device: str, repeats: int) -> tuple[dict[str, float], dict[str, tuple[Tensor, float]]]:
    """The median seconds of each run, and what it made; in turns, so that a drift of the machine meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in (*case.peers, *case.ours)}
    outcome: dict[str, tuple[Tensor, float]] = {}
    for _ in range(repeats):
        for name, function in {**case.peers, **case.ours}.items():
            fastest = min((min(times[n]) for n in case.peers if times[n]), default=float("inf"))
            if name in case.peers and times[name] and min(times[name]) > SLOW * fastest:
                continue
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            begin = time.perf_counter()
            outcome[name] = function()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(spent) for name, spent in times.items()}, outcome


def _rows(case: Case, device: str, repeats: int) -> list[Row]:
    spent, outcome = _timed(case, device, repeats)
    fastest = min(spent[name] for name in case.peers)
    rows: list[Row] = []
    for name, seconds in spent.items():
        images, evaluations = outcome[name]
        rounded = Box().round8(images, case.x.cpu()) if name in case.ours else torch.round(images * 255) / 255
        rows.append(
            {
                "attack": case.attack,
                "run": name,
                "images": len(case.x),
                "ms_per_image": 1000 * seconds / len(case.x),
                "ratio_to_fastest_peer": fastest / seconds,
                "evaluations_per_image": evaluations,
                **_measured(case, images, rounded),
            }
        )
    return rows


def minimal_norm(*, data: Path | None, device: str, quick: bool) -> list[Row]:
    """Milliseconds an image, success and L2 of the smallest perturbations, with the same faces and network for all.

    An evaluation of a peer is a forward pass, of ours one with its backward pass. The lengths are of float images;
    rounded to 8 bits (by us outwards, by the peers to the nearest) they are given too.
    """
    assert data is not None
    deepfool = [_deepfool_case(data, device, quick, identities) for identities in (FEW, IDENTITIES)]
    rows = [row for case in deepfool for row in _rows(case, device, 1 if quick else 3)]
    return rows + _rows(_cw_case(data, device, quick), device, 1)
