"""``fastadv models inspect``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import AsJson

if TYPE_CHECKING:
    from fastadv.models.inspection import Inspected


@takes_groups
def inspect(
    file: Annotated[Path, typer.Argument(help="Weights, a file of any form.")],
    as_json: AsJson = False,
) -> None:
    """Say what a weights file is: its form, its tensors, the network that it fits, and whether it loads.

    Nothing in the file is run. Example: fastadv models inspect backbone.pth
    """
    from fastadv.cli.show import print_next
    from fastadv.models.inspection import inspect_file

    found = inspect_file(file)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    _print(found)
    if found.loads:
        print_next("models", "check", model=found.networks[0], weights=file, data="LFW")


def _print(found: Inspected) -> None:
    from fastadv.cli.show import print_columns

    fits = ", ".join(found.networks) or (f"none; nearest is {found.nearest}" if found.nearest else "none")
    rows = [
        ("file", found.file),
        ("form", found.form),
        ("network", fits),
        ("loads", "yes" if found.loads else f"no: {found.problem}"),
    ]
    if found.prefix:
        rows.append(("prefix", found.prefix))
    rows += [("left out", f"{text}, a classifier") for text in found.left_out]
    print_columns("Weights", rows, ("", ""), whole=1)
    parts = [
        (part.path or "the file", str(part.tensors), f"{part.numbers:,}", ", ".join(part.types), _use(part.read))
        for part in found.parts
    ]
    if parts:
        print_columns("Tensors", parts, ("in", "tensors", "numbers", "types", ""))


def _use(read: bool) -> str:
    return "the network" if read else "left out"
