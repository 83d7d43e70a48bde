"""``fastadv bench``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import typer

from fastadv.core.errors import ArgumentError


def bench(context: typer.Context) -> None:
    """Run the benchmarks of a source checkout: 'fastadv bench ops'; 'fastadv bench --help' lists them."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        runner = importlib.import_module("bench.run")
    except ModuleNotFoundError as error:
        raise ArgumentError(
            f"the benchmarks are part of the source: run this in a checkout of fastadv ({error})"
        ) from error
    raise typer.Exit(runner.main(context.args))
