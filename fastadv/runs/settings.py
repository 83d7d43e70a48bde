"""The open choices of a run, settled once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fastadv.data.run_files import RUN
from fastadv.engine import Engine
from fastadv.models import FaceModel


def settle(engine: Engine, model: FaceModel, out: Path, *, mark: str = RUN) -> Engine:
    """The engine with its open choices made; a run that goes on keeps the choices that it began with.

    Args:
        engine: As the user gave it.
        model: The network at hand.
        out: The run's folder.
        mark: The file there that describes the run.

    Raises:
        ValueError: As ``Engine.resolve``.
    """
    try:
        saved = json.loads((out / mark).read_bytes())["config"]["engine"]
        batch, precision = int(saved["batch"]), str(saved["precision"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return engine.resolve(model)
    if engine.precision == "auto":
        engine = replace(engine, precision=precision)
    if not engine.batch:
        engine = replace(engine, batch=batch, slots=engine.slots or batch)
    return engine.resolve(model)
