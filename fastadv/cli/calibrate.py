"""``fastadv detect calibrate``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from fastadv.cli.detect_options import FaceOptions, StudyInput
from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.guarding import GuardOptions
from fastadv.cli.options import Device, PrintOptions


@takes_groups
def calibrate(
    detector: Annotated[Path, typer.Argument(help="Detector, a file of 'detect fit' or 'detect calibrate'.")],
    given: Annotated[StudyInput, Changed("model", "Architecture of the network whose layers the detector reads.")],
    faces: FaceOptions,
    enrolled: Annotated[GuardOptions, Without("detector", "threshold", "false_alarm", "equal_error")],
    printing: PrintOptions,
    out: Annotated[Path, typer.Option(help="Write the calibrated detector to this file.")],
    false_alarm: Annotated[
        list[float] | None,
        typer.Option(
            help="Set the threshold of this false-alarm rate, which needs 1/RATE - 1 faces; may be given several times "
            "(default: 0.01)."
        ),
    ] = None,
    claimed: Annotated[
        bool,
        typer.Option("--claimed", help="Take the name of each face's folder for the identity that it claims to show."),
    ] = False,
    device: Device = "cpu",
) -> None:
    """Set a detector's threshold on your own natural faces, and print the interval of its false-alarm rate on new ones.

    Give faces like those that the detector will receive (camera, light, alignment), preferably one of each person, and
    none that it was fitted on. No adversarial images are needed. 'serve', 'detect score' and 'detect export' read the
    threshold and the p-values from the file. If you use them with --gallery or claimed identities, give the same here.

    Example: fastadv detect calibrate study/detectors/mlp-centroid-l2-relative.safetensors --data mine/
    --model mobilefacenet --weights study/head.safetensors --false-alarm 0.01 --out detector.safetensors
    """
    from fastadv.cli.show import percent, print_line, print_next, print_table, print_written, progress_bars, timed
    from fastadv.detection import images_for, load_detector
    from fastadv.studies.detection.calibrate import calibrate_folder

    fitted = load_detector(detector, device=device)
    with progress_bars(quiet=printing.without_bars) as progress:
        source, face_model = faces.open(given, device, None, progress=progress)
    made, _ = timed(
        calibrate_folder,
        source,
        face_model,
        enrolled.enrolled(fitted, face_model, given=given, source=source, device=device),
        quiet=printing.without_bars,
        rates=tuple(false_alarm or (0.01,)),
        name=given.data.resolve().name,
        claimed=claimed,
    )
    thresholds = made.detector.thresholds
    assert thresholds is not None
    replace(fitted, thresholds=thresholds).to("cpu").save(out)
    rows = [
        {"threshold": line, "images_for_twice": images_for(rate.rate), **asdict(rate)}
        for line, rate in zip(thresholds.false_alarm, made.expected, strict=True)
    ]
    found = {"images": thresholds.natural, "people": made.people, "calibrated_on": dict(thresholds.calibrated_on)}
    if printing.ends({**found, "rates": rows, "path": str(out)}):
        return
    title = f"{thresholds.natural} faces of {made.people} people"
    header = ("false-alarm rate", "threshold", "on new faces, 95 %", "if people are alike", "faces for twice at most")
    print_table(
        title,
        [
            (
                f"{rate.rate:g}",
                f"{line:.4g}",
                f"{percent(rate.low)} to {percent(rate.high)}",
                "–" if rate.people is None else f"{percent(rate.people[0])} to {percent(rate.people[1])}",
                f"{images_for(rate.rate):,}",
            )
            for line, rate in zip(thresholds.false_alarm, made.expected, strict=True)
        ],
        header,
    )
    if any(rate.people is not None for rate in made.expected):
        print_line("Several faces of one person are not independent: the fourth column allows for it.")
    print_written(out)
    print_next("serve", model=given.model, weights=given.weights, detector=out)
