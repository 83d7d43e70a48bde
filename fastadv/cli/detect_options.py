"""Which images ``fastadv detect`` takes for natural besides those of the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Option

if TYPE_CHECKING:
    from fastadv.studies.detection.controls import Control

CONTROLS = (
    "gaussian:SIGMA, signs:EPS, blur:SIGMA, jpeg:QUALITY, resize:RATIO, brightness:FACTOR, contrast:FACTOR or "
    "median:SIZE"
)  # of fastadv.studies.detection.controls, which a test compares


@dataclass(frozen=True, kw_only=True)
class NaturalOptions:
    """Natural images of other kinds."""

    panel: ClassVar[str] = "Natural images"

    control: Annotated[
        list[str] | None,
        Option(
            help=f"Count natural images with this harmless change as natural: {CONTROLS}; may be given several times, "
            "or none (default: gaussian:3/255, blur:1, jpeg:75, resize:0.5, brightness:1.3, and signs of each attack's "
            "radius). Except with none, noise of the L2 norm of each attacked image is added."
        ),
    ] = None
    also_natural: Annotated[
        list[Path] | None,
        Option(help="Count the faces of this folder, of another source, as natural; may be given several times."),
    ] = None
    outside: Annotated[
        float, Option(help="Hold this share of the people out of the classes, and count their images as natural.")
    ] = 0.15

    def controls(self) -> tuple[Control, ...] | None:
        """The controls, or None for the usual ones."""
        from fastadv.studies.detection.controls import parse_controls

        return parse_controls(self.control)

    @property
    def folders(self) -> tuple[str, ...]:
        """The further sources."""
        return tuple(str(folder) for folder in self.also_natural or ())
