"""What a folder says of itself: manifests and descriptions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from fastadv.core.errors import ArgumentError
from fastadv.data.hashes import KEPT, KnownHashes
from fastadv.data.manifest import (
    JOURNAL,
    PARQUET,
    ManifestError,
    ManifestRow,
    journal_line,
    read_manifest,
    write_parquet,
)
from fastadv.data.run_files import Description, RunFolderError, check_config, damaged_images
from fastadv.report.pages.run import read_run
from fastadv.runs.status import run_status
from fastadv.studies.align.report import AlignedFace, AlignedPicture, list_of_landmarks, read_report, summarise
from fastadv.studies.detection.plan import read_classes
from fastadv.studies.detection.study import read_study

from .archives import BIG, DEEP, NESTED
from .judge import Target
from .lists import written

# -- manifests --


def _row(name: str = "a/b", **more: Any) -> ManifestRow:
    values: dict[str, Any] = {"goal": "evade", "target": "", "attack": "fim", "eps": 0.1, "steps": 3, "ticks": 3}
    values |= {"success": True, "success_float": None, "linf": 0.1, "l2": 1.0, "score_before": 0.9, "score_after": 0.1}
    return ManifestRow(**{"name": name, "id": 7, "metric": "cosine", "seed": 1, "source_hash": "00", **values, **more})


_RUN = {"config": {"command": "attack", "seed": 0}, "versions": {"fastadv": "0"}, "shown": {"seed": "0"}, "images": 4}


def _manifest(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        run = written(folder, f"{name}-run/run.json", json.dumps(_RUN).encode()).parent
        path = written(run, name, data)
        run_status(run)
        rows = read_manifest(path)
        damaged_images(run, rows)
        for row in rows:
            journal_line(row, 1)

    return read


def _journal() -> list[bytes]:
    rows = [_row(), _row("c/d", levels=(3, 4, 0), flags="x", image_hash="00", success_float=True)]
    return [b"".join(journal_line(row, 100) for row in rows)]


def _hostile_journal() -> list[bytes]:
    line = journal_line(_row(), 100)
    changed = [
        *(line.replace(b'"eps": 0.1', b'"eps": ' + value) for value in (BIG, b"1e999", NESTED, b"NaN", b'"x"', b"{}")),
        *(
            line.replace(b"a/b", name)
            for name in (b"a/\\ud800", b"../../x", b"a/\\n", b"a/" + b"b" * 300, b"a/\\u0000")
        ),
        *(line.replace(b'"png_bytes": 100', b'"png_bytes": ' + value) for value in (b"1e999", b"[]", b"NaN", BIG)),
    ]
    return [*changed, DEEP + b"\n", b"7\n", b'{"name": 1}\n', line.replace(b'"seed": 1', b'"seed": -1')]


def parquet(table: pyarrow.Table, **options: Any) -> bytes:
    """The file of a table."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


def _parquet() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.parquet"
        write_parquet([_row(), _row("c/d", levels=(3, 4))], path)
        table = pyarrow.parquet.read_table(path)
        return [path.read_bytes(), parquet(table, compression="none", use_dictionary=False)]


def _hostile_parquet() -> list[bytes]:
    (plain,) = list(_parquet()[1:])
    table = pyarrow.parquet.read_table(io.BytesIO(plain))
    late = pyarrow.array([2**62, 2**62], pyarrow.timestamp("ns"))
    wrong = [
        table.set_column(table.schema.get_field_index("name"), "name", value)
        for value in (late, pyarrow.array([b"\xff", b"x"]))
    ]
    rows = pyarrow.table({"name": pyarrow.array(["a"] * 100_000)})
    return [plain.replace(b"a/b", b"a/\xff"), *map(parquet, wrong), parquet(rows)]


# -- descriptions --


def _description(data: bytes, folder: Path) -> None:
    path = written(folder, "run/run.json", data).parent
    Description.read(path)
    written(folder, "sharded/shards/1-of-3/run.json", data)
    run_status(folder / "sharded")
    written(folder, "sharded/run.json", data)
    run_status(folder / "sharded")
    (folder / "sharded/run.json").unlink()
    if not (path / JOURNAL).is_file():
        written(path, JOURNAL, journal_line(_row(), 1))
    assert read_run(path).threshold is None or data != _RUN_JSON
    check_config(path, {"command": "attack", "seed": 0}, {"seed": "0"})


def _folder_reader(place: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], None]:
    def wrapped(data: bytes, folder: Path) -> None:
        path = written(folder, f"described/{place}", data)
        read(path)

    return wrapped


def _align_report(path: Path) -> None:
    rows = read_report(path)
    list_of_landmarks(rows)
    summarise(rows, ())
    for row in rows:
        row.to_json()


_FACE = AlignedFace(name="a/b", score=0.9, box=(0.0, 0.0, 9.0, 9.0), landmarks=(1.0,) * 10, image_hash="00")
_PICTURE = AlignedPicture(picture="a.jpg", source_hash="00", width=9, height=9, found=1, faces=(_FACE,))
_RUN_JSON = json.dumps(_RUN).encode()
_JSON_TOKENS = (
    b'"config"',
    b'"versions"',
    b'"images"',
    b'"shown"',
    b'"name"',
    b"{}",
    b"[]",
    b"1e999",
    b"NaN",
    b"-1",
    BIG,
)
_JSON = [
    DEEP,
    NESTED,
    b"7",
    b'"x"',
    b"null",
    b"\xff\xfe{\0}\0",
    b'{"a": 1e999}',
    b"[1e999]",
    b'{"config": {}, "versions": {}}',
]


def _hostile_runs() -> list[bytes]:
    values = (b"1e999", BIG, b"-1", b"NaN", b'"x"', b"true")
    nested = _RUN_JSON.replace(b'"seed": 0', b'"seed": ' + NESTED)
    shown = [_RUN_JSON.replace(b'{"seed": "0"}', value) for value in (b"7", b"[[[], 1]]", b'{"seed": [1]}', b'"ab"')]
    return [*(_RUN_JSON.replace(b'"images": 4', b'"images": ' + value) for value in values), nested, *shown, *_JSON]


TARGETS = [
    Target(
        name="journal",
        seeds=_journal,
        hostile=_hostile_journal,
        read=_manifest(JOURNAL),
        errors=(ManifestError, RunFolderError),
        tokens=(*_JSON_TOKENS, b'"png_bytes"', b'"levels": [0, 9223372036854775808]', b'"seed": 18446744073709551616'),
        weight=3,
    ),
    Target(
        name="parquet",
        seeds=_parquet,
        hostile=_hostile_parquet,
        read=_manifest(PARQUET),
        errors=(ManifestError, RunFolderError),
        weight=0.5,
        guided=False,
        examples=30,
    ),
    Target(
        name="run.json",
        seeds=lambda: [_RUN_JSON],
        hostile=_hostile_runs,
        read=_description,
        errors=(RunFolderError, ManifestError, ArgumentError),
        tokens=_JSON_TOKENS,
    ),
    Target(
        name="hashes",
        guided=False,
        seeds=lambda: [b'{"faces:a/b": [[1, 2, 3, 4], "00"]}'],
        hostile=lambda: [b'{"a": [[1, 2, 3, 1e999], "0"]}', b'{"a": [[1, 2, 3, 4], ' + NESTED + b"]}", *_JSON],
        read=_folder_reader(KEPT, lambda path: KnownHashes.read(path.parent).to_bytes()),
        errors=(),
        tokens=_JSON_TOKENS,
    ),
    Target(
        name="study.json",
        guided=False,
        seeds=lambda: [_RUN_JSON],
        hostile=_hostile_runs,
        read=_folder_reader("study.json", lambda path: read_study(path.parent)),
        errors=(ArgumentError,),
        tokens=_JSON_TOKENS,
    ),
    Target(
        name="classes",
        guided=False,
        seeds=lambda: [b'["ada", "bob"]'],
        hostile=lambda: [*_JSON, b'["\\ud800"]', b"[" + NESTED + b"]"],
        read=_folder_reader("classes.json", read_classes),
        errors=(ArgumentError,),
        tokens=_JSON_TOKENS,
    ),
    Target(
        name="align report",
        guided=False,
        seeds=lambda: [_PICTURE.to_json() + AlignedPicture(picture="b.jpg", skipped="no face").to_json()],
        hostile=lambda: [
            *(each + b"\n" for each in _JSON),
            *(
                _PICTURE.to_json().replace(b"[1.0, 1.0,", b"[" + value + b",")
                for value in (b'"x"', b"{}", b"null", b"NaN")
            ),
            *(_PICTURE.to_json().replace(b'"a.jpg"', value) for value in (b"7", b"null", b"[]")),
            _PICTURE.to_json().replace(b'"width": 9', b'"width": [1]'),
        ],
        read=_folder_reader("report.jsonl", _align_report),
        errors=(),
        tokens=_JSON_TOKENS,
    ),
]
