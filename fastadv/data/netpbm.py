"""PBM, PGM and PPM files (P1 to P6) to pixels, in NumPy: Pillow reads most of them value by value in Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SPACE = b" \t\n\r\v\f"
_HEAD = 1 << 16  # bytes in which the header must end, comments included
_BLOCK = 1 << 18  # bytes of text that are converted at once: other threads wait as long
_NUMBER = re.compile(rb"(?:[ \t\n\r\v\f]|#[^\r\n]*[\r\n])*([0-9]{1,10})")
_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")
_NO_NUMBERS = re.compile(rb"[^0-9 \t\n\r\v\f]|[0-9]{11}")
_GAP = re.compile(rb"[ \t\n\r\v\f#]")
_LINE_END = re.compile(rb"[\r\n]")


class NetpbmHead(NamedTuple):
    """What the header of a file says; `kind` is the digit behind the P."""

    kind: int
    width: int
    height: int
    largest: int
    end: int

    @property
    def channels(self) -> int:
        """3 for PPM, else 1."""
        return 3 if self.kind in (3, 6) else 1


def netpbm_head(data: bytes) -> NetpbmHead:
    """Reads the header.

    Raises:
        ValueError: It is not whole, or its largest value is out of range.
    """
    kind = data[1] - ord("0")
    bits = kind in (1, 4)
    head, position, found = data[:_HEAD], 2, []
    for _ in range(2 if bits else 3):
        match = _NUMBER.match(head, position)
        if match is None:
            raise ValueError("the header is not whole")
        found.append(int(match[1]))
        position = match.end()
    largest = 1 if bits else found[2]
    if not 0 < largest < 1 << 16:
        raise ValueError(f"the largest value is {largest}, expected 1 to 65535")
    return NetpbmHead(kind, found[0], found[1], largest, position + 1)  # one space, then the pixels


def netpbm_pixels(data: bytes, head: NetpbmHead) -> NDArray[np.uint8]:
    """The pixels as (H, W, 3) uint8, scaled to 0..255; a largest value above 255 is the caller's to refuse.

    Raises:
        ValueError: There are too few, or one is out of range.
    """
    count = head.width * head.height * head.channels
    if head.kind == 4:
        row = (head.width + 7) // 8
        packed = _bytes(data, head.end, row * head.height).reshape(head.height, row)
        values = np.unpackbits(packed, axis=1, count=head.width).ravel()
    elif head.kind in (5, 6):
        values = _bytes(data, head.end, count)
    elif head.kind == 1:
        digits = b"".join(text.translate(None, _SPACE) for text in _texts(data, head.end))
        values = _bytes(digits, 0, count) - ord("0")
    else:
        values = _decimal(_texts(data, head.end), count, head.largest)
    if head.kind in (1, 4):
        if values.max(initial=0) > 1:
            raise ValueError("a pixel is neither 0 nor 1")
        values = (1 - values) * np.uint8(255)  # 1 is black
    elif head.largest != 255:
        values = _scale(head.largest)[values]
    shaped = values.reshape(head.height, head.width, head.channels)
    return np.array(np.broadcast_to(shaped, (head.height, head.width, 3)), order="C")


def _scale(largest: int) -> NDArray[np.uint8]:
    return np.array([min(255, round(value / largest * 255)) for value in range(256)], np.uint8)


def _bytes(data: bytes, start: int, count: int) -> NDArray[np.uint8]:
    if len(data) - start < count:
        raise ValueError(f"the file ends after {max(0, len(data) - start)} of {count} bytes of pixels")
    return np.frombuffer(data, np.uint8, count, start)


def _texts(data: bytes, start: int) -> Iterator[bytes]:
    """What stands behind the header, without comments, in pieces that end between two numbers."""
    while start < len(data):
        end = min(start + _BLOCK, len(data))
        line = max(data.rfind(b"\n", start, end), data.rfind(b"\r", start, end), start - 1)
        comment = data.find(b"#", line + 1, end) >= 0
        match = (_LINE_END if comment else _GAP).search(data, end)
        end = match.start() if match else len(data)
        yield _COMMENT.sub(b"", data[start:end])
        start = end


def _decimal(texts: Iterator[bytes], count: int, largest: int) -> NDArray[np.uint8]:
    values = np.empty(count, np.uint8)
    done, whole = 0, True
    while done < count and whole and (text := next(texts, None)) is not None:
        if other := _NO_NUMBERS.search(text):  # what stands behind the last pixel does not matter
            text, whole = text[: other.start()], False
        numbers = np.fromstring(text, np.int64, sep=" ")[: count - done]
        if numbers.max(initial=0) > largest:
            raise ValueError(f"a value is {numbers.max()}, expected at most {largest}")
        values[done : done + len(numbers)] = numbers
        done += len(numbers)
    if done < count:
        raise ValueError(f"the file has {done} of {count} values")
    return values
