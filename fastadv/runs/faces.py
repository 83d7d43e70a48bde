"""Faces from what a path is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.core.remote import to_path
from fastadv.data import IJB, LFW, FaceSource, IdentityFolder, ImageList, PairBin, RecordIO, Shards, read_landmarks
from fastadv.data.alignment import Size
from fastadv.data.face_search import FaceSearch, FoundFaces, find_faces, with_faces
from fastadv.data.folder import Photographs
from fastadv.data.image_list import SUFFIXES
from fastadv.data.kept_landmarks import is_found_list
from fastadv.data.lfw import images_folder
from fastadv.data.run_files import ALIGNED, IMAGES, RUN
from fastadv.data.template_pairs import is_ijb
from fastadv.models import FaceModel


def open_faces(
    root: Path,
    *,
    size: Size,
    landmarks: Path | None = None,
    template: Sequence[Sequence[float]] | None = None,
    search: FaceSearch | None = None,
    kept: Path | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> FaceSource:
    """Faces from what the path is: an InsightFace `.bin`, `.tar` shards, MXNet's `.rec`, a list of images (`.txt`,
    `.lst`, `.csv`), the folder of IJB-B, IJB-C or LFW, or a folder of identities.

    The folder of a run or of ``fastadv align`` (``run.json`` or ``align.json``, with ``images/``) is taken as its
    images. With a search, or a list of landmarks that one has made, photographs in which no face was found are left
    out, and those of a folder may lie at any depth, as ``fastadv align`` takes them.

    Args:
        root: The path, or that of a URL.
        size: Side of the faces in pixels, or height and width.
        landmarks: A file of five points an image.
        template: Where the points go in a face; None for ArcFace's places.
        search: How faces are found, in place of landmarks.
        kept: Where what is found is kept, as of ``find_faces``.
        fresh: Whether what is kept there is of a run that begins anew.
        progress: Told of every photograph that is searched.

    Raises:
        SourceError, AlignmentError: As the classes.
        ValueError: Landmarks or a search for a `.bin` or a run, whose images are aligned already; or both.
        RunFolderError: As ``find_faces``.
    """
    root, landmarks = to_path(root), None if landmarks is None else to_path(landmarks)
    if search is None and (landmarks is None or is_aligned(root) or not is_found_list(landmarks)):
        return _open(root, size=size, landmarks=landmarks, template=template)
    if search is None:
        assert landmarks is not None
        photographs, found = _photographs(root), FoundFaces(landmarks=read_landmarks(landmarks))
    else:
        if landmarks is not None:
            raise ArgumentError(f"align: expected no landmarks with it, got {landmarks}")
        if is_aligned(root):
            raise ArgumentError(f"align: expected photographs, got {root}, whose images are aligned already")
        photographs = _photographs(root)
        found = find_faces(photographs, search, kept=kept, fresh=fresh, progress=progress)
    return with_faces(photographs, found, size=size, template=template, where=root)


def files_of_both(one: FaceSource, other: FaceSource) -> tuple[str, ...]:
    """The names of one source's images whose files are another source's too; copies of files are others."""
    known = {other.path(name).resolve() for name in other.names}
    return tuple(name for name in one.names if one.path(name).resolve() in known)


def is_aligned(root: Path) -> bool:
    """Whether faces come aligned, or with landmarks of their own protocol: a `.bin`, a run's images, IJB-B and C."""
    root = to_path(root)
    return root.suffix == ".bin" or _is_made(root) or is_ijb(root)


def _is_made(root: Path) -> bool:
    """Whether a folder is that of a run or of aligned faces."""
    made = (root / RUN).is_file() or (root / ALIGNED).is_file()
    return made and (root / IMAGES).is_dir() and not (root / "pairs.txt").is_file()


def _photographs(root: Path) -> FaceSource:
    """The whole pictures; those of a folder without a layout of its own lie at any depth."""
    if root.is_dir() and not (root / "pairs.txt").is_file() and images_folder(root) is None:
        return Photographs(root)
    return _open(root, size=None, landmarks=None, template=None)


def _open(
    root: Path, *, size: Size | None, landmarks: Path | None, template: Sequence[Sequence[float]] | None
) -> FaceSource:
    if root.suffix == ".bin":
        if landmarks is not None:
            raise ArgumentError(
                f"landmarks: expected none for {root}, whose images are aligned already, got {landmarks}"
            )
        return PairBin(root, size=size)
    if root.suffix == ".tar":
        return Shards(root, size=size, landmarks=landmarks, template=template)
    if root.suffix in (".rec", ".idx"):
        return RecordIO(root, size=size, landmarks=landmarks, template=template)
    if root.suffix in SUFFIXES and root.is_file():
        return ImageList(root, size=size, landmarks=landmarks, template=template)
    if is_ijb(root):
        return IJB(root, size=size, landmarks=landmarks, template=template)
    if _is_made(root):
        if landmarks is not None:
            raise ArgumentError(
                f"landmarks: expected none for {root}, a run, whose images are aligned already, got {landmarks}"
            )
        return IdentityFolder(root / IMAGES, size=size)
    if (root / "pairs.txt").is_file() or images_folder(root) is not None:
        return LFW(root, size=size, landmarks=landmarks, template=template)
    return IdentityFolder(root, size=size, landmarks=landmarks, template=template)


def open_faces_of(model: FaceModel, root: Path, **given: Any) -> FaceSource:
    """Faces of the size, and at the place, that a network takes; as ``open_faces``."""
    return open_faces(root, size=model.input_size, template=model.template, **given)
