"""JPEG and PNG files without what does not decide their pixels.

Pillow unpacks text and profiles, follows the tables of EXIF and reads filler byte by byte before it looks at a pixel: a
small file can cost it seconds or gigabytes. Here a file is walked from header to header in linear time, nothing is
unpacked, and Pillow is given the rest. The orientation is read apart, from EXIF or else XMP.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 100  # of a JPEG; each is a pass over every block, however few bytes it has

_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_CHUNK = re.compile(rb"\w{4}")
_XMP_TEXT, _EXIF_TEXT = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
_UNPACKED = 1 << 20  # bytes of a text that is looked at

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # no filler, no zero behind a value 255, no restart
_ALONE = frozenset({0x01, 0xC8, 0xD8, 0xD9, *range(0x02, 0xC0), *range(0xF0, 0xFE)})  # markers without a length
_DROPPED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})  # APP1 to APP13, APP15, comments: 0 and 14 tell the colours
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # segments that tell the size
_PIECE = 1 << 18
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class Bare(NamedTuple):
    """A file without what does not decide its pixels.

    Attributes:
        data: The file.
        turn: The orientation, 1 to 8 as in EXIF.
        parts: Chunks or segments that the file had.
        scans: Passes over the pixels; 0 where a JPEG ends before them.
        size: Width and height as the file declares them, the largest where it does so again; 0 where it does not.
        deep: Whether it has more than 8 bits a channel, which Pillow would cut without a word.
    """

    data: bytes
    turn: int
    parts: int
    scans: int
    size: tuple[int, int] = (0, 0)
    deep: bool = False


class TooManyPartsError(ValueError):
    """A file has more chunks, segments or scans than it may have."""


def bare_png(data: bytes, most_parts: int) -> Bare:
    """Keeps the header, the palette, the transparency and the pixels of a PNG; of an animation the default image.

    Raises:
        TooManyPartsError: There are more chunks than `most_parts`.
    """
    kept = _Kept(data)
    exif = b""
    texts: dict[bytes, tuple[bytes, int, int]] = {}
    position, parts, size, deep = 8, 0, (0, 0), False
    while position + 12 <= len(data):
        kind, length = data[position + 4 : position + 8], int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + length
        if not _CHUNK.fullmatch(kind) or end > len(data):
            break
        parts += 1
        if parts > most_parts:
            raise TooManyPartsError(f"more than {most_parts} chunks")
        if kind == b"IHDR" and length >= 8:
            size = max(size, struct.unpack_from(">II", data, position + 8), key=math.prod)
            deep = deep or data[position + 16 : position + 17] == b"\x10"
        if kind not in _PNG_PIXELS:
            kept.drop(position, end)
            body = position + 8
            if kind == b"eXIf":
                exif = data[body : end - 4]
            elif kind in (b"tEXt", b"zTXt", b"iTXt"):
                for keyword in (_XMP_TEXT, _EXIF_TEXT):
                    if data.startswith(keyword, body):
                        texts[keyword] = (kind, body + len(keyword), end - 4)
        position = end
        if kind == b"IEND":
            kept.drop(position, len(data))
            break
    unpacked = {keyword: _text(kind, data[start:end]) for keyword, (kind, start, end) in texts.items()}
    exif = exif or _hexadecimal(unpacked.get(_EXIF_TEXT, b""))
    return Bare(kept.joined(), orientation(exif, unpacked.get(_XMP_TEXT, b"")), parts, 1, size, deep)


def bare_jpeg(data: bytes, most_parts: int) -> Bare:
    """Keeps the tables and the pixels of a JPEG, of several pictures the first, and leaves metadata and filler out.

    Raises:
        TooManyPartsError: There are more segments than `most_parts`, or more scans than `MAX_SCANS`.
    """
    kept = _Kept(data)
    exif: list[bytes] = []
    xmp = b""
    position, parts, scans, size = 2, 0, 0, (0, 0)
    while match := _next_marker(data, position):
        start, marker = match.start(), data[match.end() - 1]
        if not scans:
            kept.drop(position, start)
        position = match.end()
        parts += 1
        if parts > most_parts:
            raise TooManyPartsError(f"more than {most_parts} segments")
        if marker == _EOI and scans:
            kept.drop(position, len(data))
            break
        if marker in _ALONE:
            continue
        end = position + max(2, int.from_bytes(data[position : position + 2], "big"))
        if marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise TooManyPartsError(f"more than {MAX_SCANS} scans")
        if marker in _FRAMES and position + 7 <= len(data):
            height, width = struct.unpack_from(">HH", data, position + 3)
            size = max(size, (width, height), key=math.prod)
        if marker == _APP1 and data.startswith(_EXIF, position + 2):
            exif.append(data[position + 2 + len(_EXIF) : end])
        elif marker == _APP1 and data.startswith(_XMP, position + 2):
            xmp = data[position + 2 + len(_XMP) : end]
        if marker in _DROPPED and not scans and end <= len(data):
            kept.drop(start, end)
        position = end
    else:
        if not scans:
            kept.drop(position, len(data))
    return Bare(kept.joined(), orientation(b"".join(exif), xmp), parts, scans, size)


def _next_marker(data: bytes, position: int) -> re.Match[bytes] | None:
    """The next one; searched piece by piece, as other threads wait while a pattern is matched."""
    while position < len(data):
        if match := _MARKER.search(data, position, position + _PIECE + 1):
            return match
        position += _PIECE
    return None


def orientation(exif: bytes, xmp: bytes) -> int:
    """1 to 8: the tag of EXIF, or where it has none that of XMP; 1 where neither can be read."""
    tagged = _tag(exif.removeprefix(_EXIF))
    if tagged is None:
        found = _XMP_ORIENTATION.search(xmp)
        tagged = int(found[1]) if found else 1
    return tagged if 1 <= tagged <= 8 else 1


def bmp_size(head: bytes) -> tuple[int, int]:
    """Width and height by the first 26 bytes of a BMP; a height below 0 is one of rows from the top."""
    if len(head) < 26:
        return 0, 0
    if int.from_bytes(head[14:18], "little") == 12:
        width, height = struct.unpack_from("<HH", head, 18)
        return width, height
    width, height = struct.unpack_from("<Ii", head, 18)
    return width, abs(height)


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height by the first 30 bytes of a WebP: Pillow asks for the memory before it tells them."""
    kind = head[12:16]
    if len(head) < 30:
        return None
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


class _Kept:
    """The spans of a file that stay, copied once at the end, or not at all where all stay."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._spans: list[tuple[int, int]] = []
        self._next = 0

    def drop(self, start: int, end: int) -> None:
        """Leave out; spans come in their order."""
        if start < end:
            if self._next < start:
                self._spans.append((self._next, start))
            self._next = end

    def joined(self) -> bytes:
        """What stays."""
        if self._next == 0:
            return self._data
        view = memoryview(self._data)
        spans: Sequence[tuple[int, int]] = (*self._spans, (self._next, len(self._data)))
        return b"".join(view[start:end] for start, end in spans)


def _tag(exif: bytes) -> int | None:
    """The orientation in the first table of EXIF; None where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, start)
    count = min(count, (len(exif) - start - 2) // 12)
    fields = [("tag", order + "u2"), ("type", order + "u2"), ("count", order + "u4"), ("value", "V4")]
    entries = np.frombuffer(exif, np.dtype(fields), count, start + 2)
    found = np.flatnonzero(entries["tag"] == _ORIENTATION)
    if not len(found):
        return None
    _, kind, values, value = entries[found[0]].tolist()
    if values != 1 or kind not in (3, 4):  # of SHORT or LONG
        return 1
    return int(struct.unpack_from(order + ("H" if kind == 3 else "I"), value)[0])


def _text(kind: bytes, body: bytes) -> bytes:
    """The beginning of the text of a PNG's chunk behind its keyword, or nothing where it cannot be unpacked."""
    body = body[:_UNPACKED]
    if kind == b"tEXt":
        return body
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = body[:1] == b"\1"
        body = body[1:2] + b"".join(body[2:].split(b"\0", 2)[2:])  # the method, then behind language and translation
    if not packed:
        return body[1:]
    try:
        return zlib.decompressobj().decompress(body[1:], _UNPACKED)
    except zlib.error:
        return b""


def _hexadecimal(text: bytes) -> bytes:
    """The EXIF in a text: three lines, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""
