"""The inert values that a pickle is read into: strings that stay in the file, NumPy's types, arrays and scalars."""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from fastadv.core.errors import Error

MAX_STRING = 64 * 2**20
SHORT = 512  # longer strings stay in the file

Form = Literal["raw", "utf-8", "escaped text", "escaped bytes"]


class PickleRefusedError(Error, ValueError):
    """A pickle that is damaged, too large, or wants more than to be read; the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A string that lies in the file.

    Attributes:
        offset: Where it begins.
        length: How many bytes of the file it is.
        form: How the file holds it: as it is; as the UTF-8 of text (whose characters are the bytes, where text was
            turned to bytes); or as an escaped line of protocol 0.
        text: Whether it is text, not bytes.
        short: The content (text as UTF-8), where it is at most `SHORT` bytes of the file.
        expected: How many bytes the content must have, where something in the file says so.
    """

    offset: int
    length: int
    form: Form
    text: bool
    short: bytes | None
    expected: int | None = None

    def read(self, file: BinaryIO) -> bytes:
        """The bytes themselves.

        Raises:
            PickleRefusedError: The file has changed, or the text is not of bytes.
        """
        file.seek(self.offset)
        data = file.read(self.length)
        if len(data) != self.length:
            raise PickleRefusedError(f"{self.length} bytes expected at {self.offset}, {len(data)} are there")
        content = decoded(data, self.form)
        if isinstance(content, str):
            content = _latin(content)
        if self.expected is not None and len(content) != self.expected:
            raise PickleRefusedError(f"an array of {self.expected} bytes has {len(content)} at {self.offset}")
        return content


EMPTY = Span(offset=0, length=0, form="raw", text=False, short=b"")


def decoded(data: bytes, form: Form) -> bytes | str:
    """The content of a string as the file holds it.

    Raises:
        PickleRefusedError: It is not of that form.
    """
    try:
        if form == "raw":
            return data
        if form == "utf-8":
            return data.decode("utf-8", "surrogatepass")
        if form == "escaped text":
            return data.decode("raw-unicode-escape")
        if len(data) < 2 or data[:1] not in (b"'", b'"') or data[-1:] != data[:1]:
            raise PickleRefusedError("a string without its quotes")
        return codecs.escape_decode(data[1:-1])[0]
    except ValueError as error:
        if isinstance(error, PickleRefusedError):
            raise
        raise PickleRefusedError(f"text where bytes were expected: {error}") from None


def span(offset: int, length: int, form: Form, data: bytes | None, *, text: bool) -> Span:
    """A string of the file; its bytes, where they were read, are kept if they are few."""
    short = None
    if data is not None and length <= SHORT:
        content = decoded(data, form)
        short = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return Span(offset=offset, length=length, form=form, text=text, short=short)


def as_bytes(text: Span) -> Span:
    """What encoding the text in Latin-1 gives.

    Raises:
        PickleRefusedError: A short text has other characters.
    """
    short = None if text.short is None else _latin(text.short.decode("utf-8", "surrogatepass"))
    return Span(offset=text.offset, length=text.length, form=text.form, text=False, short=short)


def _latin(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeError as error:
        raise PickleRefusedError(f"text where bytes were expected: {error}") from None


class Dtype:
    """A type of NumPy: booleans, integers, floats, byte strings or objects."""

    def __init__(self, code: str) -> None:
        """From NumPy's own code, such as "u1" or "<i8".

        Raises:
            PickleRefusedError: A type that images and flags do not need.
        """
        match = re.fullmatch(r"[<>|=]?(b1|\?|bool|[iu][1248]|f[248]|S\d{1,9}|O[48]?)", code)
        if match is None:
            raise PickleRefusedError(f"it holds NumPy values of type {code[:20]!r}, which images and flags do not need")
        self.code = {"?": "b1", "bool": "b1"}.get(match[1], match[1])
        self.order = ">" if code.startswith(">") else "<"

    @property
    def size(self) -> int:
        """Bytes of one value; 0 for objects."""
        return 0 if self.code.startswith("O") else int(self.code[1:])

    def build(self, state: Any) -> None:
        """Take the byte order of a pickled state.

        Raises:
            PickleRefusedError: A state of records or subarrays.
        """
        plain = isinstance(state, tuple) and len(state) >= 5 and all(part is None for part in state[2:5])
        order = state[1].short if plain and isinstance(state[1], Span) else None
        if order not in (b"<", b">", b"|", b"="):
            raise PickleRefusedError("it holds NumPy values of a structured type, which images and flags do not need")
        self.order = ">" if order == b">" else "<"

    def values(self, data: bytes) -> NDArray[Any]:
        """The numbers in some bytes.

        Raises:
            PickleRefusedError: They are no whole number of values, or these are no numbers.
        """
        if self.code[0] not in "biuf" or len(data) % self.size:
            raise PickleRefusedError(f"{len(data)} bytes are no values of NumPy's type {self.code!r}")
        if self.code == "b1":
            return np.frombuffer(data, np.uint8)
        return np.frombuffer(data, np.dtype(self.order + self.code))


class Array:
    """An array of NumPy: its data is a span, or the list of its objects."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: Dtype | None = None
        self.data: Span | list[Any] = EMPTY
        self.columns_first = False

    def build(self, shape: Any, dtype: Any, data: Any, *, columns_first: bool = False) -> None:
        """Take a pickled state.

        Raises:
            PickleRefusedError: The parts are not those of an array, or do not fit each other.
        """
        sizes = isinstance(shape, tuple) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**40 for n in shape)
        if not (sizes and isinstance(dtype, Dtype)):
            raise PickleRefusedError("it holds a NumPy array without a shape and a type")
        count = math.prod(shape)
        if dtype.code.startswith("O"):
            if not isinstance(data, list) or len(data) != count:
                raise PickleRefusedError(f"a NumPy array of {count} objects does not hold as many")
        elif not isinstance(data, Span) or data.text:
            raise PickleRefusedError("it holds a NumPy array without its bytes")
        elif data.form == "raw" and data.length != count * dtype.size:
            raise PickleRefusedError(f"an array of {count * dtype.size} bytes has {data.length} at {data.offset}")
        else:
            data = Span(
                offset=data.offset,
                length=data.length,
                form=data.form,
                text=False,
                short=data.short,
                expected=count * dtype.size,
            )
        self.shape, self.dtype, self.data, self.columns_first = shape, dtype, data, columns_first

    def numbers(self, file: BinaryIO) -> NDArray[Any] | None:
        """The array itself, read from the file; None where it is not of numbers.

        Raises:
            PickleRefusedError: The file has changed.
        """
        if self.dtype is None or not isinstance(self.data, Span) or self.dtype.code[0] not in "biuf":
            return None
        values = self.dtype.values(self.data.read(file))
        return values.reshape(self.shape, order="F" if self.columns_first else "C")

    @property
    def flat(self) -> bool:
        """Whether it is a row or a column: one axis at most that is longer than one."""
        return sum(n != 1 for n in self.shape) <= 1


def scalar(dtype: Dtype, data: Span) -> Any:
    """One value of NumPy as a value of Python.

    Raises:
        PickleRefusedError: The bytes are no such value.
    """
    if dtype.code.startswith("S"):
        return data
    values = dtype.values(data.short or b"")
    if len(values) != 1:
        raise PickleRefusedError("it holds a NumPy value without its bytes")
    return bool(values[0]) if dtype.code == "b1" and values[0] in (0, 1) else values[0].item()
