"""The natural images that decide a detection rate: ``python -m bench.highest_naturals --out FILE ... STUDY ...``.

A study of ``fastadv detect evaluate`` measures detection rates at 1 % false alarms, where few natural images set the
threshold. This names them, with what the network and the detector make of them, and measures the rates without them: a
sensitivity, not a result. Attacked images are read from the study; give a copy, as its logs name the software.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from bench.about import header
from fastadv.attacks.spec import parse_attack
from fastadv.core.statistics import tar_at_far
from fastadv.detection import Detector, explain, images_for, load_detector
from fastadv.runs.inputs import open_faces_of, open_model
from fastadv.studies.detection.attacks import AttackedImages, made_and_read
from fastadv.studies.detection.features import Features, scores_of
from fastadv.studies.detection.fit import fitted_cells
from fastadv.studies.detection.measure import labelled
from fastadv.studies.detection.natural import aside
from fastadv.studies.detection.plan import Selection, people_of, read_names
from fastadv.studies.detection.setting import Setting, kind, look
from fastadv.studies.detection.study import read_study, reopen

RATE, HIGHEST, LAYERS, DRAWS, WITHIN = 0.01, 5, 3, 2000, (2.0, 1.5)
WHAT = (
    "The unchanged natural test images with the highest scores in the studies of detect-lfw-people, and the detection "
    "rates at 1 % false alarms with and without the two highest: rates without them are a sensitivity, not a result"
)
Scored = tuple[Sequence[str], Tensor]  # names and scores of images


def rank(images: int) -> int:
    """Which of the highest natural scores is the threshold: the first that must not be flagged."""
    return int(RATE * images + 1e-9) + 1


def without(scored: Scored, left_out: Iterable[str]) -> Scored:
    """The images but those with these names, or of these people."""
    out = set(left_out)
    kept = [k for k, name in enumerate(scored[0]) if not out & {name, name.rpartition("/")[0]}]
    return [scored[0][k] for k in kept], scored[1][kept]


def rates(calm: Scored, groups: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """The threshold, and the mean detection rate of each group of attacks."""
    found = {
        name: float(np.mean([tar_at_far(*labelled(calm[1], scores), RATE) for _, scores in attacks]))
        for name, attacks in groups.items()
    }
    highest = calm[1].sort(descending=True).values
    return {"natural": len(highest), "score_that_decides": float(highest[rank(len(highest)) - 1]), **found}


def sensitivity(calm: Scored, further: Scored, groups: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """The rates of all images, without the two highest or their people, and with further natural images."""
    two = [calm[0][k] for k in calm[1].argsort(descending=True)[:2].tolist()]
    people = people_of(two)
    fewer = {name: [without(attack, people) for attack in attacks] for name, attacks in groups.items()}
    return {
        "all": rates(calm, groups),
        "without_the_two_images": rates(without(calm, two), groups),
        "without_their_people": rates(without(calm, people), fewer),
        "with_unchanged_sources": rates(([*calm[0], *further[0]], torch.cat([calm[1], further[1]])), groups),
    }


def decided_by_highest(calm: Scored, count: int = 2) -> float:
    """Share of bootstrap draws of people in which one of the highest scores is the threshold at ``RATE``."""
    order = calm[1].argsort(descending=True).tolist()
    persons, person = np.unique(np.asarray(people_of(calm[0]))[order], return_inverse=True)
    random = np.random.Generator(np.random.Philox(key=0))
    times = random.multinomial(len(persons), np.full(len(persons), 1 / len(persons)), size=DRAWS)[:, person]
    wanted = np.array([rank(int(images)) for images in times.sum(1)])
    return float((times[:, :count].sum(1) >= wanted).mean())


def rate_interval(images: int) -> tuple[float, float]:
    """The 95 % interval of the false-alarm rate, on new images, of the threshold that so many independent ones set."""
    low, high = (float(betaincinv(rank(images), images + 1 - rank(images), share)) for share in (0.025, 0.975))
    return low, high


def described(setting: Setting, detector: Detector, natural: Features, scores: Tensor) -> list[dict[str, Any]]:
    """What network and detector make of the images with the highest scores."""
    trajectory, thresholds = detector.trajectory, detector.thresholds
    classes = trajectory.representatives.classes
    own = trajectory.own_of(natural.predicted)
    values = natural.at(detector.layers)
    alone = [slice(k, k + 1) for k in range(len(natural))]
    shares = [explain(detector, [v[k] for v in values], None if own is None else own[k]) for k in alone]
    by_layer = torch.tensor([share.by_layer for share in shares])
    above = by_layer - by_layer.median(0).values
    means = torch.nn.functional.normalize(trajectory.representatives.vectors[-1].cpu(), dim=1)
    similar = natural.embeddings @ means.T
    person = torch.tensor([classes.index(name) for name in people_of(natural.names)])[:, None]
    to_own = similar.gather(1, person)[:, 0]
    to_other, other = similar.scatter(1, person, -2).max(1)
    p_values = None if thresholds is None else thresholds.p_values(scores)
    return [
        {
            "name": natural.names[k],
            "score": float(scores[k]),
            "p_value": None if p_values is None else float(p_values[k]),
            "predicted": setting.classes[int(natural.predicted[k])],
            "right": bool(setting.right(natural)[k]),
            "similarity_to_own_mean": float(to_own[k]),
            "similarity_rank_from_lowest": int((to_own < to_own[k]).sum()) + 1,
            "similarity_to_nearest_other_mean": float(to_other[k]),
            "nearest_other": classes[int(other[k])],
            "margin_rank_from_lowest": int((to_own - to_other < to_own[k] - to_other[k]).sum()) + 1,
            "layers_above_median": {
                detector.layers[j]: float(above[k, j]) for j in above[k].argsort(descending=True)[:LAYERS].tolist()
            },
        }
        for k in scores.argsort(descending=True)[:HIGHEST].tolist()
    ]


def row(folder: Path, data: Path, names: Path, weights: Path) -> dict[str, Any]:
    """One study.

    Raises:
        ValueError: A detection rate is not the one of ``evaluation.json``.
    """
    found, study = json.loads((folder / "evaluation.json").read_text()), read_study(folder)
    model = open_model(study["config"]["model"], weights / study["shown"]["weights"].partition(" ")[0])
    config, setting = reopen(folder, Selection(open_faces_of(model, data), read_names(names)), model)
    clean, best = look(setting), found["best"]
    detectors = {file.stem: load_detector(file) for file in sorted((folder / "detectors").glob("*.safetensors"))}
    seen = fitted_cells(config, setting, clean)[0]
    unseen = made_and_read(setting, clean, [parse_attack(a) for a in found["config"]["unseen"]], (), parts=("test",))[0]
    natural = clean.natural.of(setting.splits.natural["test"])
    calm = {label: scores_of(detector, natural) for label, detector in detectors.items()}
    groups: dict[str, list[Scored]] = {}
    for cell in (*seen, *unseen):
        attacked = cell.part(aside(setting, "test"))
        if attacked is not None:
            scores = scores_of(detectors[best], attacked)
            _check(found, cell, tar_at_far(*labelled(calm[best], scores), RATE))
            group = f"seen_{kind(cell.targeted)}" if cell in seen else "unseen"
            groups.setdefault(group, []).append((attacked.names, scores))
    sources = clean.sources.of(setting.splits.attacked["test"])
    highest = described(setting, detectors[best], natural, calm[best])
    for one in highest:
        place = natural.names.index(one["name"])
        one["rank_by_detector"] = {label: int((own > own[place]).sum()) + 1 for label, own in calm.items()}
    at = {label: [r["found"][1] for r in found["measured"] if r["detector"] == label] for label in detectors}
    scored = natural.names, calm[best]
    return {
        "model": model.name,
        "detector": best,
        "images": len(natural),
        "people": len(set(people_of(natural.names))),
        "misclassified": int((~setting.right(natural)).sum()),
        "median_score": float(calm[best].median()),
        "highest": highest,
        "decided_by_the_two": decided_by_highest(scored),
        "false_alarm_rate_interval": rate_interval(len(natural)),
        "detection_rates": sensitivity(scored, (sources.names, scores_of(detectors[best], sources)), groups),
        "mean_detection_rate_by_detector": {label: float(np.mean(values)) for label, values in at.items()},
        "versions": study["versions"],
    }


def _check(found: Mapping[str, Any], cell: AttackedImages, rate: float) -> None:
    wanted = (found["best"], cell.family, kind(cell.targeted))
    known = [r["found"][1] for r in found["measured"] if (r["detector"], r["family"], r["kind"]) == wanted]
    if rate not in known:
        raise ValueError(f"{cell.attack} {wanted[2]}: expected the detection rate of the evaluation, got {rate}")


def main() -> None:
    """Read the studies, write one file."""
    parser = argparse.ArgumentParser(prog="python -m bench.highest_naturals", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    for name in ("data", "names", "weights", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    args = parser.parse_args()
    rows = [row(folder, args.data, args.names, args.weights) for folder in args.folders]
    needed = {f"{within:g} times the rate": images_for(RATE, within=within) for within in WITHIN}
    about = {"benchmark": "detect-highest-lfw", **header("cpu"), "what": WHAT, "images_for_at_most": needed}
    text = json.dumps({**about, "rows": rows}, indent=1)
    args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
