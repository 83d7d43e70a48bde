"""Gather folders of runs into one results file: ``python -m bench.collect --out FILE DIR ...``.

The folders are all of ``fastadv verify``, ``fastadv transfer``, ``fastadv detect`` or ``fastadv defend``, or all of
recipes of ``fastadv study run``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.about import header

_CLEAN = ("pairs", "accuracy", "accuracy_std", "auc", "eer", "tar_at_far_1e3", "threshold_at_far_1e3")
_OTHER = "also_natural "  # before the folder, in what a study says of another source
_ATTACKED = ("accuracy", "auc", "impersonation_at_eer", "impersonation_at_far_1e3", "evasion_at_eer")


def row(folder: Path) -> dict[str, Any]:
    """One run: what was asked for, and what it came to."""
    run = json.loads((folder / "run.json").read_text())
    found = json.loads((folder / "verification.json").read_text())
    config = run["config"]
    return {
        "model": config["model"],
        "attack": config["attack"]["name"],
        "eps_255": round(255 * config["attack"]["budget"]["eps"], 3),
        "steps": config["attack"]["steps"],
        "precision": config["engine"]["precision"],
        "seed": config["seed"],
        "clean": {k: found["clean"][k] for k in _CLEAN},
        "attacked": {k: found["attacked"][k] for k in _ATTACKED},
        "mean_l2": {k: found[k]["mean_l2"] for k in ("impersonation", "evasion")},
        "versions": run["versions"],
    }


def study(folder: Path) -> dict[str, Any]:
    """A transfer study without its single pairs."""
    run = json.loads((folder / "run.json").read_text())
    file = "untargeted.json" if run["config"]["untargeted"] else "transfer.json"
    found = json.loads((folder / file).read_text())
    kept = {k: v for k, v in found.items() if k not in ("scores", "same")}
    return {"config": run["config"], "versions": run["versions"], **kept}


def detection(folder: Path) -> dict[str, Any]:
    """A study of detectors without the points of its curves; groups of images by the best detector alone."""
    found = json.loads((folder / "evaluation.json").read_text())
    for points in ("curves", "noise_curves", "histograms"):
        found.pop(points, None)
    for point in found.get("adaptive_points", ()):
        point["made_for"] = Path(point["made_for"]).name  # the folder of a study of another network
    if found.get("config", {}).get("transfer_from"):
        found["config"]["transfer_from"] = [Path(folder).name for folder in found["config"]["transfer_from"]]
    for rows in ("noise", "false_alarms", "changed"):
        if rows in found:
            found[rows] = [each for each in found[rows] if each["detector"] == found["best"]]
    fitted = json.loads((folder / "study.json").read_text())
    for values in (fitted["config"], fitted.get("shown", {}), found.get("config", {})):
        if values.get("also_natural"):
            values["also_natural"] = [Path(other).name for other in values["also_natural"]]
        for key in [key for key in values if key.startswith(_OTHER)]:
            short = _OTHER + Path(key.removeprefix(_OTHER)).name
            if short != key and short in values:
                raise ValueError(f"{folder}: expected folders of other natural images with names of their own: {short}")
            values[short] = values.pop(key)
    for kind in found.get("false_alarms", ()):
        if kind["sort"] == "other":
            kind["label"] = f"{Path(kind['label']).name}/"
    return {"study": fitted, **found}


def defences(folder: Path) -> dict[str, Any]:
    """A study of defences without the length of every change."""
    found = json.loads((folder / "defences.json").read_text())
    run = json.loads((folder / "run.json").read_text())
    for cell in found["cells"]:
        del cell["lengths"]
    return {"config": run["config"], "versions": run["versions"], **found}


def recipe(folder: Path) -> dict[str, Any]:
    """A recipe of a paper without curves and pictures."""
    found = json.loads((folder / "results.json").read_text())
    for study in found["found"]:
        del study["figures"], study["pictures"]
    return dict(found)


def _command(folder: Path) -> str:
    if (folder / "results.json").is_file():
        return "study"
    if (folder / "evaluation.json").is_file():
        return "detect"
    return str(json.loads((folder / "run.json").read_text())["config"]["command"])


#: What a file of the runs of a command is called, and how a folder of it is read.
_READERS: Mapping[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "verify": ("lfw-verification", row),
    "transfer": ("transfer-lfw", study),
    "detect": ("detect-lfw", detection),
    "defend": ("defend-lfw", defences),
    "study": ("reproduction-lfw", recipe),
}


def main() -> int:
    """Read the folders, write one file."""
    parser = argparse.ArgumentParser(prog="python -m bench.collect", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without", default="", help="leave these parts of the rows out: 'knn,noise'")
    args = parser.parse_args()
    commands = {_command(folder) for folder in args.folders}
    if len(commands) != 1 or not commands <= _READERS.keys():
        parser.error(f"the folders must be all of one of {', '.join(_READERS)}, got {', '.join(sorted(commands))}")
    name, read = _READERS[commands.pop()]
    without = args.without.split(",")
    rows = [{k: v for k, v in read(folder).items() if k not in without} for folder in args.folders]
    text = json.dumps({"benchmark": name, **header("cpu"), "rows": rows}, indent=1)
    args.out.write_text(text + "\n")
    print(f"{len(rows)} runs written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
