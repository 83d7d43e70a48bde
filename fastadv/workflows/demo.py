"""``fastadv demo``: the whole idea on faces that nobody has, with a network that ships with the package."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fastadv.attacks import SignGradient, fgsm, fim, m_fim, pgd
from fastadv.core.differences import difference
from fastadv.core.errors import ArgumentError, MissingPackageError
from fastadv.data import read_manifest, write_pairs_csv
from fastadv.data.files import remove_temporaries, write_atomically
from fastadv.data.folder import IdentityFolder
from fastadv.data.images import to_uint8, write_png
from fastadv.data.pairs import Pair
from fastadv.data.synthetic import SyntheticFaces
from fastadv.engine import Engine
from fastadv.models import FaceModel, load
from fastadv.report import render_page
from fastadv.runs import RunIdentity, UsedFaces, list_hash
from fastadv.workflows import verify as verifying
from fastadv.workflows.demo_page import DemoResult, DemoRun, demo_page
from fastadv.workflows.inputs import Progress, silent
from fastadv.workflows.report import PAGE
from fastadv.workflows.verify import verify

MODEL = "synth-vgg"
PAIRS = 300
FACES = "faces"
PAIRS_FILE = "pairs.csv"
_MARK = "demo.json"
_FIRST_PERSON = 900_000  # far from those that networks were trained on
_PER_IDENTITY = 4
_FOLDS = 10
_MARGIN = 0.02


def demo(
    out: Path,
    *,
    seed: int = 0,
    pairs: int = PAIRS,
    model: FaceModel | None = None,
    progress: Progress = silent,
) -> DemoResult:
    """Verify pairs of synthetic faces, clean and under four attacks, and write a report.

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
        ImportError: jinja2 or matplotlib is not installed (before anything is made).
        OSError: A file cannot be written.
    """
    begin = time.perf_counter()
    for module in ("jinja2", "matplotlib"):  # better now than after a minute
        if find_spec(module) is None:
            raise MissingPackageError(f"report: expected {module}, got no such package; pip install 'fastadv[report]'")
    out = Path(out)
    network = load(MODEL) if model is None else model
    source, chosen = _faces(out, seed=seed, pairs=pairs, size=network.input_size[0], progress=progress)

    def run(label: str, attack: SignGradient, folder: Path) -> DemoRun:
        return _run(label, attack, folder, source, chosen, network, seed=seed, progress=progress)

    runs = tuple(run(attack.name.upper(), attack, out / attack.name) for attack in (fgsm(), pgd(), fim(), m_fim()))
    halting = replace(fim(), stop_at_success=True, margin=_MARGIN)
    stopped = run("FIM, stopping", halting, out / "fim-stop")
    result = DemoResult(
        out=out,
        report=out / PAGE,
        model=network.name,
        pairs=chosen,
        runs=runs,
        stopped=stopped,
        seconds=time.perf_counter() - begin,
    )
    write_atomically(result.report, render_page(demo_page(result, source, seed=seed)).encode())
    return result


def _faces(
    out: Path, *, seed: int, pairs: int, size: int, progress: Progress
) -> tuple[IdentityFolder, tuple[Pair, ...]]:
    """The faces and pairs of a demo as files, as anybody's own would be."""
    people = SyntheticFaces(
        identities=max(2 * _FOLDS, pairs // 2), per_identity=_PER_IDENTITY, seed=seed, size=size, first=_FIRST_PERSON
    )
    chosen = people.pairs(pairs, folds=_FOLDS, seed=seed)
    _claim(out, {"seed": seed, "pairs": pairs, "size": size})
    names = sorted({name for pair in chosen for name in (pair.first, pair.second)})
    with people.stream(names) as faces:
        for number, face in enumerate(faces, 1):
            path = out / FACES / f"{face.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, to_uint8(face.image))
            progress("drawing faces", number, len(names))
    write_pairs_csv(out / PAIRS_FILE, chosen)
    return IdentityFolder(out / FACES, size=size), chosen


def _claim(out: Path, arguments: dict[str, int]) -> None:
    """Makes the folder a demo's, or finds that it is one's with the same arguments, before anything is written."""
    mark = out / _MARK
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"out: expected a folder, got the file {out}")
    if mark.is_file():
        remove_temporaries(out)
        try:
            saved = json.loads(mark.read_bytes())
        except ValueError as error:
            raise ArgumentError(
                f"{mark}: expected the file of a demo, got one that cannot be read: {error}; give another --out"
            ) from error
        found = difference(
            saved if isinstance(saved, dict) else {}, arguments, where=_MARK, remedy="give another --out"
        )
        if found:
            raise ArgumentError(f"{out}: holds another demo; {found}")
        return
    if out.is_dir() and any(out.iterdir()):
        raise ArgumentError(
            f"out: expected a new or empty folder, or that of a demo, got {out}, which holds something else"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, json.dumps(arguments).encode() + b"\n")


def _run(
    label: str,
    attack: SignGradient,
    path: Path,
    source: IdentityFolder,
    pairs: Sequence[Pair],
    model: FaceModel,
    *,
    seed: int,
    progress: Progress,
) -> DemoRun:
    engine = Engine().resolve(model)
    identity = RunIdentity.of(
        "verify",
        model=model,
        attack=attack,
        engine=engine,
        seed=seed,
        faces=UsedFaces(source=source, names=[n for p in pairs for n in (p.first, p.second)]),
        out=path,
        rules={"metric": "cosine", "orders": list_hash(pairs)},
    )
    clock = _Clock(attack.name, progress)
    with identity.open(path) as folder:
        fresh = not folder.done
        found = verify(source, pairs, model, attack=attack, folder=folder, seed=seed, engine=engine, progress=clock)
    verifying.save(found, path, title=f"{model.name}, {len(pairs)} pairs, {label}")
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
