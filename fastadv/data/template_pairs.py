"""Protocols that compare templates, each of several images of one person: IJB-B and IJB-C, YouTube Faces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.content import refuse_unless_text
from fastadv.core.errors import ArgumentError
from fastadv.core.notices import notify
from fastadv.core.numbers import whole
from fastadv.core.places import not_files, open_binary
from fastadv.core.remote import to_path
from fastadv.data import names
from fastadv.data.alignment import Size
from fastadv.data.faces import FaceSource, SourceError
from fastadv.data.landmark_lists import read_landmarks
from fastadv.data.landmarks import Landmarks, open_landmarks
from fastadv.data.pairs import PairError

_IMAGES, _META = "loose_crop", "meta"
_TEMPLATES, _PAIRS, _POINTS = "_face_tid_mid.txt", "_template_pair_label.txt", "_name_5pts_score.txt"
_MOST = 2**63 - 1
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TemplatePairs:
    """Templates of images, and pairs of templates. Millions of pairs are a few arrays.

    Attributes:
        images: Names of the images, of M places.
        template: The template of each place, ``(M,)``, from 0.
        media: The photograph or video that each place is of, ``(M,)``: its images count as one.
        first: Templates ``(P,)``.
        second: Templates ``(P,)``.
        same: Whether both are of one person, ``(P,)`` bool.
        folds: ``(P,)``, or None.
    """

    images: tuple[str, ...]
    template: Integers
    media: Integers
    first: Integers
    second: Integers
    same: NDArray[np.bool_]
    folds: Integers | None = None

    @property
    def templates(self) -> int:
        """How many templates there are."""
        return int(self.template.max()) + 1


class IJB(FaceSource):
    """IJB-B or IJB-C (Whitelam et al. 2017; Maze et al. 2018) as InsightFace publishes them.

    `root/loose_crop/N.jpg`, and in `root/meta` the files `*_face_tid_mid.txt` (image, template, medium),
    `*_template_pair_label.txt` (two templates, 1 or 0) and `*_name_5pts_score.txt` (image, ten coordinates, score).
    Names are "loose_crop/N"; faces are aligned by those landmarks.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: Size | None = 112,
        landmarks: str | os.PathLike[str] | Landmarks | None = None,
        template: ArrayLike | None = None,
    ) -> None:
        """Reads the lists of images and landmarks.

        Args:
            root: The folder.
            size: Side of the crops in pixels, or their height and width, or None for whole files.
            landmarks: Five points per image; None: those of the data set.
            template: Where they go, as of `FaceSource`.

        Raises:
            SourceError: A list is missing or malformed, or images are not there.
            AlignmentError: Landmarks that cannot be read.
        """
        self.root = to_path(root)
        listed = dict.fromkeys(name for name, *_ in _rows(_file(self.root, _TEMPLATES)))
        if not listed:
            raise SourceError(f"{self.root}: expected images in its list of templates, got none")
        files = {f"{_IMAGES}/{names.stem(name)}": self.root / _IMAGES / name for name in listed}
        missing = [str(path) for path in not_files(files.values())]
        if missing:
            raise SourceError(f"{self.root}: images are missing: {names.several(missing)}")
        points = open_landmarks(landmarks)
        if points is None and size is not None:
            points = {f"{_IMAGES}/{name}": value for name, value in read_landmarks(_file(self.root, _POINTS)).items()}
        super().__init__(files, size=size, landmarks=points, template=template)

    def template_pairs(self) -> TemplatePairs:
        """The 1:1 protocol.

        Raises:
            SourceError: A list is malformed, or pairs a template that has no images.
        """
        rows = list(_rows(_file(self.root, _TEMPLATES)))
        known, template = np.unique(np.array([row[1] for row in rows]), return_inverse=True)
        path = _file(self.root, _PAIRS)
        pairs = _numbers(path)
        places = np.searchsorted(known, pairs[:, :2]).clip(max=len(known) - 1)
        wrong = known[places] != pairs[:, :2]
        if wrong.any():
            raise SourceError(f"{path}: expected templates with images, got {pairs[:, :2][wrong][0]}")
        return TemplatePairs(
            images=tuple(f"{_IMAGES}/{names.stem(row[0])}" for row in rows),
            template=template.astype(np.int64),
            media=np.array([row[2] for row in rows], dtype=np.int64),
            first=places[:, 0],
            second=places[:, 1],
            same=pairs[:, 2] != 0,
        )


def is_ijb(root: Path) -> bool:
    """Whether a folder has the layout of `IJB`."""
    return (root / _IMAGES).is_dir() and any((root / _META).glob(f"*{_TEMPLATES}"))


def is_ytf(path: Path) -> bool:
    """Whether a file is the list of pairs of YouTube Faces: its header begins with the number of the split."""
    try:
        with open_binary(path, block=64) as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf").lower().replace(b" ", b"").startswith(b"splitnumber")
    except OSError:
        return False


def read_ytf(source: FaceSource, path: str | os.PathLike[str]) -> TemplatePairs:
    """The pairs of YouTube Faces (Wolf et al. 2011), `splits.txt`: `split, first video, second video, ..., 1 or 0`.

    A video is a folder of the source, `person/number`, and a template of one medium. Pairs of a video in which the
    source has found no face are left out, which a notice says.

    Args:
        source: The frames, `person/number/frame`.
        path: The list.

    Raises:
        PairError: The list is malformed, or the source lacks a video.
    """
    path = to_path(path)
    refuse_unless_text(path, PairError, "a list of pairs of videos")
    frames: dict[str, list[str]] = {}
    for name in source.names:
        frames.setdefault(name.rpartition("/")[0], []).append(name)
    lost = {name.rpartition("/")[0] for name in source.without_face} - set(frames)
    rows, left = [], list[str]()
    for number, line in enumerate(names.read_lines(path, "pairs", PairError), 1):
        fields = [field.strip() for field in line.split(",")]
        if number == 1 or not line.strip():
            continue
        where = f"{path}:{number}"
        split = whole(fields[0])
        if len(fields) < 4 or split is None or fields[-1] not in ("0", "1"):
            raise PairError(f"{where}: expected a split, two videos and 1 or 0, got {line.strip()[:60]!r}")
        absent = [video for video in fields[1:3] if video not in frames]
        if absent and lost.issuperset(absent):
            left.append(absent[0])
            continue
        if absent:
            raise PairError(f"{where}: expected videos among the images, got {absent[0]}, which has none")
        rows.append((split - 1, fields[1], fields[2], fields[-1] == "1"))
    if not rows:
        raise PairError(f"{path}: expected a line per pair of videos, got none")
    if left:
        notify(f"pairs: {len(left)} left out: no face in {names.several(sorted(set(left)))}")
    videos = {video: k for k, video in enumerate(dict.fromkeys(v for _, a, b, _ in rows for v in (a, b)))}
    places = [(frame, k) for video, k in videos.items() for frame in frames[video]]
    template = np.array([k for _, k in places], dtype=np.int64)
    return TemplatePairs(
        images=tuple(frame for frame, _ in places),
        template=template,
        media=template,
        first=np.array([videos[a] for _, a, _, _ in rows], dtype=np.int64),
        second=np.array([videos[b] for _, _, b, _ in rows], dtype=np.int64),
        same=np.array([same for *_, same in rows]),
        folds=np.array([split for split, *_ in rows], dtype=np.int64),
    )


def template_pairs_of(source: FaceSource, file: Path | None) -> TemplatePairs | None:
    """The protocol that faces bring or a list holds; None where pairs of images are meant."""
    if isinstance(source, IJB) and file is None:
        return source.template_pairs()
    return read_ytf(source, file) if file is not None and is_ytf(file) else None


def template_embeddings(protocol: TemplatePairs, embeddings: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
    """One unit vector a template: the mean of the embeddings of each medium, the sum over its media, normalised.

    ``e_t = s_t / |s_t|, s_t = sum_m mean_{i in t, m} e_i`` (Maze et al. 2018; the averaging of InsightFace's IJB code).

    Args:
        protocol: The templates.
        embeddings: Of each image, ``(D,)``, by name.

    Returns:
        ``(T, D)`` float32.

    Raises:
        ValueError: A template's embeddings add up to zero.
    """
    rows = np.stack([np.asarray(embeddings[name], np.float32) for name in protocol.images])
    pairs = np.stack([protocol.template, protocol.media], 1)
    media, place, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    means = np.zeros((len(media), rows.shape[1]))
    np.add.at(means, place.reshape(-1), rows / counts[place.reshape(-1), None])
    sums = np.zeros((protocol.templates, rows.shape[1]))
    np.add.at(sums, media[:, 0], means)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not (lengths > 0).all():
        zero = int((lengths[:, 0] == 0).argmax())
        raise ArgumentError(f"templates: expected embeddings with a mean, got some of template {zero} that cancel out")
    return (sums / lengths).astype(np.float32)


def _file(root: Path, ending: str) -> Path:
    found = sorted((root / _META).glob(f"*{ending}"))
    if len(found) != 1:
        raise SourceError(f"{root / _META}: expected one file *{ending}, got {len(found)}")
    return found[0]


def _numbers(path: Path) -> Integers:
    """Three numbers a line, of millions of lines."""
    refuse_unless_text(path, SourceError, "a list of pairs of templates")
    try:
        with open_binary(path) as file:
            found = np.loadtxt(file, dtype=np.int64, ndmin=2, comments=None)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: expected two templates and 1 or 0 a line, got others: {error}") from error
    if not len(found) or found.shape[1] != 3:
        raise SourceError(f"{path}: expected two templates and 1 or 0 a line, got {found.shape[1]} numbers")
    return found


def _rows(path: Path) -> Iterator[tuple[str, int, int]]:
    """Image, template and medium of each line."""
    refuse_unless_text(path, SourceError, "a list of templates")
    for number, line in enumerate(names.read_lines(path, "list", SourceError), 1):
        fields = line.split()
        if not fields:
            continue
        template, medium = (whole(field, most=_MOST) for field in fields[1:3]) if len(fields) == 3 else (None, None)
        if template is None or medium is None:
            raise SourceError(f"{path}:{number}: expected an image, a template and a medium, got {line.strip()[:60]!r}")
        yield fields[0], template, medium
