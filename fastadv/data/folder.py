"""A folder with one folder of images per identity."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from numpy.typing import ArrayLike

from fastadv.core.notices import notify
from fastadv.core.places import Entry, Scan, scanner
from fastadv.core.remote import is_remote, to_path
from fastadv.data import left_out, names
from fastadv.data.alignment import Size
from fastadv.data.faces import FaceSource, SourceError
from fastadv.data.image_files import read_head
from fastadv.data.landmarks import Landmarks, open_landmarks
from fastadv.data.left_out import LeftOut
from fastadv.data.names import several

_DEEPEST = 16


class IdentityFolder(FaceSource):
    """Images at `root/<identity>/<image>`.

    Deeper folders are identities of their own (`a/b/c.jpg` is an image of `a/b`), which a notice says. Hidden files and
    those that are no images are ignored; images that are not read, or lie in the root, are counted in a notice. With
    landmarks every image is aligned; without, the central square is taken as an aligned face and brought to `size`
    (left alone where it has it).
    """

    #: The landmarks that a data set of this layout brings, a file below its root; none here.
    _own_landmarks = ""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: Size | None = 112,
        landmarks: str | os.PathLike[str] | Landmarks | None = None,
        template: ArrayLike | None = None,
    ) -> None:
        """Lists the folder; no image is read yet.

        Args:
            root: The folder.
            size: Side of the crops in pixels, or their height and width, or None for whole files.
            landmarks: Five points per image: a file for `read_landmarks`, or a mapping.
            template: Where they go, as of `FaceSource`.

        Raises:
            SourceError: The folder is missing or empty, an identity has no images, or two files of an
                identity differ in the extension only.
            AlignmentError: A landmark file that cannot be read, or a list that cannot be right.
        """
        self.root = to_path(root)
        own = self.root / self._own_landmarks
        if landmarks is None and size is not None and own.is_file():
            landmarks = own
        files = list_images(self._people())
        super().__init__(files, size=size, landmarks=open_landmarks(landmarks), template=template)

    def _people(self) -> Path:
        """The folder that holds the identities."""
        return self.root


def list_images(root: Path) -> dict[str, Path]:
    """The images at `root/<identity>/<image>` by name (`identity/image` without extension).

    Raises:
        SourceError: As for `IdentityFolder`.
    """
    _check_folder(root, "identities")
    scan = scanner(root)
    files: dict[str, Path] = {}
    left = LeftOut()
    for place, image in _images(root, "", left, (), scan):
        if "/" not in place:
            left.add(left_out.NO_FOLDER, place)
            continue
        name = names.canonical(names.stem(place))
        fault = names.fault(name)
        if fault is not None:
            raise SourceError(f"{names.shown(str(image))}: {fault}; rename it")
        if name in files:
            other = files[name].name
            form = ", in another Unicode form" if names.canonical(other) != other else ""
            raise SourceError(f"{image}: expected one image of each name, got {other} too{form}; rename one")
        files[name] = image
    if not files:
        hint = f"; left out: {left}" if str(left) else ""
        raise SourceError(f"{root}: expected images {root}/<identity>/<image>, got none{hint}")
    people = {name.partition("/")[0] for name in files}
    bare = [e.name for e in _visible(root, scan) if is_dir(e) and names.canonical(e.name) not in people]
    refuse_bare(root, bare, left)
    left_out.tell_nested(root, list(files))
    left.tell(root)
    return files


def list_photographs(root: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The pictures at any depth below a folder, each with the name that its face gets.

    The name is the path without the image extension; a picture that lies in the folder itself, `a.jpg`, is an identity
    of its own, `a/a`.

    Returns:
        The pictures by name, and what is left out: its path in the folder, and why.

    Raises:
        SourceError: The folder is missing, cannot be listed, or has no picture.
    """
    _check_folder(root, "photographs")
    scan = scanner(root)
    left = LeftOut()
    files: dict[str, Path] = {}
    others: dict[str, str] = {}
    for place, image in _images(root, "", left, (), scan):
        name = names.canonical(names.stem(place))
        name = name if "/" in name else f"{name}/{name}"
        fault = names.fault(name)
        if fault is None and name in files:
            fault = f"its face would have the name of that of {files[name].relative_to(root)}"
        if fault is None:
            files[name] = image
        else:
            others[place] = fault
    if not files:
        hint = f"; left out: {left}" if str(left) else ""
        raise SourceError(f"{root}: expected photographs, got none{hint}")
    return files, {**left.places(), **others}


class Photographs(IdentityFolder):
    """The pictures at any depth below a folder, whole, as `list_photographs` names them."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Lists the folder; no picture is read yet, and what is left out is said.

        Raises:
            SourceError: As `list_photographs`.
        """
        self.root = to_path(root)
        files, others = list_photographs(self.root)
        left_out.tell_nested(self.root, list(files))
        if others:
            said = several([f"{place} ({reason})" for place, reason in others.items()])
            notify(f"{self.root}: images left out: {said}", stacklevel=4)
        FaceSource.__init__(self, files, size=None, landmarks=None)


def _check_folder(root: Path, of: str) -> None:
    if not root.exists():
        raise SourceError(f"{root}: expected a folder, got no such folder")
    if not root.is_dir():
        raise SourceError(f"{root}: expected a folder of {of}, got a file")


def refuse_bare(root: object, bare: list[str], left: LeftOut) -> None:
    """Refuse identities without an image that is read; what each of them has instead is said.

    Raises:
        SourceError: There are some.
    """
    if bare:
        has = [(name, left.below(name)) for name in bare]
        told = several([f"{name} (left out: {what})" if what else name for name, what in has])
        raise SourceError(f"{root}: expected an image of each identity, got none of {told}")


def tell_beside(root: Path, read: str) -> None:
    """Say where a data set holds images outside of the one of its folders that is read.

    Folders of runs are passed over, and the search in a folder ends with its first image.
    """
    beside, scan = [], scanner(root)
    for entry in _visible(root, scan):
        if is_dir(entry):
            run = (root / entry.name / "run.json").is_file()
            if entry.name != read and not run and next(_first_images(root / entry.name, scan), None):
                beside.append(f"{entry.name}/")
        elif names.extension(entry.name):
            beside.append(entry.name)
    if beside:
        notify(f"{root}: only {read}/ is read; images left out: {several(beside)}", stacklevel=5)


def _first_images(folder: Path, scan: Scan) -> Iterator[str]:
    for entry in _visible(folder, scan):
        if not is_dir(entry):
            if names.extension(entry.name):
                yield entry.name
        elif not entry.is_symlink():
            yield from (e.name for e in _visible(folder / entry.name, scan) if names.extension(e.name))


def _images(
    folder: Path, inner: str, left: LeftOut, above: tuple[object, ...], scan: Scan
) -> Iterator[tuple[str, Path]]:
    """The image files below a folder with their places, in order.

    Args:
        folder: Where they are.
        inner: Its path from the root.
        left: Told of what is left out.
        above: The folders on the way, by device and inode, or by URL.
        scan: Lists a folder.
    """
    here = (*above, _identity(folder))
    if here[-1] in above or len(above) > _DEEPEST:
        left.add(left_out.LOOP, inner)
        return
    for entry in _visible(folder, scan):
        place = f"{inner}/{entry.name}" if inner else entry.name
        if is_dir(entry):
            yield from _images(folder / entry.name, place, left, here, scan)
        elif _is_file(entry):
            if left.takes(place, partial(read_head, folder / entry.name)):
                yield place, folder / entry.name
        elif names.extension(entry.name):
            left.add(left_out.NO_FILE, place)


def _identity(folder: Path) -> object:
    """What tells that a folder is one that links have led to before."""
    if is_remote(folder):
        return folder
    try:
        status = os.stat(folder)
    except OSError as error:
        raise SourceError(f"{folder}: the folder cannot be listed: {error.strerror}") from error
    return status.st_dev, status.st_ino


def is_dir(entry: Entry) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: Entry) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _visible(folder: Path, scan: Scan) -> list[Entry]:
    try:
        with scan(folder) as entries:
            return sorted((e for e in entries if not names.hidden(e.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: the folder cannot be listed: {error.strerror}") from error
