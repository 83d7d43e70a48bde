"""The bytes of a pickle, front to back: what is long is passed over and stays in the file."""

from __future__ import annotations

import struct
from typing import BinaryIO

from fastadv.core.pickle_values import SHORT, PickleRefusedError

_MAX_LINE = 4096
_BLOCK = 1 << 18


class Reader:
    """The bytes of a file from front to back, in blocks; long strings are passed over."""

    def __init__(self, file: BinaryIO, size: int, *, longest: int) -> None:
        """Begin where the file is.

        Args:
            file: open.
            size: where it ends.
            longest: no string may have more bytes.
        """
        self._file, self._size, self.longest = file, size, longest
        self._block, self._begin, self._at = b"", file.tell(), 0

    def tell(self) -> int:
        return self._begin + self._at

    def byte(self) -> int:
        if self._at == len(self._block):
            self._fill(1)
        value = self._block[self._at]
        self._at += 1
        return value

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._block):
            self._fill(count)
        data = self._block[self._at : self._at + count]
        self._at += count
        return data

    def number(self, form: str, count: int) -> int:
        return int(struct.unpack(form, self.take(count))[0])

    def string(self, count: int) -> bytes | None:
        """The next bytes, or None where they are many and were passed over."""
        if count > self.longest or count < 0:
            raise PickleRefusedError(f"a string of {count} bytes at {self.tell()}; at most {self.longest} are read")
        self._check(count)
        if count <= SHORT:
            return self.take(count)
        self._at += count
        if self._at > len(self._block):
            self._begin, self._at, self._block = self.tell(), 0, b""
            self._file.seek(self._begin)
        return None

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """Up to the next line feed, which is passed."""
        begin, searched = self.tell(), self._at
        while (end := self._block.find(b"\n", searched)) < 0:
            have = len(self._block) - self._at
            if have >= limit:
                break
            if begin + have >= self._size:
                raise PickleRefusedError(f"cut short: a line without an end at {begin}, the file has {self._size}")
            more = self._file.read(max(_BLOCK, have))  # doubling: a long line costs no more than its length
            if not more:
                raise PickleRefusedError(f"cut short: a line without an end at {begin}")
            self._block, self._begin, self._at = self._block[self._at :] + more, begin, 0
            searched = have
        if end < 0 or end - self._at >= limit:
            raise PickleRefusedError(f"a line of {limit} bytes or more at {begin}")
        data = self._block[self._at : end]
        self._at = end + 1
        return data

    def _check(self, count: int) -> None:
        if count > self._size - self.tell():
            raise PickleRefusedError(f"cut short: {count} bytes expected at {self.tell()}, the file has {self._size}")

    def _fill(self, count: int) -> None:
        self._check(count)
        self._block, self._begin, self._at = self._block[self._at :], self.tell(), 0
        self._block += self._file.read(max(_BLOCK, count - len(self._block)))
        if len(self._block) < count:
            raise PickleRefusedError(f"cut short: {count} bytes expected at {self.tell()}")
