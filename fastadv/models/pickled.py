"""Tensors out of pickled networks and pickled arrays: the pickle is looked at, never run."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastadv.core.content_tensors import LEGACY_TORCH
from fastadv.core.pickle_bytes import Reader
from fastadv.core.pickle_objects import Made, Objects
from fastadv.core.pickle_values import Array, PickleRefusedError, Span
from fastadv.core.symbolic_pickle import Name, text_of

_MOST_PICKLE = 1 << 30  # of a pickle in an archive, which is held in memory
_LONGEST = 1 << 40  # of a string, which stays in the file
_DEEPEST = 60  # of containers in containers
_MOST_NAMES = 100_000  # of tensors in a network
_MOST_LETTERS = 1 << 24  # of their names
_EXPANDED = 1 << 24  # numbers that a tensor may show more often than it stores them
_FROM_BYTES = "torch.storage._load_from_bytes"
_TENSORS = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
_PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.autograd.variable.Variable",
)
_OF_TYPE = ("torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2")
_TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Untyped": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}


def read_objects(file: Path) -> Any:
    """The tensors of a file that pickles whole objects: `torch.save(network)`, `pickle.dump(...)`, a dict of arrays.

    Dicts, lists and the attributes of objects become dicts and lists of what is in them; a network, told by its
    `_parameters`, `_buffers` and `_modules`, becomes its state: tensors by name; arrays of NumPy become tensors. Other
    values become texts, numbers or None.

    Args:
        file: a file of `torch.save`, of any version since 0.1.10, or a plain pickle.

    Raises:
        PickleRefusedError: it is damaged, larger than the limits, or would call what could run code; the message is the
            end of a sentence.
        OSError, zipfile.BadZipFile, ...: it cannot be read.
    """
    with open(file, "rb") as opened:
        head, size = opened.read(16), file.stat().st_size
        opened.seek(0)
        if head.startswith(b"PK"):
            return _of_archive(opened, size)
        if LEGACY_TORCH in head:
            value, fetch = _of_legacy(opened, size)
        else:
            value, fetch = _Torch(_reader(opened, size)).run(), _none_stored
        return _Content(opened, fetch, size).of(value)


@dataclass(kw_only=True, eq=False)
class _Storage:
    """Numbers that lie in the file, outside of the pickle."""

    key: str
    type: torch.dtype
    count: int

    @property
    def bytes(self) -> int:
        return self.count * self.type.itemsize


@dataclass(kw_only=True, eq=False)
class _Stored:
    """A tensor: a view of a storage."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    type: torch.dtype | None


_Fetch = Callable[[_Storage], bytes]


def _none_stored(storage: _Storage) -> bytes:
    raise PickleRefusedError(f"the numbers {storage.key!r} are not in the file")


def _reader(file: BinaryIO, size: int) -> Reader:
    return Reader(file, size, longest=_LONGEST)


class _Torch(Objects):
    """The reader of pickles with torch's tensors and storages."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self.storages: dict[str, _Storage] = {}

    def external(self, persistent: Any) -> Any:
        """A storage: `("storage", type, key, location, count, ...)`; or a class with its source text."""
        parts = persistent if isinstance(persistent, tuple) else ()
        kind = parts[0].short if parts and isinstance(parts[0], Span) else b""
        if kind == b"module" and len(parts) >= 2:
            return parts[1]
        if kind != b"storage" or len(parts) < 5 or (len(parts) > 5 and parts[5] is not None):
            return super().external(persistent)
        storage = _Storage(key=text_of(parts[2]), type=_type_of(parts[1]), count=_whole(parts[4]))
        return self.storages.setdefault(storage.key, storage)

    def call(self, function: Any, arguments: Any) -> Any:
        """As of any pickle; tensors and parameters are known."""
        given = arguments if isinstance(arguments, tuple) else ()
        name = function.text if isinstance(function, Name) else ""
        if name in _OF_TYPE and len(given) >= 3 and isinstance(given[0], Name) and given[0].text not in _OF_TYPE:
            return self.call(given[0], given[2])
        if name in _PARAMETERS and given:
            return given[0]
        if name in _TENSORS and len(given) >= 4:
            # `vars`: an attribute of torch may be a module that is imported when it is asked for
            own = vars(torch).get(given[6].text.rpartition(".")[2]) if _has_type(name, given) else None
            return _Stored(
                storage=given[0],
                offset=given[1],
                shape=given[2],
                strides=given[3],
                type=own if isinstance(own, torch.dtype) else None,
            )
        return super().call(function, arguments)


def _has_type(name: str, given: tuple[Any, ...]) -> bool:
    return name.endswith("_v3") and len(given) > 6 and isinstance(given[6], Name)


def _type_of(name: Any) -> torch.dtype:
    text = name.text.rpartition(".")[2] if isinstance(name, Name) else ""
    found = _TYPES.get(text.removesuffix("Storage"))
    if found is None:
        raise PickleRefusedError(f"it holds numbers of the type {text[:40]!r}, which is not read")
    return found


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise PickleRefusedError("it gives a size that is no whole number")
    return value


def check_stored(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive whose parts are compressed or lie in each other: a small file could unpack to any size.

    Raises:
        PickleRefusedError: They are.
    """
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size:
        raise PickleRefusedError("its parts are compressed, as torch.save does not write them")


def check_torch(file: Path) -> None:
    """Insist that the pickle of a file of `torch.save` can be read here.

    torch's own message on a name that it does not know takes the square of its length: hours for a mebibyte.

    Raises:
        PickleRefusedError: It cannot.
        OSError, zipfile.BadZipFile, ...: As `read_objects`.
    """
    with open(file, "rb") as opened:
        if not opened.read(2).startswith(b"PK"):
            opened.seek(0)
            _of_legacy(opened, file.stat().st_size)
            return
        with zipfile.ZipFile(opened) as archive:
            check_stored(archive, file.stat().st_size)
            part = archive.getinfo(_place(archive))
        opened.seek(part.header_offset + 26)  # not by `archive`: torch can be told to write no checksums
        opened.seek(part.header_offset + 30 + sum(struct.unpack("<HH", opened.read(4))))
        _Torch(_reader(opened, opened.tell() + part.file_size)).run()


def _place(archive: zipfile.ZipFile) -> str:
    return next(n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl"))


def _of_archive(file: BinaryIO, size: int) -> Any:
    """The content of an archive of `torch.save`: `NAME/data.pkl`, and each storage at `NAME/data/KEY`."""
    with zipfile.ZipFile(file) as archive:
        check_stored(archive, size)
        place = _place(archive)
        root = place.removesuffix("data.pkl")
        if archive.getinfo(place).file_size > _MOST_PICKLE:
            raise PickleRefusedError(f"a pickle of more than {_MOST_PICKLE} bytes")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise PickleRefusedError("its numbers are big-endian, which is not read")
        data = archive.read(place)

        def fetch(storage: _Storage) -> bytes:
            info = archive.getinfo(f"{root}data/{storage.key}")
            if info.file_size != storage.bytes:
                raise PickleRefusedError(
                    f"{storage.bytes} uncompressed bytes were expected for {storage.key!r}, {info.file_size} are there"
                )
            return archive.read(info)

        stream = io.BytesIO(data)
        return _Content(stream, fetch, size).of(_Torch(_reader(stream, len(data))).run())


def _of_legacy(file: BinaryIO, size: int) -> tuple[Any, _Fetch]:
    """The value of a file of `torch.save` before 1.6, and how its storages are read.

    Five pickles follow one another: a magic number, a version, the writer's sizes, the value, and the keys of the
    storages. Then comes each storage in this order: its count in 8 bytes, and its numbers.
    """
    reader = _reader(file, size)
    _, _, writer = (_Torch(reader).run() for _ in range(3))
    if isinstance(writer, dict) and writer.get("little_endian") is False:
        raise PickleRefusedError("its numbers are big-endian, which is not read")
    machine = _Torch(reader)
    value, keys = machine.run(), _Torch(reader).run()
    at, places = reader.tell(), dict[str, int]()
    for key in keys if isinstance(keys, list) else ():
        storage = machine.storages.get(text_of(key))
        if storage is None or at + 8 + storage.bytes > size:
            raise PickleRefusedError(f"cut short: the numbers of a tensor were expected at {at}, the file has {size}")
        file.seek(at)
        if struct.unpack("<q", file.read(8))[0] != storage.count:
            raise PickleRefusedError(f"{storage.count} numbers were expected at {at}, others are there")
        places[storage.key] = at + 8
        at += 8 + storage.bytes

    def fetch(storage: _Storage) -> bytes:
        if storage.key not in places:
            return _none_stored(storage)
        file.seek(places[storage.key])
        return file.read(storage.bytes)

    return value, fetch


class _Content:
    """Values of a pickle as dicts and lists with tensors in them."""

    def __init__(self, file: BinaryIO, fetch: _Fetch, size: int) -> None:
        self._file, self._fetch = file, fetch
        self._known: dict[int, Any] = {}  # by the identity of what the reader made, which it keeps
        self._names = self._letters = 0
        self._left = size + _EXPANDED  # bytes of arrays: many may share one text of the file

    def of(self, value: Any, depth: int = 0) -> Any:
        """A value; what holds itself, or is too deep, is None there."""
        if isinstance(value, Span):
            return "" if value.short is None else text_of(value)
        if isinstance(value, Name):
            return value.text
        if not isinstance(value, (_Stored, Array, dict, list, tuple, Made)):
            return value if isinstance(value, (int, float)) else None
        if id(value) not in self._known:
            self._known[id(value)] = None
            self._known[id(value)] = self._made(value, depth + 1) if depth < _DEEPEST else None
        return self._known[id(value)]

    def _made(self, value: Any, depth: int) -> Any:
        if isinstance(value, _Stored):
            return self._tensor(value)
        if isinstance(value, Array):
            self._take(value.data)
            numbers = value.numbers(self._file)
            if numbers is None:
                return None
            native = numbers.astype(numbers.dtype.newbyteorder("="), order="C")  # a copy: torch wants to write
            return torch.from_numpy(native)
        if isinstance(value, (list, tuple)):
            return [self.of(item, depth) for item in value]
        if isinstance(value, dict):
            return {key: self.of(item, depth) for key, item in value.items()}
        attributes = value.attributes()
        if isinstance(attributes.get("_modules"), (dict, Made)):
            return self._network(attributes, depth)
        listed = dict(enumerate([*value.arguments, *value.listed]))
        return {str(key): self.of(item, depth) for key, item in {**listed, **attributes, **value.items}.items()}

    def _take(self, data: Any) -> None:
        """Count the bytes that are read from the file."""
        self._left -= data.length if isinstance(data, Span) else 0
        if self._left < 0:
            raise PickleRefusedError("its arrays have more bytes than the file")

    def _network(self, attributes: Mapping[str, Any], depth: int) -> dict[str, Tensor]:
        """The state of a module: its own tensors by name, and those of the modules below by path."""
        passing = attributes.get("_non_persistent_buffers_set")
        left_out = {text_of(name) for name in passing} if isinstance(passing, list) else set()
        found: dict[str, Tensor] = {}
        for part in ("_parameters", "_buffers"):
            own = self.of(attributes.get(part), depth)
            for name, tensor in own.items() if isinstance(own, dict) else ():
                if isinstance(tensor, Tensor) and name not in left_out:
                    found[name] = tensor
        below = self.of(attributes["_modules"], depth)
        for name, state in below.items() if isinstance(below, dict) else ():
            for inner, tensor in state.items() if isinstance(state, dict) else ():
                if isinstance(tensor, Tensor):
                    found[f"{name}.{inner}"] = tensor
        self._names += len(found)
        self._letters += sum(map(len, found))
        if self._names > _MOST_NAMES or self._letters > _MOST_LETTERS:
            raise PickleRefusedError(
                f"a network of more than {_MOST_NAMES} tensors, or {_MOST_LETTERS} letters of names"
            )
        return found

    def _tensor(self, made: _Stored) -> Tensor:
        values = self._values(made.storage)
        if made.type is not None:
            values = values.view(torch.uint8).view(made.type)
        shape, strides = (part if isinstance(part, tuple) else (-1,) for part in (made.shape, made.strides))
        offset = _whole(made.offset)
        if len(shape) != len(strides):
            raise PickleRefusedError("a tensor has another number of sizes than of strides")
        last = offset + sum((_whole(n) - 1) * _whole(step) for n, step in zip(shape, strides, strict=True))
        count = math.prod(shape)
        if count and (last >= values.numel() or count > max(values.numel(), _EXPANDED)):
            raise PickleRefusedError(f"a tensor of shape {shape} goes beyond its {values.numel()} numbers")
        return values.as_strided(shape, strides, offset) if count else torch.empty(shape, dtype=values.dtype)

    def _values(self, storage: Any) -> Tensor:
        """The numbers of a storage, in one axis."""
        if id(storage) in self._known:
            return self._known[id(storage)]
        fetch = self._fetch
        kept = storage
        if isinstance(kept, Made) and kept.name == _FROM_BYTES and kept.arguments:  # a file of torch.save inside
            self._take(kept.arguments[0])
            data = kept.arguments[0].read(self._file) if isinstance(kept.arguments[0], Span) else b""
            kept, fetch = _of_legacy(io.BytesIO(data), len(data))
        if not isinstance(kept, _Storage):
            raise PickleRefusedError("it holds a tensor without its numbers")
        data = fetch(kept)
        if len(data) != kept.bytes:
            raise PickleRefusedError(f"cut short: {kept.bytes} bytes of {kept.key!r} expected, {len(data)} are there")
        values = torch.frombuffer(bytearray(data), dtype=kept.type) if data else torch.empty(0, dtype=kept.type)
        self._known[id(storage)] = values
        return values
