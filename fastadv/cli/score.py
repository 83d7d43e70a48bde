"""``fastadv detect score``."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from fastadv.cli.detect_options import NETWORK
from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.guarding import GuardOptions
from fastadv.cli.options import Device, InputOptions, PrintOptions
from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_atomically
from fastadv.core.numbers import finite

if TYPE_CHECKING:
    from fastadv.studies.detection.score import ScoreSummary

_SHOWN = 20  # flagged faces of a folder on the screen


@takes_groups
def score(
    detector: Annotated[Path, typer.Argument(help="Detector, a file of 'detect fit' or 'detect calibrate'.")],
    given: Annotated[InputOptions, Changed("model", NETWORK)],
    flags: Annotated[GuardOptions, Without("detector")],
    printing: PrintOptions,
    rate: Annotated[float | None, Option("--rate", hidden=True)] = None,
    out: Annotated[Path | None, Option(help="Write this CSV file: name,score,p_value,flagged.")] = None,
    claimed: Annotated[
        bool,
        Option(
            "--claimed",
            help="Take the name of each face's folder for the identity that it claims to show; see --gallery.",
        ),
    ] = False,
    device: Device = "cpu",
) -> None:
    """Score every face of a data set with a detector, and list the faces that are flagged as adversarial.

    Example: fastadv detect score study/detectors/mlp-centroid-l2-relative.safetensors --data faces/
    --model mobilefacenet --weights FILE
    """
    if rate is not None:
        raise ArgumentError(f"--rate: expected --false-alarm {rate:g}, got the former name --rate")
    from fastadv.cli.show import print_next, print_written, progress_bars, timed
    from fastadv.detection import load_detector
    from fastadv.studies.detection.score import score_folder

    fitted = load_detector(detector, device=device)
    face_model = given.open_model(device)
    with progress_bars(quiet=printing.without_bars) as progress:
        source = given.open_faces(face_model, device, progress=progress)
    threshold, words = flags.choose(fitted)
    fitted = flags.enrolled(fitted, face_model, given=given, source=source, device=device)
    found, _ = timed(
        score_folder,
        source,
        face_model,
        fitted,
        quiet=printing.without_bars,
        threshold=threshold,
        claimed=claimed,
    )
    if out is not None:
        _write_scores(found, out)
    faces = [{**asdict(f), "score": finite(f.score), "p_value": finite(f.p_value)} for f in found.faces]
    if printing.ends({"threshold": found.threshold, "threshold_from": words, "flagged": found.flagged, "faces": faces}):
        return
    _print_flagged(found, words)
    print_written(out)
    print_next("serve", model=given.model, weights=given.weights, detector=detector)


def _write_scores(found: ScoreSummary, out: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "score", "p_value", "flagged"))
    writer.writerows(
        (face.name, f"{face.score:.6g}", "" if face.p_value is None else f"{face.p_value:.6g}", int(face.flagged))
        for face in found.faces
    )
    write_atomically(out, text.getvalue().encode())


def _print_flagged(found: ScoreSummary, words: str) -> None:
    from fastadv.cli.show import print_line, print_table

    flagged = sorted(
        (face for face in found.faces if face.flagged),
        key=lambda face: -face.score if math.isfinite(face.score) else -math.inf,
    )
    rows = [(f.name, f"{f.score:.2f}", "–" if f.p_value is None else f"{f.p_value:.2g}") for f in flagged[:_SHOWN]]
    if rows:
        print_table(f"flagged, at {found.threshold:.2f} and above", rows, ("face", "score", "p-value"))
    if len(flagged) > _SHOWN:
        print_line(f"and {len(flagged) - _SHOWN} more; --out writes them all")
    print_line(f"{found.flagged} of {len(found.faces)} faces flagged, from score {found.threshold:.4g} on ({words})")
