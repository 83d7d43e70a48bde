"""TIFF, AVIF and HEIC files without what does not decide their pixels, as `bare` does it for JPEG and PNG."""

from __future__ import annotations

import math
import re
import struct

from fastadv.data.bare import Bare, TooManyPartsError, bare_jpeg, bare_png, bmp_size

_ENTRY = 12  # bytes
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes of a type's value
_WIDTH, _HEIGHT, _BITS, _STRIPS, _TURN, _TILES = 256, 257, 258, 273, 274, 324
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_SIDES = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
_EXTENT = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)  # of a picture, or a tile of it
# of the first picture: size, depth, compression, colours, where its strips or tiles lie; no metadata, no further tables
_PIXELS = frozenset(
    {254, 255, *_SIDES, _BITS, 259, 262, 266, _STRIPS, 277, 278, 279, 284, 317, 320, _TILES, 325}
    | {332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532}
)


def bare_image(data: bytes, format: str | None, most_parts: int) -> Bare:
    """A file of any format without what does not decide its pixels.

    Raises:
        TooManyPartsError: It has more chunks, segments, tags, strips or tiles than `most_parts`.
        ValueError: It is damaged.
    """
    if format == "PNG":
        return bare_png(data, most_parts)
    if format == "JPEG":
        return bare_jpeg(data, most_parts)
    if format == "TIFF":
        return bare_tiff(data, most_parts)
    if format in ("AVIF", "HEIC"):
        return bare_boxes(data, most_parts)
    return Bare(data, 1, 1, 1, bmp_size(data) if format == "BMP" else (0, 0))


def bare_tiff(data: bytes, most_parts: int) -> Bare:
    """The first picture of a TIFF: its table of tags is written anew behind the file, without metadata.

    A part is a tag, a strip or a tile: Pillow makes an object of each.

    Raises:
        TooManyPartsError: There are more parts than `most_parts`.
        ValueError: The table cannot be read.
    """
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        if count > most_parts:
            raise TooManyPartsError(f"more than {most_parts} tags")
        entries: dict[int, bytes] = {}
        found: dict[int, tuple[int, ...]] = {}
        parts = count
        for place in range(start + 2, start + 2 + _ENTRY * count, _ENTRY):
            tag, kind, values = struct.unpack_from(order + "HHI", data, place)
            if tag in entries or (tag not in _PIXELS and tag != _TURN):
                continue
            if _SIZES.get(kind, 0) * values > len(data):
                raise ValueError(f"its tag {tag} has more values than the file")
            if tag in (_STRIPS, _TILES):
                parts += values
            if parts > most_parts:
                raise TooManyPartsError(f"more than {most_parts} tags, strips and tiles")
            if tag in _SIDES and kind not in (3, 4):  # Pillow reads others too
                raise ValueError(f"its tag {tag} is no whole number")
            if tag in (*_SIDES, _BITS, _TURN):
                found[tag] = _integers(data, order, place)
            if tag != _TURN:
                entries[tag] = data[place : place + _ENTRY]
    except struct.error as error:
        raise ValueError("its table of tags is cut short") from error
    turn = found.get(_TURN, (1,))[0]
    table = struct.pack(order + "H", len(entries)) + b"".join(entries.values()) + bytes(4)
    # offsets in the table are from the beginning of the file, which stays where it is
    moved = data[:4] + struct.pack(order + "I", len(data)) + data[8:] + table
    # a tile is decoded whole, however small the picture in it
    sizes = ((found.get(width, (0,))[0], found.get(height, (0,))[0]) for width, height in (_SIDES[:2], _SIDES[2:]))
    size = max(sizes, key=math.prod)
    deep = max(found.get(_BITS, (1,))) > 8
    return Bare(moved, turn if 1 <= turn <= 8 else 1, parts, 1, size, deep)


def _integers(data: bytes, order: str, place: int) -> tuple[int, ...]:
    """The values of a tag of SHORT or LONG, 16 at most."""
    kind, count = struct.unpack_from(order + "HI", data, place + 2)
    if kind not in (3, 4) or not count:
        return (0,)
    letter, width = ("H", 2) if kind == 3 else ("I", 4)
    at = place + 8
    if count * width > 4:
        (at,) = struct.unpack_from(order + "I", data, at)
    return struct.unpack_from(f"{order}{min(count, 16)}{letter}", data, at)


def bare_boxes(data: bytes, most_parts: int) -> Bare:
    """An AVIF or HEIC file whose EXIF is renamed, so that nobody follows its tables.

    The turn of the picture is a property of these formats, which their decoders apply or tell.

    Raises:
        TooManyPartsError: There are more boxes than `most_parts`.
    """
    made, position, parts, size = bytearray(data), 0, 0, (0, 0)
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + length if length >= 8 else len(data)  # 0: to the end; 1: a long box, such as the pixels'
        parts += 1
        if parts > most_parts:
            raise TooManyPartsError(f"more than {most_parts} boxes")
        if length == 1 and position + 16 <= len(data):
            end = position + max(16, int.from_bytes(data[position + 8 : position + 16], "big"))
        if kind == b"meta":
            made[position:end] = made[position:end].replace(b"Exif", b"none")
            sizes = (struct.unpack(">II", found[1]) for found in _EXTENT.finditer(data, position, end))
            size = max((size, *sizes), key=math.prod)
        position = end
    return Bare(bytes(made), 1, parts, 1, size)
