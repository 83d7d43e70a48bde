"""Damage to the bytes of a file: small edits that random numbers, Hypothesis or a fuzzing engine draw."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

Edit = tuple[int, int, int]
"""The kind of an edit, its place and its value: any numbers from 0 to 2^32 - 1."""

LARGEST = 1 << 18  # bytes of an input
_HEAD = 256  # bytes in which every second edit lies: most of a format's structure
_BOUNDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 4096, 40_000, 1 << 20, 1 << 30, 0x7FFFFFFF)
_BOUNDS += (0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_NUMBERS = (b"0", b"-1", b"1e999", b"nan", b"NaN", b"-inf", b"0x10", b"1_0", b"4294967296", b"9" * 25, b"9" * 400)
_NUMBERS += (b"9" * 5000, b"1e-320", b"00000000000000000000001", "٣".encode())
_DIGITS = re.compile(rb"-?\d[\d.]*")
# what means something in texts, JSON, TOML and paths
TOKENS = (
    b"\0",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b",",
    b"/",
    b"../",
    b"\\",
    b'"',
    b"'",
    b"{}",
    b"[]",
    b"[" * 2000,
    b"{",
    b":",
)
TOKENS += (
    b"null",
    b"true",
    b"=",
    b"#",
    b"%",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"%%",
)
TOKENS += ("é".encode(), b"e\xcc\x81", b"/" * 300, b"a" * 300, b"\x1b[31m", b".png", b"a/b")


def edited(data: bytes, edits: Sequence[Edit], others: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """The bytes after some edits.

    Args:
        data: A valid file, or any bytes.
        edits: One after the other.
        others: Files that parts are taken from.
        tokens: Words that mean something in the format.
    """
    made = bytearray(data[:LARGEST])
    known = (*tokens, *tokens, *TOKENS)
    for kind, place, value in edits:
        reach = min(len(made), _HEAD) if place & 1 else len(made)
        at = (place >> 1) % (reach + 1)
        _KINDS[kind % len(_KINDS)](made, at, value, others, known)
        del made[LARGEST:]
    return bytes(made)


def drawn(chance: random.Random) -> list[Edit]:
    """One edit mostly, sometimes more."""
    count = chance.choice((1, 1, 1, 2, 2, 3, 5, 12))
    return [(chance.getrandbits(32), chance.getrandbits(32), chance.getrandbits(32)) for _ in range(count)]


def _flip(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if at < len(made):
        made[at] ^= 1 << value % 8


def _byte(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    made[at : at + 1] = bytes([value % 256])


def _number(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    width, order = (1, 2, 4, 8)[value % 4], ("little", "big")[value >> 2 & 1]
    number = _BOUNDS[(value >> 3) % len(_BOUNDS)] % (1 << 8 * width)
    made[at : at + width] = number.to_bytes(width, "little" if order == "little" else "big")


def _cut(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    del made[at:]


def _remove(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    del made[at : at + 1 + value % (64 if value & 1 << 31 else 8)]


def _insert(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    made[at:at] = value.to_bytes(4, "little")[: 1 + value % 4]


def _repeat(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    made[at:at] = made[at : at + 1 + value % 64] * (1 + (value >> 8) % (2000 if value >> 30 == 3 else 8))


def _splice(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    other = others[value % len(others)]
    start, length = (value >> 4) % (len(other) + 1), 1 + (value >> 12) % 512
    made[at : at + (length if value & 1 << 31 else 0)] = other[start : start + length]


def _token(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    token = tokens[value % len(tokens)]
    made[at : at + (len(token) if value & 1 << 31 else 0)] = token


def _digits(made: bytearray, at: int, value: int, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """Another number in place of the next one in decimal digits."""
    found = _DIGITS.search(made, at)
    if found:
        made[found.start() : found.end()] = _NUMBERS[value % len(_NUMBERS)]


_Kind = Callable[[bytearray, int, int, Sequence[bytes], Sequence[bytes]], None]
_KINDS: tuple[_Kind, ...] = (_flip, _byte, _number, _cut, _remove, _insert, _repeat, _splice, _token, _digits)
