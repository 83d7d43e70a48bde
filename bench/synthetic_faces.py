"""What the shipped networks reach on synthetic people that they never saw, beside real networks on LFW.

    python -m bench.synthetic_faces --runs RUNS --data DATA --out bench/results/synthetic-faces-DATE.json

RUNS holds one training folder a network, named after it (docs/training.md); its training.json is copied into the
result. DATA holds lfw/ and weights/; without it the synthetic half is measured alone. The same three questions in both
worlds: what an attack does to the network that it was made on, what it does to the others, and whether a trajectory
detector, fitted on other people, sees it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv import Engine, Evade, Impersonate, attacks, run
from fastadv.core.provenance import versions
from fastadv.data import LFW, FaceSource, Pair, SyntheticFaces
from fastadv.detection import Examples, FitConfig, LayerTap, Trajectory, auc_interval, centroids, fit_network
from fastadv.models import FaceModel, fixed_batches, load, prepare, shipped_names
from fastadv.recognition import VerificationReport, cosine_scores, evaluate

PEOPLE = SyntheticFaces(identities=300, per_identity=8, seed=77)
CROWD = SyntheticFaces(identities=60, per_identity=20, seed=78)  # for detection: many images of each
ATTACKS = {"ffm": attacks.ffm, "pgd": attacks.pgd, "fim": attacks.fim, "m-fim": attacks.m_fim}
REAL = {
    "mobilefacenet": "mobilefacenet_relu6_ms1m_arcface.safetensors",
    "edgeface_xs": "edgeface_xs_cosface.safetensors",
    "mobileface_v2": "mobileface_v2.safetensors",
}
IDENTITIES, IMAGES = 60, 20  # of the detection part; half of the images are known, half of the people are fitted on


class Faces:
    """Pairs of one world with the networks that verify them, drawn once."""

    def __init__(self, source: FaceSource, pairs: Sequence[Pair], models: Mapping[str, FaceModel]) -> None:
        self.pairs, self.models = pairs, models
        self.same = np.array([pair.same for pair in self.pairs])
        self.folds = np.array([pair.fold for pair in self.pairs])
        names = sorted({name for pair in self.pairs for name in (pair.first, pair.second)})
        place = {name: k for k, name in enumerate(names)}
        begin = time.perf_counter()
        with source.stream(names) as faces:
            self.images = torch.stack([face.image for face in faces])
        self.drawn_per_second = len(names) / (time.perf_counter() - begin)
        self.first = torch.tensor([place[pair.first] for pair in self.pairs])
        self.second = torch.tensor([place[pair.second] for pair in self.pairs])

    def report(self, rows: Tensor) -> VerificationReport:
        scores = cosine_scores(rows[self.first].numpy(), rows[self.second].numpy())
        return evaluate(scores, self.same, self.folds)


def embed(model: FaceModel, images: Tensor) -> Tensor:
    return fixed_batches(prepare(model), images.contiguous(memory_format=torch.channels_last), 32)


def pixels(faces: Faces) -> dict[str, float | None]:
    flat = faces.images.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    distance = (flat[faces.first] - flat[faces.second]).norm(dim=1).numpy()
    return {
        "cosine": faces.report(flat).accuracy,
        "cosine, mean removed": faces.report(centred).accuracy,
        "distance": evaluate(-distance, faces.same, faces.folds).accuracy,
    }


def attacked(faces: Faces, limits: Mapping[str, float], count: int) -> dict[str, Any]:
    """Share of right decisions with the first image of each pair moved, by attack, surrogate and target."""
    halves = [np.flatnonzero(faces.same == kind) for kind in (False, True)]
    halves = [half[np.arange(count // 2) * len(half) // (count // 2)] for half in halves]
    chosen = torch.from_numpy(np.concatenate(halves))
    negative, same = len(halves[0]), faces.same[chosen.numpy()]
    first, second = faces.images[faces.first[chosen]], faces.images[faces.second[chosen]]
    theirs = {name: embed(faces.models[name], second) for name in limits}

    def right(target: str, images: Tensor) -> float:
        scores = (embed(faces.models[target], images) * theirs[target]).sum(1).numpy()
        return round(float(((scores >= limits[target]) == same).mean()), 4)

    found: dict[str, Any] = {"pairs": len(chosen), "clean": {name: right(name, first) for name in limits}}
    for attack, make in ATTACKS.items():
        for surrogate in limits:
            model, limit = faces.models[surrogate], limits[surrogate]
            begin = time.perf_counter()
            towards = Impersonate(second[:negative], threshold=limit)
            away = Evade(references=second[negative:], threshold=limit)
            parts = ((towards, first[:negative]), (away, first[negative:]))
            moved = torch.cat([run(make(), goal, model, x, engine=Engine(batch=8)).images for goal, x in parts])
            seconds = time.perf_counter() - begin
            row = {target: right(target, moved) for target in limits}
            found.setdefault(attack, {})[surrogate] = {**row, "pairs_per_second": round(len(chosen) / seconds, 1)}
            print(attack, surrogate, row, flush=True)
    return found


def detected(source: FaceSource, names: Sequence[str], model: FaceModel) -> dict[str, Any]:
    """AUC of a trajectory detector on FIM images of people whose attacks it never saw.

    Half of each person's images make the centroids; the other half are natural examples, and are attacked to be taken
    for the next person. The detector is fitted on half of the people and tested on the other half.
    """
    with source.stream(names) as stream:
        images = torch.stack([face.image for face in stream])
    person = torch.arange(len(names)) // IMAGES
    known = torch.arange(len(names)) % 2 == 0
    tap = LayerTap(model=prepare(model))
    half, labels = images[~known], person[~known]
    next_one = torch.roll(half, -IMAGES // 2, 0)
    moved = run(attacks.fim(), Impersonate(next_one, threshold=0.999), model, half, engine=Engine(batch=16)).images

    def values(batch: Tensor) -> list[Tensor]:
        parts = []
        with torch.no_grad():
            for x in batch.contiguous(memory_format=torch.channels_last).split(20):
                parts.append(tap(x).values)
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    classes = tuple(str(k) for k in range(IDENTITIES))
    made = centroids([(values(images[known]), person[known])], layers=tap.names, classes=classes, model=model.name)
    found: dict[str, Any] = {"natural": len(half), "attacked": len(half), "attack": "fim, 8/255"}
    for metric in ("l2", "cosine"):
        trajectory = Trajectory(representatives=made, metric=metric)
        with torch.no_grad():
            paths = torch.cat([trajectory(values(x)) for x in (half, moved)])
        people = labels.repeat(2)
        groups = (torch.arange(len(paths)) >= len(half)).long()
        fitted = people % 2 == 0
        for kind in ("mlp", "lstm"):
            config = FitConfig(kind=kind, epochs=60, seed=1)
            network = fit_network(
                config, Examples(embeddings=paths[fitted], groups=groups[fitted], attacks=("fim",))
            ).network
            with torch.no_grad():
                scores = network(paths[~fitted])
            left = groups[~fitted].bool()
            area = auc_interval(scores[~left], scores[left])
            found[f"{kind}, {metric}"] = asdict(area)
    print(model.name, found, flush=True)
    return found


def world(faces: Faces, source: FaceSource, names: Sequence[str], detects: str, count: int) -> dict[str, Any]:
    """The three questions."""
    reports = {name: faces.report(embed(model, faces.images)) for name, model in faces.models.items()}
    limits = {name: report.eer_threshold for name, report in reports.items()}
    print({name: report.accuracy for name, report in reports.items()}, flush=True)
    return {
        "verification": {name: asdict(report) for name, report in reports.items()},
        "attacked": attacked(faces, limits, count),
        "detected": {"network": detects, **detected(source, names, faces.models[detects])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--attacked", type=int, default=200)
    arguments = parser.parse_args()
    ours = {name: load(name) for name in shipped_names()}
    faces = Faces(PEOPLE, PEOPLE.pairs(arguments.pairs, seed=1), ours)
    result: dict[str, Any] = {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "faces_per_second": round(faces.drawn_per_second, 1),
        "pixels": pixels(faces),
        "networks": {
            name: {
                "bytes": len((files("fastadv") / "weights" / f"{name}.safetensors").read_bytes()),
                "parameters": sum(p.numel() for p in model.backbone.parameters()),
                "training": json.loads((arguments.runs / name / "training.json").read_text()),
            }
            for name, model in ours.items()
        },
        "synthetic": world(faces, CROWD, CROWD.names, "synth-resnet", arguments.attacked),
    }
    if arguments.data is not None:
        lfw = LFW(arguments.data / "lfw")
        models = {name: load(name, arguments.data / "weights" / file) for name, file in REAL.items()}
        pairs = [pair for pair in lfw.pairs if pair.fold in (0, 1)]
        listed = (arguments.data / "lfw" / "subsets" / "ids10_cap20.txt").read_text().split()
        people: dict[str, list[str]] = {}
        for line in listed:
            people.setdefault(line.split("/")[0], []).append(line.rpartition(".")[0])
        many = [n for names in people.values() if len(names) >= IMAGES for n in names[:IMAGES]][: IDENTITIES * IMAGES]
        result["lfw"] = world(Faces(lfw, pairs, models), lfw, many, "mobilefacenet", arguments.attacked)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
