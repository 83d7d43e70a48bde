"""What a run is: everything that changes a byte of its output, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastadv.attacks import Attack, Goal, Recipe, check_recipe
from fastadv.core.errors import UNREADABLE
from fastadv.core.progress import Notes, Progress, silent
from fastadv.data import FaceSource, RunFolder
from fastadv.data.hashes import KEPT, KnownHashes
from fastadv.data.run_files import RUN_FOLDER, FolderKind, held
from fastadv.data.writer import Lost
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.models.identity import model_identity, state_hash, update_digest
from fastadv.runs.work import Work
from fastadv.runs.workers import Workers
from fastadv.surrogates import Surrogate


@dataclass(frozen=True, kw_only=True, eq=False)
class UsedFaces:
    """The images of a source that a run depends on.

    Attributes:
        source: Where they are.
        names: Which ones; None: all.
        landmarks: The file of the points, for messages; None: the source's own, or none.
    """

    source: FaceSource
    names: Sequence[str] | None = None
    landmarks: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RunIdentity:
    """What decides about every byte of a run. Two calls with equal identities make the same images.

    Threads, instruction set, device and versions are no part of it, so that a run can go on elsewhere; every row of the
    manifest records them.

    Attributes:
        config: The parts as plain JSON values, in the order in which differences are reported.
        shown: How messages call a part's value.
        known: Hashes of the images, kept beside the run so that they are not computed again.
        engine: With every choice made; of a run that goes on, with those that it began with.
        kind: What the folder is of.
        images: How many images the run is to have, where that is known beforehand; it follows from the parts.
    """

    config: Mapping[str, Any]
    shown: Mapping[str, str] = field(default_factory=dict)
    known: KnownHashes = field(default_factory=KnownHashes)
    engine: Engine = field(default_factory=Engine)
    kind: FolderKind = RUN_FOLDER
    images: int | None = None

    @staticmethod
    def of(
        command: str,
        *,
        engine: Engine | None = None,
        seed: int,
        model: FaceModel | None = None,
        weights: Path | None = None,
        models: Mapping[str, FaceModel] | None = None,
        attack: Recipe | None = None,
        attacks: Mapping[str, Recipe] | None = None,
        faces: UsedFaces,
        others: Mapping[str, UsedFaces] | None = None,
        out: str | os.PathLike[str] | None = None,
        rules: Mapping[str, Any] | None = None,
        kind: FolderKind = RUN_FOLDER,
        images: int | None = None,
        fresh: bool = False,
    ) -> RunIdentity:
        """Settle the open choices of the engine, and hash what the run depends on.

        Args:
            command: Its name.
            engine: As the user gave it; None: nothing is attacked.
            seed: Of every random number.
            model: The network, where there is one.
            weights: The file it came from, for messages.
            models: Networks by name, where there are several.
            attack: How images move, where there is one attack.
            attacks: Attacks by label, where there are several.
            faces: The images to change and their targets.
            others: Further images by role, such as "gallery".
            out: The run's folder: the choices and hashes that an earlier call has kept there are used.
            rules: The rest, as plain JSON values: goal, threshold, pairs, choice of images.
            kind: What the folder is of.
            images: How many images the run is to have.
            fresh: Whether the folder is to begin anew: the choices of the run that it holds are not taken.

        Raises:
            ValueError: As ``Engine.resolve``.
            KeyError: A source lacks a name.
            ImageError: An image cannot be read.
        """
        if engine is not None:
            first = next(iter((models or {}).values()), model)
            earlier = None if out is None or fresh else Path(out, kind.mark)
            engine = engine if first is None else _settled(engine, first, earlier)
        known = KnownHashes() if out is None else KnownHashes.read(Path(out))
        config: dict[str, Any] = {"command": command}
        shown: dict[str, str] = {}
        if model is not None:
            config.update(model_identity(model))
            if weights is not None:
                shown["weights"] = f"{weights.name} (sha256 {config['weights'][:8]})"
        if models is not None:
            config["networks"] = {name: model_identity(each) for name, each in models.items()}
        if attack is not None:
            config["attack"] = describe(attack)
            shown["attack"] = attack.name
        if attacks is not None:
            config["attacks"] = {label: describe(each) for label, each in attacks.items()}
        config.update(rules or {})
        for role, used in {"faces": faces, **(others or {})}.items():
            _add_faces(config, shown, role, used, known)
        if engine is not None:
            config["engine"] = describe_engine(engine)
        config["seed"] = seed
        return RunIdentity(config=config, shown=shown, known=known, engine=engine or Engine(), kind=kind, images=images)

    def open(self, out: str | os.PathLike[str], *, lost: Lost | None = None, fresh: bool = False) -> RunFolder:
        """The run's folder; as `RunFolder.open`."""
        how = partial(RunFolder.open, shown=self.shown, beside=self._beside, images=self.images)
        return how(out, self.config, lost=lost, fresh=fresh)

    @contextmanager
    def work(
        self,
        out: str | os.PathLike[str],
        *,
        fresh: bool = False,
        workers: Workers | None = None,
        progress: Progress = silent,
    ) -> Iterator[Work]:
        """The run's folder with how its images are made; as `open`."""
        with self.open(out, fresh=fresh) as folder:
            seed = self.config["seed"]
            work = Work(folder=folder, seed=seed, engine=self.engine, workers=workers, progress=progress)
            yield work
        if work.spent.seconds["steps"] and isinstance(progress, Notes):
            progress.note(work.spent.line())

    def hold(self, out: Path, *, fresh: bool = False) -> AbstractContextManager[None]:
        """The folder of another kind than a run's; as `run_files.held`."""
        return held(out, self.kind, self.config, shown=self.shown, beside=self._beside, fresh=fresh)

    @property
    def _beside(self) -> dict[str, bytes]:
        return {KEPT: self.known.to_bytes()} if self.known.entries else {}


def describe_engine(engine: Engine) -> dict[str, object]:
    """What of an engine's settings changes a byte."""
    more = {"success_float": True} if engine.success_float else {}
    return {"batch": engine.batch, "precision": engine.precision, "channels_last": engine.channels_last, **more}


def _settled(engine: Engine, model: FaceModel, description: Path | None) -> Engine:
    """The engine with its open choices made: those of the run that a description is of, where it is there."""
    try:
        saved = {} if description is None else json.loads(description.read_bytes())["config"]["engine"]
        batch, precision = int(saved["batch"]), str(saved["precision"])
    except UNREADABLE:
        return engine.resolve(model)
    if engine.precision in (None, "auto"):
        engine = replace(engine, precision=precision)
    if not engine.batch:
        engine = replace(engine, batch=batch, slots=engine.slots or batch)
    return engine.resolve(model)


def _add_faces(config: dict[str, Any], shown: dict[str, str], role: str, used: UsedFaces, known: KnownHashes) -> None:
    found = used.source.identity(used.names, known=known)
    points = "landmarks" if role == "faces" else f"{role} landmarks"
    config[role] = found["images"]
    config[points] = found["landmarks"]
    config[f"{role} cut"] = {"size": found["size"], "how": found["crop"]}
    if "detector" in found:
        config["detector" if role == "faces" else f"{role} detector"] = found["detector"]
    count = found["count"]
    shown[role] = f"{count} {'image' if count == 1 else 'images'} (sha256 {found['images'][:8]})"
    if found["landmarks"] is not None:
        file = "found in the photographs" if "detector" in found else "the data's own"
        file = file if used.landmarks is None else used.landmarks.name
        shown[points] = f"{file} (sha256 {found['landmarks'][:8]})"


def list_hash(items: Sequence[object]) -> str:
    """SHA-256 of the items' representations, one a line: frozen dataclasses of plain values."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode() + b"\n")
    return digest.hexdigest()


def goal_hash(goal: Goal) -> str:
    """SHA-256 of a goal's type and fields: settings by value, references, galleries and networks by content."""
    digest = hashlib.sha256()
    _update(digest, goal)
    return digest.hexdigest()


def _update(digest: Any, value: object) -> None:
    if isinstance(value, torch.Tensor):
        update_digest(digest, value)
    elif isinstance(value, nn.Module):
        digest.update(state_hash(value).encode())
    elif is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{type(value).__qualname__}\n".encode())
        for each in fields(value):
            digest.update(f"{each.name}=".encode())
            _update(digest, getattr(value, each.name))
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)}\n".encode())
        for each in value:
            _update(digest, each)
    else:
        digest.update(f"{value!r}\n".encode())


def describe(recipe: Recipe) -> dict[str, object]:
    """A recipe's fields as plain JSON values; the backend is left out, since all give the same bits."""
    fields_ = _describe_attack(check_recipe(recipe).attack)
    surrogate = _describe_surrogate(recipe.surrogate)
    return {**fields_, "surrogate": surrogate} if surrogate else fields_


def _describe_attack(attack: Attack[Any]) -> dict[str, object]:
    """An attack's fields; one that runs another attack holds that one's."""
    found = {name: value for name, value in vars(attack).items() if name != "backend"}
    if "attack" in found:
        found["attack"] = _describe_attack(found["attack"])
    return {**found, "name": attack.name, "budget": {"norm": attack.budget.norm, **asdict(attack.budget)}}


def _describe_surrogate(surrogate: Surrogate) -> dict[str, object]:
    """The parts that are there; models by what decides about their outputs."""
    found: dict[str, object] = {}
    for part in ("diversity", "dropout", "skip", "smoothing"):
        value = getattr(surrogate, part)
        if value is not None:
            found[part] = asdict(value)
    if surrogate.ensemble is not None:
        others = [model_identity(m) for m in surrogate.ensemble.others]
        found["ensemble"] = {"others": others, "weights": surrogate.ensemble.shares}
    return found
