"""What a study of defences has measured, in files of its folder: a killed study does not measure it again."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.files import write_atomically
from fastadv.data import RunFolder

Arrays = Mapping[str, NDArray[Any]]


def slug(label: str) -> str:
    """A label as the name of a file."""
    return re.sub(r"[^A-Za-z0-9.@()+_-]", "-", label.replace("/", "_of_").replace("|", "_or_"))


def kept(folder: RunFolder, place: Path, names: Sequence[str], count: int, measure: Callable[[], Arrays]) -> Arrays:
    """Named arrays from a file of the folder; measured and written where it has nothing whole.

    Args:
        folder: The study's.
        place: The file, below the folder and without its ending.
        names: Of the arrays.
        count: Entries of the first one.
        measure: Makes the arrays.

    Raises:
        OSError: The file cannot be written.
    """
    file = folder.path / place.with_name(f"{place.name}.npz")
    held = _read(file, names)
    if held is None or len(held[names[0]]) != count:
        held = measure()
        folder.claim()
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **held)  # type: ignore[arg-type]
        write_atomically(file, buffer.getvalue())
    return held


def _read(file: Path, names: Sequence[str]) -> Arrays | None:
    try:
        # from memory: of a truncated archive numpy would leave the file open
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as held:
            return {name: held[name] for name in names}
    except Exception:  # of a damaged archive: anything from BadZipFile to zlib.error and struct.error
        return None
