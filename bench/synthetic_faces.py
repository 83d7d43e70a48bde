"""What the shipped networks reach on synthetic people that they never saw, clean and attacked.

    python -m bench.synthetic_faces --runs RUNS --out bench/results/synthetic-training-DATE.json

RUNS holds one training folder a network, named after it (docs/training.md); its training.json is copied into the
result.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv import Engine, Evade, Impersonate, attacks, run
from fastadv.data import SyntheticFaces
from fastadv.data.provenance import versions
from fastadv.models import FaceModel, fixed_batches, load, prepare, shipped_names
from fastadv.recognition import VerificationReport, cosine_scores, evaluate

PEOPLE = SyntheticFaces(identities=300, per_identity=8, seed=77)
ATTACKS = {"ffm": attacks.ffm, "pgd": attacks.pgd, "fim": attacks.fim, "m-fim": attacks.m_fim}


class Faces:
    """Pairs of unseen people, drawn once."""

    def __init__(self, pairs: int) -> None:
        self.pairs = PEOPLE.pairs(pairs, seed=1)
        self.same = np.array([pair.same for pair in self.pairs])
        self.folds = np.array([pair.fold for pair in self.pairs])
        names = sorted({name for pair in self.pairs for name in (pair.first, pair.second)})
        place = {name: k for k, name in enumerate(names)}
        begin = time.perf_counter()
        with PEOPLE.stream(names) as faces:
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


def attacked(faces: Faces, limits: dict[str, float], count: int) -> dict[str, Any]:
    """Share of right decisions with the first image of each pair moved, by attack, surrogate and target."""
    halves = [np.flatnonzero(faces.same == kind)[:: int(len(faces.pairs) / count)] for kind in (False, True)]
    chosen = torch.from_numpy(np.concatenate(halves))
    negative, same = len(halves[0]), faces.same[chosen.numpy()]
    first, second = faces.images[faces.first[chosen]], faces.images[faces.second[chosen]]

    def right(target: str, images: Tensor) -> float:
        model = load(target)
        scores = (embed(model, images) * embed(model, second)).sum(1).numpy()
        return round(float(((scores >= limits[target]) == same).mean()), 4)

    found: dict[str, Any] = {"pairs": len(chosen), "clean": {name: right(name, first) for name in limits}}
    for attack, make in ATTACKS.items():
        for surrogate in limits:
            model, limit = load(surrogate), limits[surrogate]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--attacked", type=int, default=200)
    arguments = parser.parse_args()
    faces = Faces(arguments.pairs)
    result: dict[str, Any] = {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "faces_per_second": round(faces.drawn_per_second, 1),
        "pixels": pixels(faces),
        "networks": {},
    }
    limits: dict[str, float] = {}
    for name in shipped_names():
        model = load(name)
        report = faces.report(embed(model, faces.images))
        limits[name] = report.eer_threshold
        result["networks"][name] = {
            "bytes": len((files("fastadv") / "weights" / f"{name}.safetensors").read_bytes()),
            "parameters": sum(p.numel() for p in model.backbone.parameters()),
            "verification": asdict(report),
            "training": json.loads((arguments.runs / name / "training.json").read_text()),
        }
        print(name, report.accuracy, flush=True)
    result["attacked"] = attacked(faces, limits, arguments.attacked)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
