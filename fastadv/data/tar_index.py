"""The members of a tar file by offset: one pass over the headers, nothing extracted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fastadv.core.content import describe_file
from fastadv.core.places import length, open_binary
from fastadv.data.faces import SourceError

BLOCK = 512
MAX_MEMBER = 256 * 2**20
_MAX_EXTENSION = 64 * 2**10
_MAX_IN_A_ROW = 16  # extended headers before one member; archivers write two or three
_REGULAR = frozenset({b"0", b"\0", b"7"})
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"K": "a link with a long name",
    b"S": "a sparse file",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A plain file inside of a tar file.

    Attributes:
        name: Its path, with "/" and without a leading "./".
        offset: Where its bytes begin in the tar file.
        size: How many they are.
    """

    name: str
    offset: int
    size: int


def tar_members(path: Path) -> Iterator[Member]:
    """The plain files of an uncompressed tar file (v7, ustar, pax or GNU), in its order; folders are left out.

    Raises:
        SourceError: The file is missing, compressed, damaged, cut short or without its end, or a member is a link, a
            device or sparse, has a path out of the archive, or a header or size beyond the limits.
    """
    try:
        with open_binary(path) as file:
            yield from _members(path, file, length(file))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _members(path: Path, file: BinaryIO, total: int) -> Iterator[Member]:
    at, long_name, pax, in_a_row = 0, "", dict[str, str](), 0
    while True:
        header = _take(path, file, at, BLOCK, total)
        if not any(header):
            return
        _check_sum(path, header, at)
        kind, size = header[156:157], _number(path, header[124:136], at)
        if kind in _REGULAR:
            size = _pax_size(path, pax, size, at)
        start = at + BLOCK
        at = start + -(-size // BLOCK) * BLOCK
        if start + size > total:
            raise SourceError(f"{path}: cut short: a member of {size} bytes at {start}, the file has {total}")
        if kind in (b"x", b"g", b"L"):
            if size > _MAX_EXTENSION:
                raise SourceError(f"{path}: an extended header of {size} bytes at {start}, at most {_MAX_EXTENSION}")
            in_a_row += 1
            if in_a_row > _MAX_IN_A_ROW:
                raise SourceError(
                    f"{path}: expected at most {_MAX_IN_A_ROW} extended headers before a member, got another at {start}"
                )
            data = _take(path, file, start, size, total)
            if kind == b"x":
                pax = _pax(path, data, start)
            elif kind == b"L":
                long_name = _text(data)
            continue
        name = _clean(path, pax.get("path") or long_name or _header_name(header))
        long_name, pax, in_a_row = "", {}, 0
        if kind == b"5" or (kind in _REGULAR and name.endswith("/")):
            continue
        if kind not in _REGULAR:
            raise SourceError(
                f"{path}: {name} is {_KINDS.get(kind, f'of the unknown kind {kind!r}')}, not a plain file"
            )
        if size > MAX_MEMBER:
            raise SourceError(f"{path}: {name} has {size} bytes, at most {MAX_MEMBER} are read")
        yield Member(name=name, offset=start, size=size)


def _take(path: Path, file: BinaryIO, at: int, count: int, total: int) -> bytes:
    if at + count > total:
        raise SourceError(f"{path}: cut short: no end of the archive within its {total} bytes")
    file.seek(at)
    return file.read(count)


def _check_sum(path: Path, header: bytes, at: int) -> None:
    stored = header[148:156]
    fields = header[:148] + b" " * 8 + header[156:]
    signed = sum(fields) - 256 * sum(byte > 127 for byte in fields)
    if _octal(stored) not in (sum(fields), signed):
        packed = next((f for magic, f in _COMPRESSED.items() if at == 0 and header.startswith(magic)), None)
        if packed:
            raise SourceError(f"{path}: compressed with {packed}; images can only be found in an uncompressed tar")
        if at == 0:
            raise SourceError(f"{path}: not a tar file, but {describe_file(path)}")
        raise SourceError(f"{path}: damaged: no valid header at {at}")


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _number(path: Path, field: bytes, at: int) -> int:
    """A size: octal digits, or GNU's big-endian form with the first bit set."""
    value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") if field[0] & 0x80 else _octal(field)
    if value is None or value < 0 or value > 2**62:
        raise SourceError(f"{path}: damaged: the header at {at} has no valid size")
    return value


def _header_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:262] == b"ustar" and header[262:263] == b"\0" else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(path: Path, data: bytes, at: int) -> dict[str, str]:
    """The records `length key=value` of an extended header."""
    found: dict[str, str] = {}
    begin, end = 0, len(data.rstrip(b"\0"))
    while begin < end:
        digits, _, _ = data[begin : begin + 8].partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = data[begin : begin + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not len(digits) < length == len(record) or not equals or not record.endswith(b"\n"):
            raise SourceError(f"{path}: damaged: the extended header at {at} is malformed")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        begin += length
    if any(key.startswith("GNU.sparse") for key in found):
        raise SourceError(f"{path}: holds a sparse file, not a plain one (the extended header at {at})")
    return found


def _pax_size(path: Path, pax: dict[str, str], size: int, at: int) -> int:
    text = pax.get("size")
    if text is None:
        return size
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise SourceError(f"{path}: damaged: the header at {at} has no valid size")
    return int(text)


def _clean(path: Path, name: str) -> str:
    """The name without a leading "./"; refuses one that leaves the archive."""
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    while name.startswith("./"):
        name = name[2:]
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or any(ord(c) < 32 for c in name):
        raise SourceError(f"{path}: the member {shown!r} has a path out of the archive or one that is no name")
    if name not in ("", ".") and any(part in ("", ".") for part in parts):
        raise SourceError(f"{path}: the member {shown!r} has a path with an empty part")
    if len(name.encode("utf-8", "surrogateescape")) > 1024:
        raise SourceError(f"{path}: the member {shown!r} has a path of more than 1024 bytes")
    return name
