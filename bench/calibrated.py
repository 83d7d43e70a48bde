"""Detectors on people outside their study: ``python -m bench.calibrated --out FILE ... STUDY ...``.

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
from bench.detection_tables import MEANS
from fastadv.attacks.spec import parse_attack
from fastadv.core.statistics import tar_at_far, wilson
from fastadv.detection import Detector, load_detector
from fastadv.runs.inputs import open_faces_of, open_model
from fastadv.studies.detection.attacks import made_and_read
from fastadv.studies.detection.features import Features, extract, images_of, scores_of
from fastadv.studies.detection.fit import detector_file, fitted_cells
from fastadv.studies.detection.measure import labelled
from fastadv.studies.detection.natural import aside
from fastadv.studies.detection.plan import Selection, people_of, read_names
from fastadv.studies.detection.setting import kind, look
from fastadv.studies.detection.study import read_study, reopen

CALIBRATE, RATES, STRICT = 200, (0.01, 0.05), (0.001, 0.01, 0.05)
PEOPLE = "other people of LFW"
WHAT = (
    "Detectors of each study: false alarms on one image each of people of LFW whom the study does not have, "
    "and on photographs aligned by fastadv align, with the thresholds of the fit and after detect calibrate on "
    f"{CALIBRATE} further people; and shares of the test's attacked images that are flagged: a mean over the attacks "
    "of each group"
)


def strangers(names: Sequence[str], known: Sequence[str], seed: int = 0) -> list[str]:
    """The first image of everybody who is not known, in random order."""
    ordered = sorted(names, reverse=True)
    firsts = dict(zip(people_of(ordered), ordered, strict=True))  # the last one of a person counts
    others = sorted(set(firsts) - set(people_of(known)))
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
    clean, others = look(setting), strangers(lfw.names, listed)
    sources = {
        "calibration": Selection(lfw, others[:CALIBRATE]),
        PEOPLE: Selection(lfw, others[CALIBRATE:]),
        "photographs": open_faces_of(model, photographs),
    }
    labels = dict.fromkeys((found["best"], *MEANS.values()))
    detectors = {label: load_detector(detector_file(folder, label)) for label in labels}
    layers = next(iter(detectors.values())).layers
    natural = {
        name: extract(setting.model, layers, source.names, images_of(source)) for name, source in sources.items()
    }
    seen = fitted_cells(config, setting, clean)[0]
    unseen = made_and_read(setting, clean, [parse_attack(a) for a in found["config"]["unseen"]], (), parts=("test",))[0]
    groups: dict[str, list[Features]] = {}
    for cell in (*seen, *unseen):
        attacked = cell.part(aside(setting, "test"))
        if attacked is not None:
            name = f"seen {kind(cell.targeted)}" if cell in seen else "unseen"
            groups.setdefault(name, []).append(attacked)
    return {
        "model": model.name,
        "seed": study["config"]["seed"],
        "best": found["best"],
        "detectors": [
            {
                "label": label,
                **measured(
                    detector,
                    {name: scores_of(detector, each) for name, each in natural.items()},
                    {name: [scores_of(detector, each) for each in cells] for name, cells in groups.items()},
                ),
            }
            for label, detector in detectors.items()
        ],
        "versions": study["versions"],
    }


def measured(
    detector: Detector, natural: Mapping[str, Tensor], groups: Mapping[str, Sequence[Tensor]]
) -> dict[str, Any]:
    """One detector, from scores of natural images by source and of attacked images by group."""
    others = natural[PEOPLE]
    calibrated = detector.calibrated(natural["calibration"], rates=RATES)
    return {
        "thresholds": [
            {
                "nominal": rate,
                "threshold_from": source,
                "threshold": line,
                "false_alarms": {name: alarms(natural[name], line) for name in (PEOPLE, "photographs")},
                "attacks_flagged": flagged_shares(groups, line),
            }
            for rate in RATES
            for source, limits in (("fit", detector.thresholds), ("calibrated", calibrated.thresholds))
            if limits is not None
            for line in [limits.at_false_alarm(rate)]
        ],
        "at_false_alarms_on_other_people": [
            {
                "rate": rate,
                "people": len(others),
                "found": {
                    name: float(np.mean([tar_at_far(*labelled(others, scores), rate) for scores in attacks]))
                    for name, attacks in groups.items()
                },
            }
            for rate in STRICT
        ],
    }


def main() -> None:
    """Read the studies, write one file."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrated", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    for name in ("data", "names", "weights", "photographs", "out"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    args = parser.parse_args()
    rows = [row(folder, args.data, args.names, args.weights, args.photographs) for folder in args.folders]
    text = json.dumps(
        {"benchmark": "detect-calibrate-means-lfw", **header("cpu"), "what": WHAT, "rows": rows}, indent=1
    )
    args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
