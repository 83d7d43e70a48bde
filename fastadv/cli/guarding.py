"""What ``fastadv serve`` and ``fastadv export`` share: a guard from names and files."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastadv.core.errors import ArgumentError
from fastadv.detection import load_detector
from fastadv.detection.guard import Guard
from fastadv.runs import inputs
from fastadv.studies.detection.score import check_network


class GuardPrecision(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"


DetectorFile = Annotated[Path, typer.Option(help="Detector, a file of 'fastadv detect fit'.")]
Threshold = Annotated[
    float | None, typer.Option(help="Flag images from this score on (default: the equal-error threshold).")
]
FalseAlarm = Annotated[
    float | None,
    typer.Option(help="Flag at the threshold of this false-alarm rate, one that the detector is calibrated for."),
]


def open_guard(
    model: str,
    weights: Path | None,
    detector: Path,
    *,
    threshold: float | None,
    false_alarm: float | None,
    precision: str = "fp32",
    device: str = "cpu",
) -> Guard:
    """A guard.

    Raises:
        ValueError: both a threshold and a rate, a rate that the detector is not calibrated for, a detector of another
            network or of other weights, or as the classes.
    """
    found = load_detector(detector)
    if false_alarm is not None:
        if threshold is not None:
            raise ArgumentError(
                f"--threshold: expected it or --false-alarm, got both ({threshold:g} and {false_alarm:g})"
            )
        if found.thresholds is None:
            raise ArgumentError(
                f"--false-alarm: expected a calibrated detector, got {detector} without thresholds; give --threshold"
            )
        threshold = found.thresholds.at_false_alarm(false_alarm)
    opened = inputs.open_model(model, weights, device=device)
    check_network(found, opened)
    return Guard(model=opened, detector=found, threshold=threshold, precision=precision)
