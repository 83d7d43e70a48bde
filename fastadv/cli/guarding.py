"""What ``fastadv serve`` and ``fastadv export`` share: a guard from names and files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from fastadv.cli.fields import Without
from fastadv.cli.options import InputOptions
from fastadv.core.errors import ArgumentError

if TYPE_CHECKING:
    from fastadv.detection.guard import Guard

Network = Annotated[InputOptions, Without("data", "landmarks")]


class GuardPrecision(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """A detector, and where it flags."""

    panel: ClassVar[str] = "Guard"

    detector: Annotated[Path, typer.Option(help="Detector, a file of 'fastadv detect fit'.")]
    threshold: Annotated[
        float | None, typer.Option(help="Flag images from this score on (default: the equal-error threshold).")
    ] = None
    false_alarm: Annotated[
        float | None,
        typer.Option(help="Flag at the threshold of this false-alarm rate, one that the detector is calibrated for."),
    ] = None

    def open(self, given: InputOptions, *, precision: str = "fp32", device: str = "cpu") -> Guard:
        """A guard of a network.

        Raises:
            ValueError: both a threshold and a rate, a rate that the detector is not calibrated for, a detector of
                another network or of other weights, or as the classes.
        """
        from fastadv.detection import Guard, load_detector
        from fastadv.studies.detection.score import check_network

        found, threshold = load_detector(self.detector), self.threshold
        if self.false_alarm is not None:
            if self.threshold is not None:
                raise ArgumentError(
                    f"--threshold: expected it or --false-alarm, got both ({self.threshold:g} and {self.false_alarm:g})"
                )
            if found.thresholds is None:
                raise ArgumentError(
                    f"--false-alarm: expected a calibrated detector, got {self.detector} without thresholds; "
                    "give --threshold"
                )
            threshold = found.thresholds.at_false_alarm(self.false_alarm)
        opened = given.open_model(device)
        check_network(found, opened)
        return Guard(model=opened, detector=found, threshold=threshold, precision=precision)
