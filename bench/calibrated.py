"""Detectors on people that no study knows: ``python -m bench.calibrated --out FILE ... STUDY ...``.

For each study of ``fastadv detect evaluate``: false alarms on one image each of all further people of LFW and on
photographs, at the thresholds of the fit and after ``detect calibrate`` on 200 people; and how many of the study's
attacked images are flagged there, and where 1 % and 0.1 % of the further people are flagged. Attacked images are read
from the study; give a copy, as its logs name the software.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bench.about import header
from fastadv.attacks.spec import parse_attack
from fastadv.core.statistics import tar_at_far, wilson
from fastadv.data import FaceSource
from fastadv.detection import expected_rate, load_detector
from fastadv.detection.calibration import Thresholds
from fastadv.runs.inputs import open_faces_of, open_model
from fastadv.studies.detection.attacks import made_and_read
from fastadv.studies.detection.features import extract, images_of, scores_of
from fastadv.studies.detection.fit import detector_file, fitted_cells
from fastadv.studies.detection.measure import labelled
from fastadv.studies.detection.natural import aside
from fastadv.studies.detection.plan import Selection, people_of, read_names
from fastadv.studies.detection.setting import kind, look
from fastadv.studies.detection.study import read_study, reopen

CALIBRATE, RATES, STRICT = 200, (0.01, 0.05), (0.001, 0.01)
WHAT = (
    "The chosen detector of each study: false alarms on one image each of people of LFW whom the study does not have, "
    "and on photographs aligned by fastadv align, with the thresholds of the fit and after detect calibrate on "
    f"{CALIBRATE} further people; and shares of the test's attacked images that are flagged: a mean over the attacks "
    "of each group"
)


def strangers(names: Sequence[str], known: Sequence[str], seed: int = 0) -> list[str]:
    """The first image of everybody who is not known, in random order."""
    people = set(people_of(known))
    firsts = {
        person: name for name, person in reversed(list(zip(sorted(names), people_of(sorted(names)), strict=True)))
    }
    others = sorted(set(firsts) - people)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(others))
    return [firsts[others[k]] for k in order]


def alarms(scores: Tensor, threshold: float) -> dict[str, Any]:
    """How many images are flagged, with Wilson's interval."""
    flagged, count = int((~(scores < threshold)).sum()), len(scores)
    low, high = wilson(flagged, count)
    return {"flagged": flagged, "of": count, "share": flagged / count, "low": low, "high": high}


def flagged_shares(groups: Mapping[str, Sequence[Tensor]], threshold: float) -> dict[str, float]:
    """The share of each group's images that is flagged: the mean over its attacks."""
    return {
        name: float(np.mean([float((~(scores < threshold)).float().mean()) for scores in attacks]))
        for name, attacks in groups.items()
    }


def row(folder: Path, data: Path, names: Path, weights: Path, photographs: Path) -> dict[str, Any]:
    """One study."""
    found, study = json.loads((folder / "evaluation.json").read_text()), read_study(folder)
    model = open_model(study["config"]["model"], weights / study["shown"]["weights"].partition(" ")[0])
    lfw, listed = open_faces_of(model, data), read_names(names)
    config, setting = reopen(folder, Selection(lfw, listed), model)
    clean, best = look(setting), found["best"]
    detector = load_detector(detector_file(folder, best))

    def scored(source: FaceSource) -> Tensor:
        features = extract(setting.model, detector.layers, source.names, images_of(source))
        return scores_of(detector, features)

    others = strangers(lfw.names, listed)
    calm = scored(Selection(lfw, others[:CALIBRATE]))
    sets = {
        "other people of LFW": scored(Selection(lfw, others[CALIBRATE:])),
        "photographs": scored(open_faces_of(model, photographs)),
    }
    groups: dict[str, list[Tensor]] = {}
    seen = fitted_cells(config, setting, clean)[0]
    unseen = made_and_read(setting, clean, [parse_attack(a) for a in found["config"]["unseen"]], (), parts=("test",))[0]
    for cell in (*seen, *unseen):
        attacked = cell.part(aside(setting, "test"))
        if attacked is not None:
            name = f"seen {kind(cell.targeted)}" if cell in seen else "unseen"
            groups.setdefault(name, []).append(scores_of(detector, attacked))
    assert detector.thresholds is not None
    by: dict[str, Thresholds | None] = {
        "fit": detector.thresholds,
        "calibrated": detector.calibrated(calm, rates=RATES).thresholds,
    }
    return {
        "model": model.name,
        "seed": study["config"]["seed"],
        "detector": best,
        "calibration": [
            {"nominal": rate, "low": e.low, "high": e.high} for rate in RATES for e in [expected_rate(calm, rate)]
        ],
        "thresholds": [
            {
                "nominal": rate,
                "threshold_from": source,
                "threshold": limits.at_false_alarm(rate),
                "false_alarms": {name: alarms(scores, limits.at_false_alarm(rate)) for name, scores in sets.items()},
                "attacks_flagged": flagged_shares(groups, limits.at_false_alarm(rate)),
            }
            for rate in RATES
            for source, limits in by.items()
            if limits is not None
        ],
        "at_false_alarms_on_other_people": [
            {
                "rate": rate,
                "people": len(sets["other people of LFW"]),
                "found": {
                    name: float(np.mean([tar_at_far(*labelled(sets["other people of LFW"], s), rate) for s in attacks]))
                    for name, attacks in groups.items()
                },
            }
            for rate in STRICT
        ],
        "versions": study["versions"],
    }


def main() -> None:
    """Read the studies, write one file."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrated", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    for name in ("data", "names", "weights", "photographs", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    args = parser.parse_args()
    rows = [row(folder, args.data, args.names, args.weights, args.photographs) for folder in args.folders]
    text = json.dumps({"benchmark": "detect-calibrate-lfw", **header("cpu"), "what": WHAT, "rows": rows}, indent=1)
    args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
