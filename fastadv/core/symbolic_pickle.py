"""A pickle of images and flags, read without running it.

A pickle is a program: unpickling a file from a stranger runs the stranger's code. Here the program is only looked
at, one opcode after the other, on a stack of inert values. Nothing is imported or called; a name that is not in a
short list of harmless ones, and any opcode beyond lists, tuples, bytes, text, integers and the memo, is an error.
Protocols 0 to 5 are read, with NumPy's arrays and scalars under the module names of NumPy 1 and 2.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastadv.core.pickle_bytes import Reader
from fastadv.core.pickle_values import (
    EMPTY,
    MAX_STRING,
    Array,
    Dtype,
    Form,
    PickleRefusedError,
    Span,
    as_bytes,
    scalar,
    span,
)
from fastadv.core.places import length, open_binary

MAX_OPCODES = 5_000_000
_MAX_INTEGER = 64  # bytes


@dataclass(frozen=True)
class Name:
    """A global that a pickle mentions; nothing is imported."""

    text: str


_ENCODE = Name("_codecs.encode")
_BYTES = Name("bytes")
_BYTEARRAY = Name("bytearray")
_DTYPE = Name("numpy.dtype")
_NDARRAY = Name("numpy.ndarray")
_SCALAR = Name("numpy.core.multiarray.scalar")
_RECONSTRUCT = Name("numpy.core.multiarray._reconstruct")
_FROM_BUFFER = Name("numpy.core.numeric._frombuffer")
_NAMES = {
    "_codecs encode": _ENCODE,
    "builtins bytes": _BYTES,
    "builtins bytearray": _BYTEARRAY,
    "numpy dtype": _DTYPE,
    "numpy ndarray": _NDARRAY,
    "numpy.core.multiarray scalar": _SCALAR,
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy.core.numeric _frombuffer": _FROM_BUFFER,
}
_OTHER_MODULES = {  # of Python 2 and of NumPy 2
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}


class Machine:
    """The stack, the marks and the memo.

    Attributes:
        steps: what each opcode does, by its number; None: it is refused.
        purpose: what is read, for messages.
    """

    steps: ClassVar[Sequence[Step | None]]
    purpose: ClassVar[str] = "lists of images and flags"

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of the pickle that begins here; the reader is behind it then.

        Raises:
            PickleRefusedError: it is damaged, or asks for more than is done.
        """
        for _ in range(MAX_OPCODES):
            code = self.reader.byte()
            step = self.steps[code]
            if step is not None:
                step(self)
            elif code == _STOP:
                break
            else:
                raise self._unknown(code)
        else:
            raise PickleRefusedError(f"more than {MAX_OPCODES} opcodes")
        if len(self.stack) != 1:
            raise PickleRefusedError(f"it ends with {len(self.stack)} values, expected one")
        return self.stack[0]

    def string(self, count: int, form: Form, *, text: bool = False) -> None:
        offset = self.reader.tell()
        self.stack.append(span(offset, count, form, self.reader.string(count), text=text))

    def string_line(self, form: Form, *, text: bool) -> None:
        offset = self.reader.tell()
        data = self.reader.line(self.reader.longest)
        self.stack.append(span(offset, len(data), form, data, text=text))

    def integer_line(self) -> None:
        digits = self.reader.line().strip().removesuffix(b"L")
        if re.fullmatch(rb"[-+]?\d{1,150}", digits) is None:
            raise PickleRefusedError(f"{digits[:20]!r} is no integer")
        self.stack.append({b"00": False, b"01": True}.get(digits, int(digits)))

    def long(self, count: int) -> None:
        if not 0 <= count <= _MAX_INTEGER:
            raise PickleRefusedError(f"an integer of {count} bytes at {self.reader.tell()}")
        self.stack.append(int.from_bytes(self.reader.take(count), "little", signed=True))

    def mark(self) -> None:
        self._marks.append(len(self.stack))

    def pop_mark(self) -> None:
        self._above_mark()

    def pop(self) -> None:
        if self._marks and self._marks[-1] == len(self.stack):
            self._marks.pop()
        else:
            self._pop(1)

    def list_above(self) -> None:
        self.stack.append(self._above_mark())

    def tuple_above(self) -> None:
        self.stack.append(tuple(self._above_mark()))

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple(self._pop(count)))

    def append(self) -> None:
        items = self._pop(1)
        self._list_on_top().extend(items)

    def appends(self) -> None:
        items = self._above_mark()
        self._list_on_top().extend(items)

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def put(self, key: int) -> None:
        self._memo[key] = self._top()

    def get(self, key: int) -> None:
        if key not in self._memo:
            raise PickleRefusedError(f"it recalls memo {key}, which it did not store")
        self.stack.append(self._memo[key])

    def named(self) -> None:
        module, what = self.reader.line(), self.reader.line()
        self.stack.append(self.name(module.decode("utf-8", "replace"), what.decode("utf-8", "replace")))

    def stack_named(self) -> None:
        module, what = self._pop(2)
        self.stack.append(self.name(text_of(module), text_of(what)))

    def reduce(self) -> None:
        function, arguments = self._pop(2)
        self.stack.append(self.call(function, arguments))

    def build(self) -> None:
        (state,) = self._pop(1)
        self.set_state(self._top(), state)

    def name(self, module: str, what: str) -> Any:
        """What stands for a global."""
        found = known_name(module, what)
        if found is None:
            raise PickleRefusedError(f"it asks for {module[:60]}.{what[:60]}, which could run code; nothing was run")
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call that is known would give."""
        given = arguments if isinstance(arguments, tuple) else ("",) * 9
        if function in (_ENCODE, _BYTEARRAY) and len(given) == 2:
            text, encoding = given
            if isinstance(text, Span) and text.text and text_of(encoding) in ("latin1", "latin-1"):
                return as_bytes(text)
        elif function in (_BYTES, _BYTEARRAY) and len(given) <= 1:
            if not given:
                return EMPTY
            if function is _BYTEARRAY and isinstance(given[0], Span) and not given[0].text:
                return given[0]
        elif function is _DTYPE and 1 <= len(given) <= 3:
            return Dtype(text_of(given[0]))
        elif function is _SCALAR and len(given) == 2:
            if isinstance(given[0], Dtype) and isinstance(given[1], Span):
                return scalar(*given)
        elif function is _RECONSTRUCT and len(given) == 3:
            if given[0] is _NDARRAY:
                return Array()
        elif function is _FROM_BUFFER and 4 <= len(given) <= 5:
            made = Array()
            made.build(given[2], given[1], given[0], columns_first=text_of(given[3]) == "F")
            return made
        name = function.text if isinstance(function, Name) else "something that is no function"
        raise PickleRefusedError(f"it calls {name} in a way that {self.purpose} do not need")

    def set_state(self, top: Any, state: Any) -> None:
        """Give an object its state."""
        if isinstance(top, Dtype):
            top.build(state)
        elif isinstance(top, Array) and isinstance(state, tuple) and len(state) == 5:
            top.build(state[1], state[2], state[4], columns_first=bool(state[3]))
        else:
            raise PickleRefusedError("it sets the state of an object")

    def _unknown(self, code: int) -> PickleRefusedError:
        name = next((opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)), None)
        if name is None:
            return PickleRefusedError(f"not a readable pickle: the byte {code:#04x} is no opcode")
        return PickleRefusedError(f"it uses the opcode {name}, which {self.purpose} do not need")

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


Step = Callable[[Any], object]
_STOP = ord(".")
# what the opcodes do; all others are refused by name
STEPS: dict[bytes, Step] = {
    b"\x80": lambda m: m.reader.take(1),
    b"\x95": lambda m: m.reader.take(8),
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"I": Machine.integer_line,
    b"L": Machine.integer_line,
    b"J": lambda m: m.stack.append(m.reader.number("<i", 4)),
    b"K": lambda m: m.stack.append(m.reader.byte()),
    b"M": lambda m: m.stack.append(m.reader.number("<H", 2)),
    b"\x8a": lambda m: m.long(m.reader.byte()),
    b"\x8b": lambda m: m.long(m.reader.number("<i", 4)),
    b"S": lambda m: m.string_line("escaped bytes", text=False),
    b"T": lambda m: m.string(m.reader.number("<i", 4), "raw"),
    b"U": lambda m: m.string(m.reader.byte(), "raw"),
    b"B": lambda m: m.string(m.reader.number("<I", 4), "raw"),
    b"C": lambda m: m.string(m.reader.byte(), "raw"),
    b"\x8e": lambda m: m.string(m.reader.number("<Q", 8), "raw"),
    b"\x96": lambda m: m.string(m.reader.number("<Q", 8), "raw"),
    b"\x98": lambda m: None,  # READONLY_BUFFER
    b"V": lambda m: m.string_line("escaped text", text=True),
    b"X": lambda m: m.string(m.reader.number("<I", 4), "utf-8", text=True),
    b"\x8c": lambda m: m.string(m.reader.byte(), "utf-8", text=True),
    b"\x8d": lambda m: m.string(m.reader.number("<Q", 8), "utf-8", text=True),
    b"(": Machine.mark,
    b"0": Machine.pop,
    b"1": Machine.pop_mark,
    b"]": lambda m: m.stack.append([]),
    b"l": Machine.list_above,
    b"a": Machine.append,
    b"e": Machine.appends,
    b")": lambda m: m.stack.append(()),
    b"t": Machine.tuple_above,
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"\x94": Machine.memoize,
    b"p": lambda m: m.put(_decimal(m.reader.line())),
    b"q": lambda m: m.put(m.reader.byte()),
    b"r": lambda m: m.put(m.reader.number("<I", 4)),
    b"g": lambda m: m.get(_decimal(m.reader.line())),
    b"h": lambda m: m.get(m.reader.byte()),
    b"j": lambda m: m.get(m.reader.number("<I", 4)),
    b"c": Machine.named,
    b"\x93": Machine.stack_named,
    b"R": Machine.reduce,
    b"b": Machine.build,
}


def table(steps: Mapping[bytes, Step]) -> tuple[Step | None, ...]:
    """Steps by the number of their opcode."""
    return tuple(steps.get(bytes([code])) for code in range(256))


Machine.steps = table(STEPS)


def _decimal(digits: bytes) -> int:
    if re.fullmatch(rb"\d{1,18}", digits) is None:
        raise PickleRefusedError(f"{digits[:20]!r} is no place in its memo")
    return int(digits)


def known_name(module: str, what: str) -> Name | None:
    """A global that the values of pickles are made with; None for all others."""
    return _NAMES.get(f"{_OTHER_MODULES.get(module, module)} {what}")


def text_of(value: Any) -> str:
    """A short text, or short bytes, as Python 2 wrote its texts.

    Raises:
        PickleRefusedError: It is none.
    """
    if not (isinstance(value, Span) and value.short is not None):
        raise PickleRefusedError("it names a global by something that is no short text")
    return value.short.decode("utf-8", "replace")


def read_symbolically(path: Path) -> Any:
    """The value of a pickle: lists, tuples, integers, booleans, None, an `Array`, and a `Span` for every string.

    Memory grows with the number of items, not with their size, and time with the size of the file, which is read
    once, front to back.

    Raises:
        PickleRefusedError: The file is damaged, larger than the limits, or no plain data.
        OSError: The file cannot be read.
    """
    with open_binary(path) as file:
        return Machine(Reader(file, length(file), longest=MAX_STRING)).run()
