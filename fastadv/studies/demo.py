"""``fastadv demo``: the whole idea on faces that nobody has, with a network that ships with the package."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastadv.attacks import Recipe, fgsm, fim, m_fim, pgd
from fastadv.core.differences import difference
from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.core.files import is_temporary, remove_temporaries, write_json
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, ManifestRow, read_manifest, write_pairs_csv
from fastadv.data.alignment import Size
from fastadv.data.folder import IdentityFolder
from fastadv.data.pairs import Pair
from fastadv.data.synthetic import SyntheticFaces, write_faces
from fastadv.engine import Engine
from fastadv.models import FaceModel, load
from fastadv.runs import RunIdentity, UsedFaces, list_hash
from fastadv.runs.attack import AttackSummary, summarise
from fastadv.runs.embedding import names_of
from fastadv.studies.verify import Verification, save, verify

MODEL = "synth-vgg"
PAIRS = 300
FACES = "faces"
PAIRS_FILE = "pairs.csv"
_MARK = "demo.json"
_FIRST_PERSON = 900_000  # far from those that networks were trained on
_PER_IDENTITY = 4
_FOLDS = 10
_MARGIN = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoRun:
    """One attack of the demo.

    Attributes:
        label: What the report calls it.
        path: Its run folder.
        attack: How it moved.
        verification: The figures.
        rows: One per pair, in the order of the pairs.
        seconds: What the attack took, or None where an earlier demo had made it.
    """

    label: str
    path: Path
    attack: Recipe
    verification: Verification
    rows: tuple[ManifestRow, ...]
    seconds: float | None

    @cached_property
    def summary(self) -> AttackSummary:
        """The attacks of both kinds together."""
        return summarise(self.rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoResult:
    """What the demo found.

    Attributes:
        out: Its folder: the faces, the pairs, and a run folder per attack.
        source: The faces.
        seed: Of the people, their pairs and the attacks.
        model: Name of the network.
        pairs: The pairs that were verified.
        runs: FGSM, PGD, FIM and M-FIM, each with all its steps.
        stopped: FIM again, each image stopped as soon as its goal is reached.
        seconds: The whole demo.
    """

    out: Path
    source: FaceSource
    seed: int
    model: str
    pairs: tuple[Pair, ...]
    runs: tuple[DemoRun, ...]
    stopped: DemoRun
    seconds: float


def demo(
    out: Path, *, seed: int = 0, pairs: int = PAIRS, model: FaceModel | None = None, progress: Progress = silent
) -> DemoResult:
    """Verify pairs of synthetic faces, clean and under four attacks.

    Everything is kept in ``out``, so that each run can be looked at and made again with the ordinary commands. A
    second demo with the same arguments takes up what the first one left.

    Args:
        out: A new or empty folder, or one of a demo with the same arguments.
        seed: Of the people, of their pairs and of every random number of the attacks.
        pairs: How many, a multiple of 20: ten folds, half of each one person.
        model: Another network instead of the shipped one.
        progress: Told of every stage.

    Raises:
        ValueError: A number is out of range, or ``out`` holds something else.
        OSError: A file cannot be written.
    """
    begin = time.perf_counter()
    out = Path(out)
    network = load(MODEL) if model is None else model
    source, chosen = _faces(out, seed=seed, pairs=pairs, size=network.input_size, progress=progress)

    def run(label: str, attack: Recipe, folder: Path) -> DemoRun:
        return _run(label, attack, folder, source, chosen, network, seed=seed, progress=progress)

    runs = tuple(run(attack.name.upper(), attack, out / attack.name) for attack in (fgsm(), pgd(), fim(), m_fim()))
    halting = fim(stop_at_success=True, margin=_MARGIN)
    stopped = run("FIM, stopping", halting, out / "fim-stop")
    return DemoResult(
        out=out,
        source=source,
        seed=seed,
        model=network.name,
        pairs=chosen,
        runs=runs,
        stopped=stopped,
        seconds=time.perf_counter() - begin,
    )


def _faces(
    out: Path, *, seed: int, pairs: int, size: Size, progress: Progress
) -> tuple[IdentityFolder, tuple[Pair, ...]]:
    """The faces and pairs of a demo as files, as anybody's own would be."""
    people = SyntheticFaces(
        identities=max(2 * _FOLDS, pairs // 2), per_identity=_PER_IDENTITY, seed=seed, size=size, first=_FIRST_PERSON
    )
    chosen = people.pairs(pairs, folds=_FOLDS, seed=seed)
    _claim(out, {"seed": seed, "pairs": pairs, "size": people.size})
    write_faces(people, sorted(names_of(chosen)), out / FACES, progress=progress)
    write_pairs_csv(out / PAIRS_FILE, chosen)
    return IdentityFolder(out / FACES, size=size), chosen


def _claim(out: Path, arguments: dict[str, Any]) -> None:
    """Makes the folder a demo's, or finds that it is one's with the same arguments, before anything is written."""
    mark = out / _MARK
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"out: expected a folder, got the file {out}")
    if mark.is_file():
        remove_temporaries(out)
        try:
            saved = json.loads(mark.read_bytes())
        except UNREADABLE as error:
            raise ArgumentError(
                f"{mark}: expected the file of a demo, got one that cannot be read: {error}; give another --out"
            ) from error
        found = difference(
            saved if isinstance(saved, dict) else {}, arguments, where=_MARK, remedy="give another --out"
        )
        if found:
            raise ArgumentError(f"{out}: holds another demo; {found}")
        return
    if out.is_dir() and not all(is_temporary(entry.name) for entry in out.iterdir()):
        raise ArgumentError(
            f"out: expected a new or empty folder, or that of a demo, got {out}, which holds something else"
        )
    out.mkdir(parents=True, exist_ok=True)
    remove_temporaries(out)
    write_json(mark, arguments, indent=None, fsync=True)


def _run(
    label: str,
    attack: Recipe,
    path: Path,
    source: IdentityFolder,
    pairs: Sequence[Pair],
    model: FaceModel,
    *,
    seed: int,
    progress: Progress,
) -> DemoRun:
    identity = RunIdentity.of(
        "verify",
        model=model,
        attack=attack,
        engine=Engine(),
        seed=seed,
        faces=UsedFaces(source=source, names=names_of(pairs)),
        out=path,
        rules={"metric": "cosine", "orders": list_hash(pairs)},
    )
    clock = _Clock(attack.name, progress)
    with identity.work(path, progress=clock) as work:
        fresh = not work.into.done
        found = verify(source, pairs, model, attack=attack, work=work)
    save(found, path)
    return DemoRun(
        label=label,
        path=path,
        attack=attack,
        verification=found,
        rows=tuple(read_manifest(path)),
        seconds=clock.seconds if fresh else None,
    )


class _Clock:
    """Passes progress on, and measures the stages of one attack: without reading, embedding and drawing."""

    def __init__(self, attack: str, progress: Progress) -> None:
        self._attack, self._progress = attack, progress
        self._begin: float | None = None
        self.seconds = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage.startswith(f"{self._attack}:"):
            now = time.perf_counter()
            if not done or self._begin is None:
                self._begin = now
            elif done == total:
                self.seconds += now - self._begin
        self._progress(stage, done, total)
