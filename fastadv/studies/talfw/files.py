"""The files of an adversarial copy of a set of pairs: images, landmarks, pairs, in the layout of LFW."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastadv.core.errors import ArgumentError
from fastadv.core.files import is_temporary, write_atomically
from fastadv.core.progress import Progress
from fastadv.data import LFW, FaceSource, IdentityFolder, Pair, RunFolder, Stream, read_image, read_manifest, to_uint8
from fastadv.data.alignment import warp
from fastadv.data.image_files import read_bytes
from fastadv.data.images import decode_image
from fastadv.data.lfw import write_lfw_pairs
from fastadv.data.pairs import PairError, write_pairs_csv
from fastadv.data.stored import ImageFormat, is_grey, stored_grey
from fastadv.data.warp_back import warp_back

IMAGES = "images"
PAIRS_TXT = "pairs.txt"
PAIRS_CSV = "pairs.csv"
CHECKSUMS = "checksums.sha256"
LANDMARKS = "landmarks.txt"


@dataclass(frozen=True, kw_only=True)
class Written:
    """The change of an image that was written.

    Attributes:
        given: Squared L2 norm of the crop's change, in units of [0, 1] images.
        returned: Inner product of the crop's change with what alignment makes of the written one.
        linf: Largest change of a value in the image.
        l2: L2 norm of the image's change.
    """

    given: float
    returned: float
    linf: float
    l2: float


def write_images(
    names: Sequence[str], source: FaceSource, folder: RunFolder, out: Path, stored: ImageFormat, progress: Progress
) -> list[Written]:
    """Write every named image, changed where the run has a crop of it; a measurement comes for each of those.

    All are stored in one format, so that neither the ending nor the coding tells a changed image from another, and each
    in the mode of its source: a grey picture is written with one channel where its file has one, and the change of one
    is the mean of its channels.

    Args:
        names: The images.
        source: Where they are.
        folder: The run of the crops.
        out: The new data set.
        stored: How the files are written.
        progress: Told after every image.

    Raises:
        ValueError: A file is not the one that was attacked.
        ImageError, AlignmentError: A face cannot be read.
        OSError: With the file's name.
    """
    for stale in out.rglob(".*"):  # of a call that was killed; hidden from every reader
        if is_temporary(stale.name):
            stale.unlink(missing_ok=True)
    hashes = {row.name: row.source_hash for row in read_manifest(folder.path)}
    for person in {name.rpartition("/")[0] for name in names}:
        (out / IMAGES / person).mkdir(parents=True, exist_ok=True)

    def write(name: str) -> Written | None:
        if name in hashes:
            return _write_changed(name, hashes[name], source, folder, out, stored)
        data = read_bytes(source.path(name))
        image = decode_image(data, source.path(name))
        write_atomically(image_path(out, name, stored), stored.encode(image, grey=stored_grey(data)))
        return None

    written = []
    with Stream(write, names) as done:
        for number, measured in enumerate(done, 1):
            if measured is not None:
                written.append(measured)
            progress("writing images", number, len(names))
    return written


def image_path(out: Path, name: str, stored: ImageFormat) -> Path:
    """Where an image of the new data set is."""
    return out / IMAGES / f"{name}{stored.suffix}"


def _write_changed(
    name: str, source_hash: str, source: FaceSource, folder: RunFolder, out: Path, stored: ImageFormat
) -> Written:
    face = source.load(name)
    if face.source_hash != source_hash:
        raise ArgumentError(f"{source.path(name)}: expected the file that was attacked, got one that has changed")
    if face.matrix is None:
        raise ArgumentError("data: expected a source of aligned crops, got one of whole files (size=None)")
    data = read_bytes(source.path(name))
    image = decode_image(data, source.path(name))
    change = _difference(read_image(folder.image_path(name)), to_uint8(face.image))
    kept = change
    if is_grey(image):
        kept = np.ascontiguousarray(np.broadcast_to(change.mean(axis=2, keepdims=True), change.shape))
    changed = stored.encode(warp_back(image, kept, face.matrix), grey=stored_grey(data))
    path = image_path(out, name, stored)
    write_atomically(path, changed)
    moved = _difference(decode_image(changed, path), image)  # of the file as a reader decodes it
    returned = warp(moved, face.matrix, (change.shape[0], change.shape[1]))
    return Written(
        given=float(np.vdot(change, change)),
        returned=float(np.vdot(returned, change)),
        linf=float(np.abs(moved).max()),
        l2=float(np.linalg.norm(moved)),
    )


def _difference(after: NDArray[np.uint8], before: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (after.astype(np.float32) - before.astype(np.float32)) / np.float32(255)


def write_landmarks(names: Sequence[str], source: FaceSource, out: Path, stored: ImageFormat) -> None:
    """The originals' points: an adversarial change moves no face."""
    if source.landmarks is None:
        return
    lines = ["# left eye, right eye, nose, left and right mouth corner (the viewer's left first) of the original"]
    for name in sorted(names):
        numbers = (repr(float(v)) for v in np.asarray(source.landmarks[name]).ravel())
        lines.append(f"{name}{stored.suffix} {' '.join(numbers)}")
    write_atomically(out / LANDMARKS, "".join(f"{line}\n" for line in lines).encode())


def write_pairs(pairs: Sequence[Pair], source: FaceSource, out: Path) -> None:
    """As LFW's own list where that can say them, else as CSV."""
    try:
        if not _aligned_as_lfw(source):
            raise PairError("this folder is not read as LFW's is")
        write_lfw_pairs(out / PAIRS_TXT, pairs)
    except PairError:
        write_pairs_csv(out / PAIRS_CSV, pairs)


def reader(source: FaceSource, out: Path) -> tuple[str, ...]:
    """The options by which ``fastadv verify`` finds the faces and pairs that were written."""
    if not _aligned_as_lfw(source):  # without landmarks each kind of folder has its own crop
        return ("--data", str(out / IMAGES), "--pairs", str(out / PAIRS_CSV))
    found = ("--data", str(out))
    return found if (out / PAIRS_TXT).is_file() else (*found, "--pairs", str(out / PAIRS_CSV))


def open_written(source: FaceSource, out: Path) -> FaceSource:
    """The faces that were written, as ``fastadv verify`` reads them."""
    if not _aligned_as_lfw(source):
        return IdentityFolder(out / IMAGES, size=source.size)
    return LFW(out, size=source.size, template=source.template)


def _aligned_as_lfw(source: FaceSource) -> bool:
    return isinstance(source, LFW) or source.landmarks is not None


def write_checksums(out: Path) -> None:
    """SHA-256 of every file of the data set, in the form that ``sha256sum --check`` reads.

    Raises:
        OSError: A file cannot be read or written.
    """
    lines = [f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in _dataset_files(out)]
    write_atomically(out / CHECKSUMS, "".join(lines).encode())


def intact(out: Path) -> bool:
    """Whether every file of the data set is there and as it was written."""
    try:
        lines = (out / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        return listed.keys() == set(_dataset_files(out)) and all(
            hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in listed.items()
        )
    except (OSError, ValueError):
        return False


def _dataset_files(out: Path) -> list[str]:
    images = (str(file.relative_to(out)) for file in (out / IMAGES).rglob("*") if file.is_file())
    lists = (name for name in (LANDMARKS, PAIRS_TXT, PAIRS_CSV) if (out / name).is_file())
    return sorted((*images, *lists))
