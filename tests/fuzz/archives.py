"""Files of many images: tar shards, RecordIO, InsightFace's pickles."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fastadv.data.faces import SourceError
from fastadv.data.images import ImageError
from fastadv.data.pair_bin import PairBin
from fastadv.data.record_io import RecordIO
from fastadv.data.shards import Shards

from .images import PNG
from .judge import Target
from .lists import NEXT, written

DEEP = b"[" * 100_000
NESTED = b"[" * 940 + b"]" * 940  # what the parser just takes and others do not
BIG = b"9" * 400


# -- archives --


def tar(members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    whole = file.getvalue().rstrip(b"\0")
    return whole + bytes(-len(whole) % 512 + 1024)


def right_tar_sums(data: bytes) -> bytes:
    """An archive with the checksums of its headers."""
    made, at = bytearray(data), 0
    while at + 512 <= len(made) and any(made[at : at + 512]):
        made[at + 148 : at + 156] = b" " * 8
        made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
        digits = bytes(made[at + 124 : at + 136]).strip(b" \0")
        size = int(digits, 8) if digits and not digits.strip(b"01234567") else 0
        at += 512 + -(-size // 512) * 512
    return bytes(made)


def _shards(data: bytes, folder: Path) -> None:
    found = Shards(written(folder, "x.tar", data), size=8)
    for name in found.names[:2]:
        found.load(name)
    found.check(found.names[:2])


def _samples() -> list[bytes]:
    sample = [
        ("0.png", PNG),
        ("0.json", b'{"identity": "Ada", "label": 3, "name": "x"}'),
        ("1.png", PNG),
        ("1.cls", b"7"),
    ]
    long = [("a/" + "b" * 120 + ".png", PNG), ("a/2.png", PNG), ("./a/é.png", PNG)]
    return [tar(sample), tar(long), tar(long, tarfile.GNU_FORMAT), tar(sample, tarfile.USTAR_FORMAT)]


def _hostile_samples() -> list[bytes]:
    labels = (DEEP, b'{"identity": ' + NESTED + b"}", b'{"identity": "\\ud800"}', b'{"name": "../x", "label": NaN}')
    labels += (
        b'{"name": "a\\u0000b", "label": 1}',
        b"\xff\xfe{\0}\0",
        b'{"label": ' + BIG + b"}",
        b'{"label": 1e999}',
    )
    return [tar([("0.png", PNG), ("0.json", label)]) for label in labels] + [
        tar([(name, PNG)])
        for name in ("../a.png", "/a/b.png", "a/../../b.png", "a/\n.png", "a/b\\c.png", "a/\udcff.png")
    ]


_RECORD = struct.Struct("<IfQQ")


def _record(label: float, data: bytes) -> bytes:
    body = _RECORD.pack(0, label, 7, 0) + data
    return struct.pack("<II", 0xCED7230A, len(body)) + body + bytes(-len(body) % 4)


def _records(data: bytes, folder: Path) -> None:
    records, index = (*data.split(NEXT + NEXT), None)[:2]
    path = written(folder, "x.rec", records or b"")
    path.with_suffix(".idx").unlink(missing_ok=True)
    if index is not None:
        path.with_suffix(".idx").write_bytes(index)
    found = RecordIO(path, size=8)
    found.load(found.names[0])


def _record_files() -> list[bytes]:
    one, other = _record(0, PNG), _record(3, PNG)
    head = _RECORD.pack(2, 0.0, 0, 0) + struct.pack("<2f", 2.0, 3.0)
    first = struct.pack("<II", 0xCED7230A, len(head)) + head
    return [one + other, first + one + other, one + other + NEXT * 2 + b"4\t0\n9\t%d\n" % len(one)]


def _hostile_records() -> list[bytes]:
    return [_record(label, PNG) for label in (float("nan"), float("inf"), -1.0, 0.5, 1e30)] + [
        _record(0, PNG) + NEXT * 2 + b"9" * 5000 + b"\t0\n"
    ]


def _bin(data: bytes, folder: Path) -> None:
    found = PairBin(written(folder, "x.bin", data), size=8)
    found.load(found.names[0])


class _Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self._made = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._made


def evil() -> list[bytes]:
    """Pickles that start a program, evaluate a text or open a file when they are unpickled."""
    import os
    import subprocess

    calls = [
        _Evil(os.system, "true"),
        _Evil(eval, "__import__('os').system('true')"),
        _Evil(subprocess.Popen, ("true",)),
    ]
    calls.append(_Evil(open, "/tmp/fastadv-fuzz", "w"))
    return [pickle.dumps(([PNG, PNG], [call]), protocol=p) for call in calls for p in (0, 2, 4)]


def _bins() -> list[bytes]:
    arrays = [np.frombuffer(PNG, np.uint8).copy()] * 4
    values = (([PNG] * 4, [True, False]), (arrays, np.eye(1, 2)), ([bytearray(PNG)] * 2, [np.int64(1)]))
    return [pickle.dumps(value, protocol=p) for p in (0, 2, 4, 5) for value in values]


def _hostile_bins() -> list[bytes]:
    numbers = pickle.dumps(([PNG, PNG], np.zeros(200_000, np.int64)), protocol=4)
    loop = b"\x80\x04]\x94h\x00a]\x94(h\x00h\x00e\x86."
    return [*evil(), numbers, loop, b"\x80\x04" + b"(" * 100_000, b"\x80\x04]\x94" + b"h\0" * 120_000 + b"\x86."]


TARGETS = [
    Target(
        name="tar",
        seeds=_samples,
        hostile=_hostile_samples,
        read=_shards,
        errors=(SourceError, ImageError),
        repair=right_tar_sums,
        tokens=(b"ustar\x0000", b"ustar  \0", b"path=", b"size=", b"GNU.sparse.major=1", b".png", b".json", b".cls"),
        weight=4,
    ),
    Target(
        name="record io",
        seeds=_record_files,
        hostile=_hostile_records,
        read=_records,
        errors=(SourceError, ImageError),
        tokens=(struct.pack("<I", 0xCED7230A), NEXT * 2),
        weight=5,
    ),
    Target(
        name="bin",
        seeds=_bins,
        hostile=_hostile_bins,
        read=_bin,
        errors=(SourceError, ImageError),
        tokens=(b"cos\nsystem\n", b"R", b"\x93", b"\x94", b"h\0", b"b.", b"X\x04\0\0\0eval", b"\x8c\x08builtins"),
        weight=3,
    ),
]
