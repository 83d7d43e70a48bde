"""``fastadv align``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from typer import Option

from fastadv.cli.fields import Changed, takes_groups
from fastadv.cli.options import DetectorOptions, Device, OutputOptions, PrintOptions


class Choice(str, Enum):
    largest, central, all = "largest", "central", "all"


@dataclass(frozen=True, kw_only=True)
class FaceOptions:
    """Which faces are written, and how."""

    panel: ClassVar[str] = "Faces"

    faces: Annotated[
        Choice, Option(help="Write the largest face of each photograph, the most central one, or all.")
    ] = Choice.largest
    template: Annotated[
        str,
        Option(
            metavar="NAME",
            help="Align to arcface (112x112), sphereface (96x112), facenet (160x160), dlib (150x150), or to the size "
            "and the five points in a file.",
        ),
    ] = "arcface"
    margin: Annotated[float, Option(help="Show more around the face: add this share of the crop on each side.")] = 0.0
    least_score: Annotated[float, Option(help="Leave out faces with a lower score of the detector.")] = 0.7


@takes_groups
def align(
    photos: Annotated[
        Path, typer.Argument(metavar="PHOTOS", help="Read the photographs below this folder, at any depth.")
    ],
    chosen: FaceOptions,
    detector: DetectorOptions,
    output: Annotated[
        OutputOptions, Changed("out", "Write images, landmarks.txt and report.jsonl to this folder, or continue in it.")
    ],
    printing: PrintOptions,
    workers: Annotated[
        int | None, Option(min=1, help="Read and write with this many threads (default: by the number of cores).")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Detect the faces of a folder of photographs, and align them.

    The folder of --out holds the aligned faces, images/IDENTITY/NAME.png, and serves as --data of the other commands;
    landmarks.txt holds the five points in the photographs, for --landmarks; report.jsonl says for each photograph which
    faces were found, or why there is none. The same command continues an interrupted run, and aligns new photographs.

    Example: fastadv align photos/ --out faces/ --detector-weights mtcnn.safetensors
    """
    from fastadv.cli.show import print_next, print_notices, print_table, timed
    from fastadv.studies.align.folder import AlignPlan, align_folder

    plan = AlignPlan(
        photos=photos,
        out=output.folder,
        choice=chosen.faces.value,
        template=chosen.template,
        margin=chosen.margin,
        least_score=chosen.least_score,
        workers=workers,
        fresh=output.fresh,
    )
    found, seconds = timed(align_folder, plan, detector.open(device), quiet=printing.without_bars)
    if printing.ends({**asdict(found), "out": str(output.folder), "seconds": round(seconds, 3)}):
        return
    rows = [(name.replace("_", " "), f"{value:,}") for name, value in asdict(found).items() if name != "notices"]
    print_table("fastadv align", [*rows, ("time", f"{seconds:.1f} s"), ("written to", str(output.folder))])
    print_notices(found.notices)
    if found.faces:
        print_next("verify", data=output.folder, pairs="PAIRS.csv", model="NAME", weights="FILE")
