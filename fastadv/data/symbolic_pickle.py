"""A pickle of lists of bytes and flags, read without running it.

A pickle is a program: unpickling a file from a stranger runs the stranger's code. Here the program is only looked
at, one opcode after the other, on a stack of inert values. Nothing is imported or called; a name that is not in a
short list of harmless ones, and any opcode beyond lists, tuples, bytes, text, integers and the memo, is an error.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastadv.core.errors import Error

MAX_OPCODES = 5_000_000
MAX_STRING = 64 * 2**20
_MAX_LINE = 4096
_SHORT = 64  # longer strings stay in the file


class PickleRefusedError(Error, ValueError):
    """A pickle that is damaged, too large, or wants more than to be read; the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Bytes that lie in the file.

    Attributes:
        offset: Where they begin.
        length: How many bytes of the file they are.
        utf8: Stored as the UTF-8 of text whose characters are the bytes (Python 3 writing protocol 2).
        short: The content, where it is at most 64 bytes long.
    """

    offset: int
    length: int
    utf8: bool
    short: bytes | None

    def read(self, file: BinaryIO) -> bytes:
        """The bytes themselves.

        Raises:
            PickleRefusedError: The file has changed, or the text is not of bytes.
        """
        file.seek(self.offset)
        data = file.read(self.length)
        if len(data) != self.length:
            raise PickleRefusedError(f"{self.length} bytes expected at {self.offset}, {len(data)} are there")
        return _bytes_of_text(data) if self.utf8 else data


@dataclass(frozen=True)
class _Name:
    """A global that is allowed to be mentioned."""

    text: str


_ENCODE = _Name("_codecs.encode")
_SCALAR = _Name("numpy.core.multiarray.scalar")
_DTYPE = _Name("numpy.dtype")
_BOOL = _Name("numpy.dtype('bool')")
_NAMES = {
    "_codecs encode": _ENCODE,
    "numpy.core.multiarray scalar": _SCALAR,
    "numpy._core.multiarray scalar": _SCALAR,
    "numpy dtype": _DTYPE,
}
# opcode: bytes between it and its string's first byte, and whether the string is UTF-8 text
_STRINGS = {
    "BINSTRING": (4, False),
    "SHORT_BINSTRING": (1, False),
    "BINBYTES": (4, False),
    "SHORT_BINBYTES": (1, False),
    "BINBYTES8": (8, False),
    "BYTEARRAY8": (8, False),
    "BINUNICODE": (4, True),
    "SHORT_BINUNICODE": (1, True),
    "BINUNICODE8": (8, True),
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


class _Bounded:
    """The file as `pickletools` reads it: no single read may ask for more than there can be."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        if count > MAX_STRING:
            raise PickleRefusedError(f"a string of {count} bytes at {self.tell()}; at most {MAX_STRING} are read")
        if count > self._size - self.tell():
            raise PickleRefusedError(f"cut short: {count} bytes expected at {self.tell()}, the file has {self._size}")
        return self._file.read(count)

    def readline(self) -> bytes:
        at, line = self.tell(), self._file.readline(_MAX_LINE)
        if len(line) == _MAX_LINE:
            raise PickleRefusedError(f"a line of {_MAX_LINE} bytes or more at {at}")
        return line


class _Machine:
    """The stack, the marks and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, position: int, end: int) -> None:
        if name in _STRINGS:
            header, utf8 = _STRINGS[name]
            self._push_string(position + 1 + header, end, utf8, argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _INTEGERS:
            self.stack.append(argument)
        elif name == "MARK":
            self._marks.append(len(self.stack))
        elif name == "EMPTY_LIST":
            self.stack.append([])
        elif name in ("LIST", "TUPLE"):
            items = self._above_mark()
            self.stack.append(items if name == "LIST" else tuple(items))
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._above_mark()
            self._list_on_top().extend(items)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in _PUTS:
            self._memo[argument] = self._top()
        elif name in _GETS:
            if argument not in self._memo:
                raise PickleRefusedError(f"it recalls memo {argument}, which it did not store")
            self.stack.append(self._memo[argument])
        elif name == "GLOBAL":
            self.stack.append(_allowed(argument))
        elif name == "STACK_GLOBAL":
            module, what = self._pop(2)
            self.stack.append(_allowed(f"{_text(module)} {_text(what)}"))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            self.stack.append(_reduced(function, arguments))
        elif name == "BUILD":
            self._pop(1)
            if self._top() is not _BOOL:
                raise PickleRefusedError("it sets the state of an object")
        elif name not in ("PROTO", "FRAME"):
            raise PickleRefusedError(f"it uses the opcode {name}, which lists of images and flags do not need")

    def _push_string(self, start: int, end: int, utf8: bool, argument: Any) -> None:
        short = None
        if end - start <= _SHORT:
            short = argument.encode("utf-8" if utf8 else "latin-1") if isinstance(argument, str) else bytes(argument)
        self.stack.append(Span(offset=start, length=end - start, utf8=utf8, short=short))

    def _floor(self) -> int:
        return self._marks[-1] if self._marks else 0

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) - self._floor() < count:
            raise PickleRefusedError("it takes more from its stack than it put there")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _top(self) -> Any:
        if len(self.stack) == self._floor():
            raise PickleRefusedError("it looks at an empty stack")
        return self.stack[-1]

    def _above_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleRefusedError("it closes a list that it did not open")
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _list_on_top(self) -> list[Any]:
        top = self._top()
        if not isinstance(top, list):
            raise PickleRefusedError("it appends to something that is no list")
        return top


def _allowed(name: str) -> _Name:
    if name not in _NAMES:
        raise PickleRefusedError(f"it asks for {name.replace(' ', '.')}, which could run code; nothing was run")
    return _NAMES[name]


def _text(value: Any) -> str:
    if not (isinstance(value, Span) and value.short is not None):
        raise PickleRefusedError("it names a global by something that is no short text")
    return value.short.decode("utf-8", "replace")


def _reduced(function: Any, arguments: Any) -> Any:
    """What the three calls that are known would give."""
    if function is _ENCODE and isinstance(arguments, tuple) and len(arguments) == 2:
        text, encoding = arguments
        if isinstance(text, Span) and text.utf8 and _text(encoding) in ("latin1", "latin-1"):
            return Span(
                offset=text.offset,
                length=text.length,
                utf8=True,
                short=None if text.short is None else _bytes_of_text(text.short),
            )
    elif function is _DTYPE and isinstance(arguments, tuple) and arguments:
        if _text(arguments[0]) in ("b1", "?", "bool"):
            return _BOOL
    elif function is _SCALAR and isinstance(arguments, tuple) and len(arguments) == 2:
        kind, data = arguments
        if kind is _BOOL and isinstance(data, Span) and data.short in (b"\0", b"\1"):
            return data.short == b"\1"
    name = function.text if isinstance(function, _Name) else "something that is no function"
    raise PickleRefusedError(f"it calls {name} in a way that lists of images and flags do not need")


def _bytes_of_text(data: bytes) -> bytes:
    try:
        return data.decode("utf-8", "surrogatepass").encode("latin-1")
    except UnicodeError as error:
        raise PickleRefusedError(f"text where bytes were expected: {error}") from error


def read_symbolically(path: Path) -> Any:
    """The value of a pickle: lists, tuples, integers, booleans, None, and a `Span` for every string.

    Memory grows with the number of items, not with their size; the file is read once, front to back.

    Raises:
        PickleRefusedError: The file is damaged, larger than the limits, or no plain data.
        OSError: The file cannot be read.
    """
    machine = _Machine()
    with open(path, "rb") as file:
        size = path.stat().st_size
        waiting: tuple[str, Any, int] | None = None
        try:
            # the end of an opcode's argument is where the next opcode begins
            for number, (opcode, argument, position) in enumerate(
                pickletools.genops(cast(BinaryIO, _Bounded(file, size)))
            ):
                if number >= MAX_OPCODES:
                    raise PickleRefusedError(f"more than {MAX_OPCODES} opcodes")
                if waiting is not None:
                    machine.step(*waiting, int(position or 0))
                waiting = (opcode.name, argument, int(position or 0))
        except PickleRefusedError:
            raise
        except (ValueError, EOFError, OverflowError, struct.error) as error:
            raise PickleRefusedError(f"not a readable pickle: {error}") from error
    if len(machine.stack) != 1:
        raise PickleRefusedError(f"it ends with {len(machine.stack)} values, expected one")
    return machine.stack[0]
