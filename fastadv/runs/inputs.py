"""Faces, pairs and models from their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastadv.attacks import Recipe
from fastadv.core.content import is_onnx
from fastadv.core.errors import ArgumentError
from fastadv.core.notices import notify
from fastadv.core.numbers import parse_folds
from fastadv.core.places import local_file
from fastadv.core.progress import Progress, silent
from fastadv.core.remote import to_path
from fastadv.data import LFW, FaceSource, Pair, PairBin
from fastadv.data.face_search import FaceSearch
from fastadv.data.pair_lists import read_pairs_of
from fastadv.data.pairs import check_pairs
from fastadv.data.run_files import FOUND
from fastadv.engine import Engine
from fastadv.models import FaceModel, load, load_onnx, names, shipped_names
from fastadv.models.description import is_description
from fastadv.recognition.verification import check_pairs as check_classes
from fastadv.runs.faces import is_aligned
from fastadv.runs.faces import open_faces as open_faces
from fastadv.runs.faces import open_faces_of as open_faces_of
from fastadv.runs.identity import RunIdentity, UsedFaces
from fastadv.runs.work import Work

Measured = TypeVar("Measured")


def open_model(name: str, weights: Path | None, *, device: str = "cpu") -> FaceModel:
    """A published architecture with its weights, a shipped network with its own, an ONNX file, or what TOML describes.

    It is in evaluation mode.

    Raises:
        CheckpointError: The file does not fit, or is an ONNX file that is not converted.
        ImportError: A package that reads ONNX files is missing.
        ValueError: The name is not known, the network's weights are not given, or the device is not there.
    """
    if name not in names() and is_onnx(name):
        if weights is not None:
            raise ArgumentError(f"weights: expected none with {name}, which holds its own, got {weights}")
        return load_onnx(name, device=device)
    if weights is None and name in names() and name not in shipped_names():
        raise ArgumentError(
            f"weights: expected a file with the weights of {name} (--weights FILE, or {name}=FILE), got none; "
            f"{', '.join(shipped_names())} bring their own"
        )
    if weights is None:
        return load(name, device=device)
    with local_file(weights) as file:
        return load(name, weights=file, device=device)


def open_named_model(text: str, *, device: str = "cpu") -> FaceModel:
    """A model from ``"NAME"``, ``"NAME=WEIGHTS"`` or ``"FILE.onnx"``; the name may be a TOML file.

    Raises:
        CheckpointError, ValueError: As ``open_model``; an empty name of a file.
    """
    name, equals, file = text.partition("=")
    if equals and not file:
        raise ArgumentError(f"network: expected NAME or NAME=WEIGHTS, got {text!r} without a file")
    return open_model(name, to_path(file) if equals else None, device=device)


def network_name(text: str) -> str:
    """What a study calls the network of a text as ``open_named_model`` takes it: a file by its name without suffix."""
    name = text.partition("=")[0]
    return Path(name).stem if is_description(name) or (name not in names() and is_onnx(name)) else name


def open_pairs(
    source: FaceSource,
    *,
    file: Path | None = None,
    folds: Sequence[int] | None = None,
    limit: int | None = None,
    verified: bool = True,
    option: str = "--pairs",
) -> tuple[Pair, ...]:
    """The pairs to verify: a CSV file, or LFW's own; a choice of folds; the first ``limit`` of each class.

    Pairs without folds get ten, dealt out in turn, each class on its own. Where they are to be ``verified``, each
    class must have a pair for every fold.

    Args:
        source: The faces.
        file: The CSV; its names may have the images' extensions. None: the list that the faces bring.
        folds: Only these of the list's own folds, from 0.
        limit: So many pairs at most.
        verified: Whether each class must have a pair for every fold.
        option: What the messages call the file.

    Raises:
        ValueError: There are no pairs, an image is missing, the pairs have no folds or not this one, a pair is of an
            image with itself or occurs twice, one class of pairs only, or fewer pairs of one class than folds.
        AlignmentError, ImageError: An image that cannot be used, as ``FaceSource.check``.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit: expected a whole number of at least 1, got {limit}")
    if file is not None:
        pairs = read_pairs_of(source, file)
    elif isinstance(source, (LFW, PairBin)):
        pairs = source.pairs
    else:
        raise ArgumentError(
            f"pairs: expected faces with a list of pairs or {option} FILE, a CSV first,second,same[,fold], got neither"
        )
    check_pairs(pairs, where="pairs" if file is None else str(file))
    if folds is not None:
        known = {p.fold for p in pairs}
        unknown = [f + 1 for f in folds if f not in known]
        if None in known:
            raise ArgumentError(
                "folds: expected pairs with folds of their own, got a list without; leave --folds out or add a column "
                "fold to the list"
            )
        if unknown:
            raise ArgumentError(f"folds: expected some of the {len(known)} of the pairs, got {unknown[0]}")
        pairs = tuple(p for p in pairs if p.fold in folds)
    if limit is not None:
        pairs = _first_of_each(pairs, limit)
    pairs = _with_folds(pairs)
    if verified:
        check_classes([p.same for p in pairs], [p.fold for p in pairs])
    if not isinstance(source, PairBin):
        _note_inverted(pairs)
    source.check(name for pair in pairs for name in (pair.first, pair.second))
    return pairs


def _note_inverted(pairs: Sequence[Pair]) -> None:
    """Say so where every label contradicts the folders: 1 was taken for different people."""
    if len(pairs) > 1 and all(p.same is (p.first.rpartition("/")[0] != p.second.rpartition("/")[0]) for p in pairs):
        notify(
            f"pairs: all {len(pairs)} labels contradict the identity folders, such as {pairs[0].first} and "
            f"{pairs[0].second}; same is 1 for one person and 0 for two"
        )


def _first_of_each(pairs: Sequence[Pair], limit: int) -> tuple[Pair, ...]:
    """Half of the limit from each class, spread evenly over the list, so that every fold keeps some."""
    keep: set[int] = set()
    for same, count in ((True, (limit + 1) // 2), (False, limit // 2)):
        places = [i for i, p in enumerate(pairs) if p.same is same]
        count = min(count, len(places))
        keep.update(places[i * len(places) // count] for i in range(count))
    return tuple(p for i, p in enumerate(pairs) if i in keep)


def _with_folds(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    if all(p.fold is not None for p in pairs):
        return tuple(pairs)
    seen = {True: 0, False: 0}
    dealt = []
    for pair in pairs:
        dealt.append(Pair(first=pair.first, second=pair.second, same=pair.same, fold=seen[pair.same] % 10))
        seen[pair.same] += 1
    return tuple(dealt)


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a command about one network on one set of faces is given.

    Attributes:
        data: The faces, as ``open_faces`` takes them.
        model: The architecture; None for a study of several, which it names itself.
        weights: Its weights; None takes those that come with a shipped network.
        landmarks: Five points an image, or None.
        search: How faces are found in photographs, in place of landmarks; None: they are not.
        seed: Of every random number.
        engine: How to run, with open choices.
        device: Where to compute.
        out: The folder of the run, or None.
        fresh: Whether to remove the run that the folder holds.
    """

    data: Path
    model: str | None = None
    weights: Path | None = None
    landmarks: Path | None = None
    search: FaceSearch | None = None
    seed: int = 0
    engine: Engine = field(default_factory=Engine)
    device: str = "cpu"
    out: Path | None = None
    fresh: bool = False

    def open_model(self) -> FaceModel:
        """The network.

        Raises:
            CheckpointError, ValueError: As ``open_model``.
        """
        assert self.model is not None
        return open_model(self.model, self.weights, device=self.device)

    @property
    def folder(self) -> Path:
        """The folder of a run that requires one.

        Raises:
            ValueError: There is none.
        """
        if self.out is None:
            raise ArgumentError("out: expected a folder, got none")
        return self.out

    def used(self, source: FaceSource, names: Sequence[str] | None = None) -> UsedFaces:
        """The images that the run depends on."""
        return UsedFaces(source=source, names=names, landmarks=self.landmarks)

    def identity(
        self,
        command: str,
        model: FaceModel,
        faces: UsedFaces,
        *,
        attack: Recipe | None = None,
        attacks: Mapping[str, Recipe] | None = None,
        others: Mapping[str, UsedFaces] | None = None,
        out: Path | None = None,
        rules: Mapping[str, Any],
        images: int | None = None,
    ) -> RunIdentity:
        """What decides about the run's output, and its folder, which is ``out`` where that is another.

        Raises:
            ValueError, ImageError: As ``RunIdentity.of``.
        """
        return RunIdentity.of(
            command,
            model=model,
            weights=self.weights,
            attack=attack,
            attacks=attacks,
            engine=None if attack is None and attacks is None else self.engine,
            seed=self.seed,
            faces=faces,
            others=others,
            out=out or self.out,
            rules=rules,
            images=images,
            fresh=self.fresh,
        )

    def measured(
        self,
        measure: Callable[[Work], Measured],
        identity: Callable[[], RunIdentity],
        save: Callable[[Measured, Path], None],
        *,
        progress: Progress,
    ) -> Measured:
        """What a study measures that also runs without a folder; with one, its images and figures are written there.

        Args:
            measure: The study, given how and where images are made.
            identity: What decides about the output; asked where there is a folder.
            save: Writes the figures into a folder.
            progress: Told of every stage.

        Raises:
            RunFolderError, OSError: The folder cannot take this run.
        """
        if self.out is None:
            return measure(Work(seed=self.seed, engine=self.engine, progress=progress))
        with identity().work(self.out, fresh=self.fresh, progress=progress) as work:
            result = measure(work)
            work.into.claim()
            save(result, self.out)
        return result

    def open_faces(
        self, model: FaceModel, gallery: Path | None = None, *, out: Path | None = None, progress: Progress = silent
    ) -> FaceSource:
        """The faces, or those of a gallery, with the same landmarks or search, at the network's size.

        Args:
            model: The network.
            gallery: Other faces, which may be aligned already.
            out: The folder that keeps landmarks; None: the run's.
            progress: Told of every photograph that is searched.

        Raises:
            SourceError, AlignmentError, ValueError: As ``open_faces``.
        """
        out = out or self.out
        return open_faces_of(
            model,
            self.data if gallery is None else gallery,
            landmarks=self.landmarks,
            search=None if gallery is not None and is_aligned(gallery) else self.search,
            kept=None if out is None else out / FOUND[gallery is not None],
            fresh=self.fresh,
            progress=progress,
        )


@dataclass(frozen=True, kw_only=True)
class PairChoice:
    """Which pairs of a list are used.

    Attributes:
        file: The list; None for the one that the faces bring.
        folds: Some of its folds, as text such as ``"1-2"``; None for all.
        limit: So many pairs at most.
        option: What messages call the list.
    """

    file: Path | None = None
    folds: str | None = None
    limit: int | None = None
    option: str = "--pairs"

    def open(self, source: FaceSource, *, verified: bool = True) -> tuple[Pair, ...]:
        """The pairs.

        Raises:
            ValueError, AlignmentError, ImageError: As ``parse_folds`` and ``open_pairs``.
        """
        folds = None if self.folds is None else parse_folds(self.folds)
        return open_pairs(source, file=self.file, folds=folds, limit=self.limit, verified=verified, option=self.option)

    def described(self) -> dict[str, object]:
        """As a run's identity has it: the contents of the pairs stand beside it."""
        return {"pairs": None if self.file is None else self.file.name, "folds": self.folds, "limit": self.limit}
