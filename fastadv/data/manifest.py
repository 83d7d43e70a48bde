"""What a run says about every image it made: one row each, in a journal while it runs, in Parquet after."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from fastadv.core.brief import brief
from fastadv.core.errors import UNREADABLE, Error
from fastadv.core.files import replacing
from fastadv.core.memory import require_memory
from fastadv.data import names

JOURNAL = "manifest.jsonl"
PARQUET = "manifest.parquet"
# The size of the image file, kept in the journal only: a shorter file on the disk was not written to its end.
PNG_BYTES = "png_bytes"
_AT_A_TIME = 4096  # rows of a Parquet file that are in memory, and that form a row group
_ROOM = 2**26  # bytes that Arrow may map to write them; refused some of it, it aborts or loops


class ManifestError(Error, ValueError):
    """A manifest that is missing, damaged or of another kind; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One adversarial image.

    Attributes:
        name: Its name, `identity/file`; the image is `images/<name>.png`.
        id: The 63-bit key of its random numbers.
        goal: What the attack wanted ("impersonate", "evade", ...).
        target: Name of the image or class it went for, or "".
        attack: Name of the attack.
        eps: Budget, in units of [0, 1] images.
        steps: Steps that the attack may take.
        ticks: Model evaluations that this image took.
        success: Whether the goal is achieved by the 8-bit image.
        success_float: Whether it is achieved before rounding to 8 bits; None where that was not measured.
        linf: Largest change of a value, 8-bit image against source, in units of [0, 1] images.
        l2: Euclidean norm of the change, in the same units.
        score_before: The goal's score of the source image.
        score_after: The goal's score of the 8-bit image.
        metric: What the scores are ("cosine", "euclidean", "logit margin", ...).
        seed: Seed of the run, 0 to 2^64 - 1.
        source_hash: SHA-256 of the source file.
        flags: What was unusual, joined by ";": "zero_gradient;met_at_start"; or "".
        nonfinite: Number of gradient elements that were NaN or infinite.
        levels: How many pixels change by 0, 1, 2, ... grey levels in the channel that changes most, up to the largest
            change; empty where it was not noted.
        template_distance: From the 8-bit image's embedding to the template of the class that it is identified as, for
            goals with a gallery; None for others.
        target_hash: SHA-256 of the target's file; of several targets that of their hashes, one a line; "" without.
        image_hash: SHA-256 of the image's PNG file.
        goal_hash: SHA-256 of the goal with its references, where the caller chose it face by face (`fa.stream`).
        software: Versions, instruction set, threads and device that made the image; see `provenance.software`.
        batch: Images in a gradient evaluation, smaller than the run's where memory did not suffice; 0: not recorded.
    """

    name: str
    id: int
    goal: str
    target: str
    attack: str
    eps: float
    steps: int
    ticks: int
    success: bool
    success_float: bool | None
    linf: float
    l2: float
    score_before: float
    score_after: float
    metric: str
    seed: int
    source_hash: str
    flags: str = ""
    nonfinite: int = 0
    levels: tuple[int, ...] = ()
    template_distance: float | None = None
    target_hash: str = ""
    image_hash: str = ""
    goal_hash: str = ""
    software: str = ""
    batch: int = 0

    def __post_init__(self) -> None:
        for name, kind, plain in _KINDS:
            value = getattr(self, name)
            if type(value) is not plain:  # most are: a run makes and reads millions
                object.__setattr__(self, name, _plain(name, kind, value))


# Name and kind of each field, and the type whose values are taken as they are: numbers with bounds are looked at.
_KINDS = [
    (f.name, str(f.type), {"str": str, "float": float, "bool": bool}.get(str(f.type))) for f in fields(ManifestRow)
]


def _values(row: ManifestRow) -> dict[str, Any]:
    """As ``asdict``, which copies every value."""
    return {name: getattr(row, name) for name, _, _ in _KINDS}


def _plain(name: str, kind: str, value: Any) -> str | int | float | bool | tuple[int, ...] | None:
    """A value as the plain Python type of its field; NumPy's and torch's scalars are welcome."""
    if kind.endswith(" | None"):
        return None if value is None else _plain(name, kind.removesuffix(" | None"), value)
    if kind == "tuple[int, ...]" and isinstance(value, (list, tuple)):
        if all(type(each) is int for each in value) and min(value, default=0) >= 0 and max(value, default=0) < 2**63:
            return tuple(value)
        return tuple(int(_plain(name, "int", each)) for each in value)  # type: ignore[arg-type]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer that no float can hold
            return float(value)
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        bits = 64 if name == "seed" else 63
        if not 0 <= value < 2**bits:
            raise ManifestError(f"{name}: expected 0 to 2^{bits} - 1, got {value}")
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    raise ManifestError(f"{name}: expected {kind}, got {brief(value)}")


_ARROW = {
    "str": pyarrow.string(),
    "int": pyarrow.int64(),
    "float": pyarrow.float64(),
    "float | None": pyarrow.float64(),
    "bool": pyarrow.bool_(),
    "bool | None": pyarrow.bool_(),
    "tuple[int, ...]": pyarrow.list_(pyarrow.int64()),
}


def _column(field: Field[Any]) -> pyarrow.Field:
    kind = str(field.type)
    arrow = pyarrow.uint64() if field.name == "seed" else _ARROW[kind]
    return pyarrow.field(field.name, arrow, nullable=kind.endswith("None"))


SCHEMA = pyarrow.schema([_column(field) for field in fields(ManifestRow)])
# what a manifest may lack: it was written before there was such a column
_LATER = frozenset(field.name for field in fields(ManifestRow) if field.default is not MISSING)


def read_manifest(path: str | os.PathLike[str]) -> list[ManifestRow]:
    """The rows of a run: of the Parquet file when it is finished, of the journal (in its order) before.

    Args:
        path: The run's folder, or one of the two files.

    Raises:
        ManifestError: There is neither, it is damaged, or a name would leave the run's folder. A last line cut short
            by a crash is left out.
    """
    return list(iterate_manifest(path))


def iterate_manifest(path: str | os.PathLike[str]) -> Iterator[ManifestRow]:
    """As `read_manifest`, some rows at a time."""
    path = Path(path)
    if path.is_dir():
        finished = path / PARQUET
        path = finished if finished.exists() else path / JOURNAL
    if not path.is_file():
        raise ManifestError(f"{path}: expected a manifest, got no such file")
    if path.suffix == ".jsonl":
        yield from (row for row, _, _ in read_journal(path, damaged=_refuse))
        return
    yield from parquet_rows(path)


def parquet_rows(path: Path, *, at_a_time: int | None = None, in_memory: bool = False) -> Iterator[ManifestRow]:
    """The rows of a Parquet file.

    Args:
        path: The file.
        at_a_time: How many rows are decoded ahead; None: as many as a block of the file has.
        in_memory: Hold the compressed file in memory, not open: for many files at once.

    Raises:
        ManifestError: As `read_manifest`.
    """
    try:
        source = pyarrow.BufferReader(path.read_bytes()) if in_memory else path
        with pyarrow.parquet.ParquetFile(source, memory_map=False) as file:
            columns = file.schema_arrow.names
            present = [name for name in SCHEMA.names if name in columns]
            missing = [name for name in SCHEMA.names if name not in present and name not in _LATER]
            if missing:
                raise ManifestError(
                    f"{path}: expected the manifest of a run, got one without the column {missing[0]!r}"
                )
            for batch in file.iter_batches(at_a_time or _AT_A_TIME, columns=present):
                yield from (row_from_json(row, str(path)) for row in batch.to_pylist())
    except (ManifestError, MemoryError):
        raise
    except (pyarrow.ArrowException, *UNREADABLE) as error:  # text that is no UTF-8, times beyond Python's
        raise ManifestError(f"{path}: expected a Parquet file, got one that cannot be read: {error}") from error


def _refuse(where: str, reason: str) -> None:
    raise ManifestError(f"{where}: {reason}")


def read_journal(path: Path, *, damaged: Any) -> Iterator[tuple[ManifestRow, int, int]]:
    """The rows of a journal, each with the size of its image file and the place of its line in the journal.

    What follows the last newline is dropped.

    Args:
        path: The journal.
        damaged: Called with the place and the reason for every line that is no row.
    """
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            where = f"{path}:{number}"
            try:
                values = json.loads(line)
                size = int(values.pop(PNG_BYTES))
                row = row_from_json(values, where)
            except UNREADABLE as error:
                damaged(where, f"not a row of a manifest: {error}")
            else:
                yield row, size, at
            at += len(line)


def in_order(journal: Path, names: Iterable[str]) -> Iterator[ManifestRow]:
    """The rows of a journal in the order of names; in memory are their places only.

    Raises:
        ManifestError: As `read_manifest`.
        KeyError: A name without a row.
    """
    places = {row.name: at for row, _, at in read_journal(journal, damaged=_refuse)}
    with journal.open("rb") as file:
        for name in names:
            file.seek(places[name])
            values = json.loads(file.readline())
            del values[PNG_BYTES]
            yield row_from_json(values, str(journal))


def row_from_json(values: Mapping[str, Any], where: str) -> ManifestRow:
    """A row from a mapping of its fields.

    Raises:
        ManifestError: A field is missing, unknown or of another type.
    """
    try:
        row = ManifestRow(**values)
        check_image_name(row.name)
    except (TypeError, ManifestError) as error:
        raise ManifestError(f"{where}: {error}") from error
    return row


def check_image_name(name: str) -> None:
    """Insists that `images/<name>.png` is a file that can be inside of the run's folder.

    Raises:
        ManifestError: The name is none that a face can have; see `names.fault`.
    """
    fault = names.fault(name)
    if fault is not None:
        raise ManifestError(
            f"name: expected 'identity/file' without '.', '..' or a leading '/', got {names.shown(name)}: {fault}"
        )


def journal_line(row: ManifestRow, png_bytes: int) -> bytes:
    """The row as one line of JSON; floats read back exactly."""
    return json.dumps({**_values(row), PNG_BYTES: png_bytes}).encode() + b"\n"


def write_parquet(rows: Iterable[ManifestRow], path: Path) -> None:
    """Write the Parquet file of the rows, whole or not at all; the same rows always give the same bytes.

    Raises:
        OSError: With the file's name; or one of the rows' own.
        MemoryError: The machine has too little.
    """
    remaining = map(_values, rows)
    with replacing(path, fsync=True) as file:
        whole = io.BufferedWriter(file)  # Arrow does not look whether a write took all of its bytes
        require_memory(_ROOM)
        with pyarrow.parquet.ParquetWriter(whole, SCHEMA, compression="zstd") as into:
            while some := list(islice(remaining, _AT_A_TIME)):
                require_memory(_ROOM)
                into.write_table(pyarrow.Table.from_pylist(some, schema=SCHEMA))
        whole.flush()
        whole.detach()
