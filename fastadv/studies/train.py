"""``fastadv train``: an embedding network, or a class head on one, from a folder of faces or from synthetic ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadv import training
from fastadv.attacks.spec import parse_attack
from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_atomically
from fastadv.core.notices import notify
from fastadv.core.numbers import show_eps
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, Pair, PairError, SyntheticFaces, deal_pairs
from fastadv.data.alignment import Size
from fastadv.data.dealt_pairs import by_identity
from fastadv.data.face_search import FaceSearch
from fastadv.data.run_files import FOUND
from fastadv.models import FaceModel, load, names, shipped_names
from fastadv.runs.inputs import open_faces_of, open_pairs
from fastadv.training.checkpoint import sole_writer
from fastadv.training.validation import few_negatives

SYNTHETIC = "synthetic"

UNSEEN_FIRST = 900_000
"""The first of the synthetic people who validate: far beyond any that are trained on."""

_UNSEEN = 200
_UNSEEN_IMAGES = 8
_HELD_SHARE = 0.1
_COUNTS = (1000, 500, 200, 100, 40, 20)


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """A finished training.

    Attributes:
        model: The architecture.
        loss: The loss.
        adversarial: The attack of an adversarial training, `NAME[:STEPS]@EPS`, or None.
        identities: People trained on.
        steps: Steps of the whole training.
        resumed_at: The step that this call went on from; 0 for a fresh start.
        pairs: Held-out pairs, or 0.
        history: One record an epoch.
        best: The best epoch.
        weights: Its weights, a file for `--weights`.
    """

    model: str
    loss: str
    adversarial: str | None
    identities: int
    steps: int
    resumed_at: int
    pairs: int
    history: tuple[training.EpochRecord, ...]
    best: training.EpochRecord
    weights: str


@dataclass(frozen=True, kw_only=True)
class HeadSummary:
    """A finished class head.

    Attributes:
        model: The architecture.
        classes: Number of identities.
        accuracy: Share of the held-out images that are recognised.
        train_accuracy: Share of the others.
        weights: Backbone and head, a file for `--weights`.
        labels: The identity of every class, a JSON list in the same folder.
    """

    model: str
    classes: int
    accuracy: float
    train_accuracy: float
    weights: str
    labels: str


def train_network(
    *,
    data: Path | str,
    model: str,
    out: Path,
    config: training.TrainConfig,
    weights: Path | None = None,
    pairs: Path | None = None,
    identities: int = 1000,
    per_identity: int = 16,
    landmarks: Path | None = None,
    search: FaceSearch | None = None,
    cache: Path | None = None,
    half: bool = False,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress = silent,
) -> TrainSummary:
    """Train an architecture of the zoo; a killed training goes on when it is started again with the same arguments.

    Validation: the pairs of a CSV file; without one, pairs of people that are held out: unseen synthetic ones, or a
    tenth of the folder's identities (none where there are too few). Nobody in the pairs is trained on.

    Args:
        data: A folder of identities, or ``"synthetic"``.
        model: The architecture.
        out: Where weights, records and the checkpoint go.
        config: How to train.
        weights: Start from these instead of random weights; of a shipped network a fine-tuning starts from its own.
        pairs: CSV ``first,second,same[,fold]``.
        identities: Synthetic people to train on.
        per_identity: Images of each of them.
        landmarks: Five points per image.
        search: How faces are found in photographs, in place of landmarks.
        cache: A folder for the decoded images: faster epochs.
        half: Write ``half.safetensors`` too, the best weights with matrices in float16.
        device: Where to train.
        fresh: Remove the training that ``out`` holds, and begin anew.
        progress: Told of every stage.

    Raises:
        TrainingError, SourceError, ImageError, AlignmentError, PairError, CheckpointError, ValueError: One sentence on
            what was wrong with which file or value.
        ImportError: The loss needs the extra ``train``.
        OSError: A file cannot be written.
    """
    if config.fine_tune and weights is None and model in names() and model not in shipped_names():
        raise training.TrainingError(f"weights: expected a file to fine-tune {model!r} from, got none")
    network = _open(model, weights, seed=None if config.fine_tune else config.seed, device=device)
    source = _faces(
        data,
        network,
        identities=identities,
        per_identity=per_identity,
        seed=config.seed,
        landmarks=landmarks,
        search=search,
        kept=out / FOUND[0],
        fresh=fresh,
        progress=progress,
    )
    held = _held(source, data, pairs, network, seed=config.seed)
    note = None if held is None else few_negatives(held.pairs)
    if note is not None:
        notify(note)
    if cache is not None:
        source = training.CachedFaces(source, cache, progress=progress)
    result = training.train(config, network, source, held=held, out=out, fresh=fresh, progress=progress)
    if half:
        training.save_weights(result.model, out / "half.safetensors", half=True)
    return TrainSummary(
        model=model,
        loss=config.loss,
        adversarial=None if config.adversarial is None else show_adversarial(config.adversarial),
        identities=len(result.classes),
        steps=result.steps,
        resumed_at=result.resumed_at,
        pairs=0 if held is None else len(held.pairs),
        history=result.history,
        best=result.best,
        weights=str(out / "best.safetensors"),
    )


def train_class_head(
    *,
    data: Path | str,
    model: str,
    out: Path,
    config: training.HeadConfig,
    weights: Path | None = None,
    identities: int = 500,
    per_identity: int = 20,
    landmarks: Path | None = None,
    search: FaceSearch | None = None,
    half: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> HeadSummary:
    """Train a class head on a frozen network: ``out/head.safetensors`` (backbone and head) and ``out/classes.json``.

    Args:
        data: A folder of identities, or ``"synthetic"``.
        model: The architecture.
        out: The folder, made where it is missing.
        config: How to train.
        weights: Of the network; None takes the shipped ones.
        identities: Synthetic people, one class each.
        per_identity: Images of each of them.
        landmarks: Five points per image.
        search: How faces are found in photographs, in place of landmarks.
        half: Store matrices in float16.
        device: Where to embed.
        progress: Told of every stage.

    Raises:
        TrainingError, SourceError, ImageError, AlignmentError, CheckpointError, ValueError: One sentence on what was
            wrong with which file or value.
        OSError: A file cannot be written.
    """
    network = _open(model, weights, seed=None, device=device)
    source = _faces(
        data,
        network,
        identities=identities,
        per_identity=per_identity,
        seed=config.seed,
        landmarks=landmarks,
        search=search,
        kept=out / FOUND[0],
        progress=progress,
    )
    with sole_writer(out):
        result = training.train_head(config, network, source, progress=progress)
        training.save_weights(result.model, out / "head.safetensors", half=half)
        names = json.dumps(result.classes, ensure_ascii=False).encode() + b"\n"
        write_atomically(out / "classes.json", names, fsync=True)
    return HeadSummary(
        model=model,
        classes=len(result.classes),
        accuracy=result.accuracy,
        train_accuracy=result.train_accuracy,
        weights=str(out / "head.safetensors"),
        labels=str(out / "classes.json"),
    )


def parse_adversarial(text: str, *, share: float | None = None) -> training.Adversarial:
    """The attack of an adversarial training from `NAME[:STEPS][@EPS]`, such as `"fim:4@8/255"`.

    Args:
        text: The attack, one of `fastadv.training.ATTACKS`.
        share: Of the attacked images in a batch; None takes half.

    Raises:
        ValueError: The text is of no such form, or a number is out of range.
    """
    if re.split("[:@,]", text)[0] not in training.ATTACKS or "," in text:
        raise ArgumentError(
            f"adversarial: expected NAME[:STEPS][@EPS] with a name of {', '.join(training.ATTACKS)}, got {text!r}"
        )
    spec = parse_attack(text, argument="adversarial")
    usual = training.Adversarial()
    return training.Adversarial(
        attack=spec.name,
        eps=usual.eps if spec.eps is None else spec.eps,
        steps=spec.steps,
        share=usual.share if share is None else share,
    )


def show_adversarial(config: training.Adversarial) -> str:
    """The text that `parse_adversarial` reads."""
    steps = "" if config.steps is None else f":{config.steps}"
    return f"{config.attack}{steps}@{show_eps(config.eps)}"


def _open(model: str, weights: Path | None, *, seed: int | None, device: str) -> FaceModel:
    """The network with given weights; without, random ones of the seed, or the shipped ones where there is no seed."""
    return load(model, weights, device=device, random_weights_seed=seed if weights is None else None)


def _faces(
    data: Path | str, network: FaceModel, *, identities: int, per_identity: int, seed: int, **given: Any
) -> FaceSource:
    """The faces to train on; ``given`` as ``open_faces`` takes it."""
    if str(data) != SYNTHETIC:
        source = open_faces_of(network, Path(data), **given)
        source.check(source.names)
        return source
    return seen_people(identities, per_identity, seed=seed, size=network.input_size)


def seen_people(identities: int, per_identity: int, *, seed: int, size: Size) -> SyntheticFaces:
    """Synthetic people to train on.

    Raises:
        ValueError: There are so many that some would validate.
    """
    if identities > UNSEEN_FIRST:
        raise ArgumentError(f"identities: expected at most {UNSEEN_FIRST} (the others validate), got {identities}")
    return SyntheticFaces(identities=identities, per_identity=per_identity, seed=seed, size=size)


def _held(
    source: FaceSource, data: Path | str, pairs: Path | None, network: FaceModel, *, seed: int
) -> training.Held | None:
    if pairs is not None:
        return training.Held(source=source, pairs=open_pairs(source, file=pairs))
    if str(data) == SYNTHETIC:
        unseen = SyntheticFaces(
            identities=_UNSEEN, per_identity=_UNSEEN_IMAGES, seed=seed, size=network.input_size, first=UNSEEN_FIRST
        )
        return training.Held(source=unseen, pairs=unseen.pairs(_COUNTS[0]))
    dealt = _deal(source.names, seed=seed)
    return training.Held(source=source, pairs=dealt) if dealt else None


def _deal(names: Sequence[str], *, seed: int) -> tuple[Pair, ...]:
    """Pairs of a tenth of the identities, as many as there can be up to 1,000; () where they are too few."""
    grouped = by_identity(names)
    people = sorted(person for person, found in grouped.items() if len(found) > 1)
    random.Random(seed).shuffle(people)
    chosen = people[: int(len(grouped) * _HELD_SHARE)]
    for folds in (10, 2):
        for count in _COUNTS:
            try:
                return deal_pairs((n for person in chosen for n in grouped[person]), count, folds=folds, seed=seed)
            except PairError:
                continue
    return ()
