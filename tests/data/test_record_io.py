"""RecordIO as MXNet and InsightFace write it; what is damaged is named with its place."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fastadv.data import ImageError, RecordIO, SourceError, images
from fastadv.runs.inputs import open_faces

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)
LABELS = (0, 0, 1, 1, 1, 2, 10_575)


def record(body: bytes, kind: int = 0) -> bytes:
    return struct.pack("<II", 0xCED7230A, kind << 29 | len(body)) + body + bytes(-len(body) % 4)


def image(label: float, data: bytes, *more: float) -> bytes:
    labels = (label, *more) if more else ()
    head = struct.pack("<IfQQ", len(labels), 0.0 if more else label, 7, 0)
    return record(head + struct.pack(f"<{len(labels)}f", *labels) + data)


def packed(folder: Path, *, insightface: bool = True, index: bool = True, name: str = "train") -> Path:
    """A file with a header and a record for each person, as InsightFace has them, or plain."""
    records = [
        image(label, images.encode_png(x), *((0.0,) if label == 1 else ()))
        for label, x in zip(LABELS, PIXELS, strict=True)
    ]
    if insightface:
        count = len(records) + 1
        records = [image(float(count), b"", count + 3.0), *records, *(image(k, b"", k + 2.0) for k in (1.0, 3.0))]
    offsets = np.cumsum([0, *map(len, records)])[:-1]
    (folder / f"{name}.rec").write_bytes(b"".join(records))
    if index:
        lines = (f"{k}\t{offset}\n" for k, offset in enumerate(offsets))
        (folder / f"{name}.idx").write_text("".join(lines))
    return folder / f"{name}.rec"


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("insightface", [True, False])
def test_faces_and_people_of_a_record_file(tmp_path: Path, insightface: bool, index: bool) -> None:
    source = open_faces(packed(tmp_path, insightface=insightface, index=index), size=12)
    first = 1 if insightface else 0
    assert source.names == tuple(f"{label:06d}/{first + k:08d}" for k, label in enumerate(LABELS))
    for name, pixels in zip(source.names, PIXELS, strict=True):
        assert np.array_equal(images.to_uint8(source.load(name).image), pixels)
    assert {face.identity for face in source.stream()} == {f"{label:06d}" for label in LABELS}


def test_the_index_gives_the_numbers(tmp_path: Path) -> None:
    file = packed(tmp_path, insightface=False)
    lines = (tmp_path / "train.idx").read_text().splitlines()
    (tmp_path / "train.idx").write_text("\n".join(f"{100 + k}\t{line.split()[1]}" for k, line in enumerate(lines)))
    assert RecordIO(tmp_path / "train.idx", size=None).names[0] == "000000/00000100"
    (tmp_path / "train.idx").write_text("0\t12345\n")
    with pytest.raises(SourceError, match=r"train\.rec: the record at 0 is not in train\.idx"):
        RecordIO(file)
    (tmp_path / "train.idx").write_text("0 zero\n")
    with pytest.raises(
        SourceError, match=r"train\.idx:1: expected the number and the offset of a record, got '0 zero'"
    ):
        RecordIO(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4" + bytes(60), "not a RecordIO file"),
        (image(0, b"x" * 40) + bytes(12), "damaged: no record at 72"),
        (image(0, b"x" * 40)[:-8], "cut short: the record at 0 has 64 bytes"),
        (image(0, b"x" * 40) + b"\x0a\x23", "cut short: 2 bytes at 72"),
        (record(bytes(40), kind=1), "is split in parts"),
        (image(0.5, b"x" * 40), "expected a number of a person, got 0.5"),
        (image(-1.0, b"x" * 40), "expected a number of a person, got -1"),
        (image(float("nan"), b"x" * 40), "expected a number of a person, got nan"),
        (record(b"short"), "expected records with an image, got none"),
        (b"", "expected records with an image, got none"),
    ],
)
def test_what_is_no_record_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.rec").write_bytes(data)
    with pytest.raises(SourceError, match=f"a.rec: .*{message}|a.rec: {message}"):
        RecordIO(tmp_path / "a.rec")


def test_a_missing_file_and_a_damaged_image(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.rec: there is no such file"):
        RecordIO(tmp_path / "a.rec")
    (tmp_path / "a.rec").write_bytes(image(0, b"x" * 40))
    with pytest.raises(ImageError, match=r"a\.rec/000000/00000000: not a"):
        RecordIO(tmp_path / "a.rec").load("000000/00000000")
