"""A folder with one folder of images per identity."""

from __future__ import annotations

import os
from pathlib import Path

from fastadv.data.faces import FaceSource, Landmarks, SourceError, open_landmarks, several
from fastadv.data.images import EXTENSIONS


class IdentityFolder(FaceSource):
    """Images at `root/<identity>/<image>`.

    Files with other extensions and hidden ones are ignored. With landmarks every image is aligned; without,
    the central square is taken as an aligned face and brought to `size` (left alone where it has it).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: int | None = 112,
        landmarks: str | os.PathLike[str] | Landmarks | None = None,
    ) -> None:
        """Lists the folder; no image is read yet.

        Args:
            root: The folder.
            size: Side of the crops in pixels, or None for whole files.
            landmarks: Five points per image: a file for `read_landmarks`, or a mapping.

        Raises:
            SourceError: The folder is missing or empty, an identity has no images, or two files of an
                identity differ in the extension only.
            AlignmentError: A landmark file that cannot be read.
        """
        self.root = Path(root)
        super().__init__(list_images(self.root), size=size, landmarks=open_landmarks(landmarks))


def list_images(root: Path) -> dict[str, Path]:
    """The images at `root/<identity>/<image>` by name (`identity/image` without extension).

    Raises:
        SourceError: As for `IdentityFolder`.
    """
    if not root.exists():
        raise SourceError(f"{root}: there is no such folder")
    if not root.is_dir():
        raise SourceError(f"{root}: this is a file, expected a folder of identities")
    files: dict[str, Path] = {}
    bare: list[str] = []
    for identity in _visible(root):
        if not identity.is_dir():
            continue
        before = len(files)
        for image in _visible(Path(identity.path)):
            stem, extension = os.path.splitext(image.name)
            if extension.lower() not in EXTENSIONS:
                continue
            name = f"{identity.name}/{stem}"
            if name in files:
                raise SourceError(f"{image.path}: {files[name].name} is there too; two images of one name")
            files[name] = Path(image.path)
        if len(files) == before:
            bare.append(identity.name)
    if not files:
        raise SourceError(f"{root}: no images found, expected {root}/<identity>/<image>")
    if bare:
        raise SourceError(f"{root}: identities without images: {several(bare)}")
    return files


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: the folder cannot be listed: {error.strerror}") from error
