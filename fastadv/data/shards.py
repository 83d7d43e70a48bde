"""WebDataset shards: tar files of samples, read where they lie and written whole."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import ArrayLike
from PIL.ContainerIO import ContainerIO

from fastadv.core.errors import ArgumentError, Error, RemoteError
from fastadv.core.fields import check_least
from fastadv.core.files import TEMPORARY_SUFFIX, naming
from fastadv.core.places import not_files, open_binary
from fastadv.core.remote import is_remote, to_path
from fastadv.data import left_out, names
from fastadv.data.alignment import Size
from fastadv.data.faces import FaceSource, SourceError
from fastadv.data.folder import refuse_bare
from fastadv.data.formats import HEAD
from fastadv.data.images import ImageError, encode_png, read_size, to_uint8
from fastadv.data.landmarks import Landmarks, open_landmarks
from fastadv.data.left_out import LeftOut
from fastadv.data.packed import PackedFaces
from fastadv.data.tar_index import Member, tar_members

MAX_SHARDS = 100_000
_MAX_LABEL = 64 * 2**10
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


@dataclass(frozen=True, slots=True)
class _Place:
    shard: Path
    offset: int
    size: int


class Shards(PackedFaces):
    """Faces in WebDataset tar files, found by offset in one pass; nothing is extracted to the disk.

    A sample is neighbouring members that differ in the extension only: an image (`key.jpg`, `key.png`, ...) and who it
    is, `key.cls` (a number or a name) or `key.json` (its "identity", else its "label"; "name", if there, names the
    image). A sample with neither takes its folder: `identity/key.jpg`; folders, hidden files and images of other
    formats are treated as in `IdentityFolder`. Dots belong to the key (`j.r_1.png`), except where the part before the
    first one has a label: of `7.cls`, `7.jpg` and `7.mask.png` only `7.jpg` is an image of a face. Other members are
    ignored. The name of a face is "identity/key", key without its folders.

    Attributes:
        files: The tar files.
    """

    _aligned = False

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        size: Size | None = 112,
        landmarks: str | os.PathLike[str] | Landmarks | None = None,
        template: ArrayLike | None = None,
    ) -> None:
        """Reads the headers of all shards and the labels; no image is decoded yet.

        Args:
            shards: One tar file, several, or a pattern such as "faces-{000000..000009}.tar".
            size: Side of the crops in pixels, or their height and width, or None for whole images.
            landmarks: Five points per name: a file or a mapping; None for images that are aligned.
            template: Where they go, as of `FaceSource`.

        Raises:
            SourceError: A shard is missing, damaged or hostile (see `tar_members`), a sample has no identity or two
                images, two images have one name, or there are none.
            AlignmentError: A landmark file that cannot be read.
        """
        self.files = expand_shards(shards)
        self._places: dict[str, _Place] = {}
        left, unlabelled, folders = LeftOut(), list[str](), set[str]()
        for file in self.files:
            for name, member, labelled in _samples(file, left):
                if name in self._places:
                    raise SourceError(f"{file}: {member.name}: two images named {name}")
                self._places[name] = _Place(file, member.offset, member.size)
                folders.add(member.name.partition("/")[0])
                if not labelled:
                    unlabelled.append(name)
        root = self.files[0] if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more"
        if not self._places:
            hint = f"; left out: {left}" if str(left) else ""
            expected = "members such as identity/key.jpg, or key.jpg with key.cls or key.json"
            raise SourceError(f"{root}: expected {expected}, got none{hint}")
        if unlabelled:
            refuse_bare(root, sorted(left.folders() - folders), left)
        left_out.tell_nested(root, unlabelled)
        left.tell(root)
        named = ((name, place.shard) for name, place in self._places.items())
        super().__init__(named, self._bytes, size=size, landmarks=open_landmarks(landmarks), template=template)

    def _size_of(self, name: str) -> tuple[int, int] | None:
        place = self._places[name]
        try:
            with open(place.shard, "rb") as file:
                return read_size(ContainerIO(file, place.offset, place.size), self.path(name))
        except OSError as error:
            raise ImageError(f"{self.path(name)}: cannot be read: {error.strerror or error}") from error

    def _bytes(self, name: str) -> bytes:
        place = self._places[name]
        try:
            with open_binary(place.shard, block=0) as file:
                file.seek(place.offset)
                return file.read(place.size)
        except RemoteError:
            raise
        except OSError as error:
            raise ImageError(f"{self.path(name)}: cannot be read: {error.strerror or error}") from error


def expand_shards(shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Path, ...]:
    """The files of a pattern with one range in braces, "a-{000..012}.tar", or of a list of files and patterns.

    Raises:
        SourceError: No shards, a range that runs backwards or is too long, or a missing file.
    """
    listed = [shards] if isinstance(shards, (str, os.PathLike)) else list(shards)
    files: list[Path] = []
    for entry in listed:
        text = str(to_path(entry))  # of a URL without its query, which is known from here on
        match = _RANGE.search(text)
        if match is None:
            files.append(to_path(entry))
            continue
        first, last = int(match[1]), int(match[2])
        if last < first or last - first >= MAX_SHARDS:
            raise SourceError(
                f"shards: expected a range of 1 to {MAX_SHARDS} files such as {{000000..000009}}, got {text}"
            )
        head, tail = text[: match.start()], text[match.end() :]
        files.extend(to_path(f"{head}{i:0{len(match[1])}d}{tail}") for i in range(first, last + 1))
    if not files:
        raise SourceError("shards: expected at least one tar file, got none")
    for file in not_files(files):
        exists = file.exists() if is_remote(file) else os.path.exists(file)
        raise SourceError(f"{file}: {'this is not a file' if exists else 'there is no such shard'}")
    return tuple(files)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Members of one key, by extension without the dot."""

    key: str
    parts: dict[str, Member]

    @property
    def labelled(self) -> bool:
        return "cls" in self.parts or "json" in self.parts


def _samples(file: Path, left: LeftOut) -> Iterator[tuple[str, Member, bool]]:
    """The name and the image of every sample, and whether a label names its identity."""
    with open_binary(file) as reader:
        for group in _groups(file):
            samples = _split(file, group)
            short = group[0].name.rpartition("/")[2].partition(".")[0]
            whole = next((s for s in samples if s.labelled and s.key.rpartition("/")[2] == short), None)
            for sample in samples:
                if whole is None or sample is whole or sample.labelled:
                    yield from _named(file, reader, sample, left)
                    continue
                for member in sample.parts.values():
                    if names.extension(member.name):
                        left.add(left_out.PART, member.name)


def _groups(file: Path) -> Iterator[list[Member]]:
    """Neighbouring members whose paths agree up to the first dot of the file name; hidden ones are left out."""
    key, group = "", list[Member]()
    for member in tar_members(file):
        folder, _, base = member.name.rpartition("/")
        if any(names.hidden(part) for part in member.name.split("/")):
            continue
        here = f"{folder}/{base.partition('.')[0]}"
        if here != key and group:
            yield group
            group = []
        key = here
        group.append(member)
    if group:
        yield group


def _split(file: Path, group: list[Member]) -> list[_Sample]:
    """The samples of a group: members that differ in the last extension only."""
    samples: dict[str, _Sample] = {}
    for member in group:
        key, extension = os.path.splitext(member.name)
        parts = samples.setdefault(key, _Sample(key, {})).parts
        if extension[1:].lower() in parts:
            raise SourceError(f"{file}: expected each member once, got {member.name} twice")
        parts[extension[1:].lower()] = member
    return list(samples.values())


def _named(file: Path, reader: BinaryIO, sample: _Sample, left: LeftOut) -> Iterator[tuple[str, Member, bool]]:
    def head(member: Member) -> bytes:
        reader.seek(member.offset)
        return reader.read(min(member.size, HEAD))

    key, parts = sample.key, sample.parts
    others = [member for extension, member in parts.items() if extension not in ("cls", "json")]
    images = [member for member in others if left.takes(member.name, lambda m=member: head(m))]  # type: ignore[misc]
    if not images:
        return
    if len(images) > 1:
        raise SourceError(f"{file}: expected one image in the sample {key}, got {len(images)}")
    if not sample.labelled and "/" not in key:
        left.add(left_out.NO_FOLDER, images[0].name)
        return
    where = f"{file}: the sample {names.shown(key)}"
    identity, _, name = key.rpartition("/")
    if "cls" in parts:
        identity = _label(where, reader, parts["cls"]).decode("utf-8", "replace").strip()
    if "json" in parts:
        described = _json(where, _label(where, reader, parts["json"]))
        identity = described.get("identity", identity if "cls" in parts else described.get("label", identity))
        name = described.get("name", name)
    texts = [str(each) if isinstance(each, (str, int, float)) else "" for each in (identity, name)]
    for what, text in zip(("identity", "name"), texts, strict=True):
        if not text:
            raise SourceError(
                f"{where}: expected a .cls or .json with an identity, or a path identity/key.jpg, got none of them"
            )
        fault = names.fault(text)
        if fault is not None:
            raise SourceError(f"{where}: expected a usable {what}, got {names.shown(text)!r}: {fault}")
    yield names.canonical("/".join(texts)), images[0], sample.labelled


def _label(where: str, reader: BinaryIO, member: Member) -> bytes:
    if member.size > _MAX_LABEL:
        raise SourceError(f"{where}: a label of {member.size} bytes, at most {_MAX_LABEL} are read")
    reader.seek(member.offset)
    return reader.read(member.size)


def _json(where: str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: the .json cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{where}: expected a .json with an object, got {type(value).__name__}")
    return value


def write_shards(
    source: FaceSource, folder: str | os.PathLike[str], *, per_shard: int = 1000, names: Iterable[str] | None = None
) -> tuple[Path, ...]:
    """Writes faces as shards that `Shards` and WebDataset read: the folder is there with all of them, or not at all.

    A sample is `NNNNNNNN.png` (the aligned 8-bit face), `.cls` (the number of its identity among the sorted ones) and
    `.json` ("identity", "label", "name"). The same faces give the same bytes. One face at a time is in memory beside
    those decoded ahead.

    Args:
        source: The faces.
        folder: Where `shard-000000.tar` and so on go; new or empty.
        per_shard: Faces in a shard.
        names: Which faces, in this order; all when None.

    Returns:
        The paths of the shards.

    Raises:
        ValueError: `per_shard` below 1, no faces, or a folder that is not empty.
        ImageError, AlignmentError: A face cannot be read; no folder is left.
        OSError: With the file's name, for example when the disk is full; no folder is left.
    """
    folder = Path(folder)
    chosen = list(source.names if names is None else names)
    check_least("per_shard", per_shard, 1)
    if not chosen:
        raise ArgumentError("names: expected at least one face, got none")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(
            f"{folder}: expected a new or empty folder, got {'one with files' if folder.is_dir() else 'a file'}"
        )
    labels = {who: i for i, who in enumerate(sorted({name.rpartition("/")[0] for name in chosen}))}
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    temporary.mkdir()
    try:
        with source.stream(chosen) as faces:
            for start in range(0, len(chosen), per_shard):
                with tarfile.open(temporary / _shard_name(start // per_shard), "w", format=tarfile.USTAR_FORMAT) as tar:
                    for index in range(start, min(start + per_shard, len(chosen))):
                        face = next(faces)
                        label = labels[face.identity]
                        about = {"identity": face.identity, "label": label, "name": face.name.rpartition("/")[2]}
                        _add(tar, f"{index:08d}.png", encode_png(to_uint8(face.image)))
                        _add(tar, f"{index:08d}.cls", str(label).encode())
                        _add(tar, f"{index:08d}.json", json.dumps(about, sort_keys=True).encode())
        os.replace(temporary, folder)  # also over an empty folder
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, Error):
            raise naming(error, folder) from error
        raise
    return tuple(folder / _shard_name(i) for i in range(-(-len(chosen) // per_shard)))


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time and no owner: the same faces, the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
