"""Recipes of papers in one folder: parts that several need are run once, and each recipe's results are written."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastadv.attacks import Impersonate, fim
from fastadv.core.differences import difference
from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.core.files import file_hash, write_atomically, write_json
from fastadv.core.progress import Progress, silent
from fastadv.core.provenance import versions
from fastadv.data import FaceSource, write_pairs_csv
from fastadv.data.hashes import KEPT
from fastadv.data.run_files import FOUND, FolderKind
from fastadv.data.synthetic import SyntheticFaces, write_faces
from fastadv.distributed.cluster import Cluster, connected
from fastadv.distributed.output import check_shared
from fastadv.engine import Engine, trace
from fastadv.models import FaceModel, prepare
from fastadv.models.identity import model_identity
from fastadv.runs import RunIdentity, UsedFaces, describe_engine
from fastadv.runs.inputs import open_faces, open_named_model
from fastadv.runs.workers import each
from fastadv.studies.papers.catalog import RECIPES
from fastadv.studies.papers.recipe import Cost, Results, Setup, StudyPart, StudyRecipe
from fastadv.studies.transfer.networks import parse_network

MARK, RESULTS, TABLE = "recipes.json", "results.json", "results.csv"
PARTS, FACES, PAIRS = "parts", "faces", "pairs.csv"
_PEOPLE, _IMAGES, _PAIRS, _FIRST = 24, 8, 200, 800_000  # of the synthetic faces: nobody that networks were trained on
_SIZE = 112
_PNG = 0.75  # bytes of a written image, by the bytes of its pixels
_STEPS, _BATCH = 3, 16  # of what is timed


def run_recipes(
    recipes: Sequence[StudyRecipe],
    setup: Setup,
    out: Path,
    *,
    fresh: bool = False,
    cluster: Cluster | None = None,
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Run recipes, each with the networks of the setup; killed and called again, they go on.

    Args:
        recipes: What to measure.
        setup: With what. Without ``data``, synthetic faces are drawn into the folder: at scale ``"smoke"`` only.
        out: A folder for all of them: ``parts/`` has the studies, and a folder of each recipe its ``results.json`` and
            ``results.csv``.
        fresh: Remove what the folder holds of these recipes and of those of the catalogue; what else lies there stays.
        cluster: Workers that run the parts, several at a time; all of them see the folder, the faces and the weights.
            Else this process does.
        progress: Told of every stage.

    Returns:
        The recipes' folders.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: There is no such cluster, or its workers die again and again.
        ValueError: No faces, too few networks, or a folder of another scale, seed, engine or faces; as the
            studies.
        OSError: A file cannot be read or written.
    """
    check_recipes(recipes, setup)
    with connected(cluster):
        return _run(recipes, setup, out, fresh, cluster, progress)


def _run(
    recipes: Sequence[StudyRecipe], setup: Setup, out: Path, fresh: bool, cluster: Cluster | None, progress: Progress
) -> tuple[Path, ...]:
    models = _opened(recipes, setup)
    if cluster is not None and setup.engine.precision is None:
        usual = cluster.engine(Engine(), next(iter(models.values()))).precision
        setup = replace(setup, engine=replace(setup.engine, precision=usual))
    networks = {text: model_identity(model) for text, model in models.items()}
    names = dict.fromkeys((*RECIPES, *(recipe.name for recipe in recipes)))  # other folders are the user's
    earlier = [name for name in names if (out / name / RESULTS).is_file()]
    kind = FolderKind(mark=MARK, what="run of recipes", written=(PARTS, FACES, PAIRS, *earlier, KEPT, MARK))
    source = _faces(setup, out, fresh, progress)
    if setup.search is not None:
        setup = replace(setup, landmarks=out / FOUND[0], search=None)  # what was found is the parts' list
    pairs = None if setup.pairs is None else file_hash(setup.pairs)
    identity = RunIdentity.of(
        "study",
        seed=setup.seed,
        faces=UsedFaces(source=source, landmarks=setup.landmarks),
        out=out,
        rules={"scale": setup.scale, "pairs": pairs, "engine": _engine(setup.engine, next(iter(models.values())))},
        kind=kind,
    )
    with identity.hold(out, fresh=fresh):
        if isinstance(source, SyntheticFaces):
            setup = _drawn(source, setup, out, progress)
        used = {name: identity.config[name] for name in ("engine", "faces", "landmarks")}
        if cluster is not None:
            _run_parts(recipes, setup, out, networks, cluster, progress)
        return tuple(_one(recipe, setup, out, networks, used, progress) for recipe in recipes)


def check_recipes(recipes: Sequence[StudyRecipe], setup: Setup) -> None:
    """Refuse what could not be run, before anything is written.

    Raises:
        ValueError: No recipe, no faces where they are needed, too few networks, or two of one name.
    """
    if not recipes:
        raise ArgumentError("recipes: expected at least one, got none")
    if setup.data is None and setup.scale != "smoke":
        raise ArgumentError(f"--data: expected faces with --scale {setup.scale}, got none")
    twice = sorted({name for name in setup.names if setup.names.count(name) > 1})
    if twice:
        raise ArgumentError(f"--network: expected each one once, got {twice[0]!r} twice")
    for recipe in recipes:
        recipe.setups(setup)


def _opened(recipes: Sequence[StudyRecipe], setup: Setup) -> dict[str, FaceModel]:
    """The networks of all recipes, by their texts."""
    texts = dict.fromkeys(text for recipe in recipes for one in recipe.setups(setup) for text in one.networks)
    return {text: open_named_model(parse_network(text).text, device=setup.device) for text in texts}


def _engine(engine: Engine, model: FaceModel) -> dict[str, object]:
    """The engine as it was asked for, with the precision that the device has without a choice.

    What is measured ("auto", a batch of 0) stays open: the studies keep what they chose.
    """
    return describe_engine(replace(engine, precision=engine.precision or Engine().resolve(model).precision))


def _faces(setup: Setup, out: Path | None = None, fresh: bool = False, progress: Progress = silent) -> FaceSource:
    if setup.data is not None:
        return open_faces(
            setup.data,
            size=_SIZE,
            landmarks=setup.landmarks,
            search=setup.search,
            kept=None if out is None else out / FOUND[0],
            fresh=fresh,
            progress=progress,
        )
    return SyntheticFaces(identities=_PEOPLE, per_identity=_IMAGES, seed=setup.seed, size=_SIZE, first=_FIRST)


def _drawn(source: SyntheticFaces, setup: Setup, out: Path, progress: Progress) -> Setup:
    """The setup with synthetic faces and their pairs as files."""
    chosen = replace(setup, data=out / FACES, pairs=out / PAIRS)
    if (out / PAIRS).is_file():
        return chosen
    write_faces(source, source.names, out / FACES, progress=progress)
    write_pairs_csv(out / PAIRS, source.pairs(_PAIRS, seed=setup.seed))
    return chosen


def _one(
    recipe: StudyRecipe,
    setup: Setup,
    out: Path,
    networks: Mapping[str, Mapping[str, Any]],
    used: Mapping[str, Any],
    progress: Progress,
) -> Path:
    found = []
    for one in recipe.setups(setup):
        results: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        for part in recipe.parts(one):
            results[part.name], seconds[part.name] = _part(part, one, out, networks, progress)
        found.append({"networks": list(one.names), **_found(recipe, results), "seconds": seconds})
    described = {
        "recipe": recipe.name,
        "source": recipe.source,
        "title": recipe.title,
        "scale": setup.scale,
        "notes": list(recipe.notes),
        "printed": None if recipe.printed is None else recipe.printed.described(),
        "found": found,
        "seed": setup.seed,
        "networks": {
            name: networks[text]
            for one in recipe.setups(setup)
            for name, text in zip(one.names, one.networks, strict=True)
        },
        **used,
        "versions": versions(),
    }
    folder = out / recipe.name
    folder.mkdir(exist_ok=True)
    write_json(folder / RESULTS, described, strict=True)
    write_atomically(folder / TABLE, _csv(described).encode())
    return folder


def _found(recipe: StudyRecipe, results: Results) -> dict[str, Any]:
    claims = []
    for claim in recipe.claims:
        estimate = claim.check(results)
        verdict = "undecided" if estimate is None else estimate.verdict
        claims.append(
            {
                "statement": claim.statement,
                "verdict": verdict,
                "estimate": None if estimate is None else estimate.described(),
            }
        )
    return {
        "table": recipe.table(results).described(),
        "claims": claims,
        "figures": [plain(figure) for figure in (recipe.figures(results) if recipe.figures else ())],
        "pictures": [plain(each) for each in (recipe.pictures(results) if recipe.pictures else ())],
    }


def plain(value: object) -> Any:
    """A frozen dataclass of plain values as JSON gives it back."""
    return json.loads(json.dumps(asdict(value)))  # type: ignore[call-overload]


def _part(
    part: StudyPart, setup: Setup, out: Path, networks: Mapping[str, Mapping[str, Any]], progress: Progress
) -> tuple[Mapping[str, Any], float]:
    """What a part found, now or in an earlier call, and the seconds of the call that finished it."""
    folder = out / PARTS / setup.label / part.name
    file = folder.with_name(f"{part.name}.json")
    known = {name: networks[text] for name, text in zip(setup.names, setup.networks, strict=True)}
    wanted = {"part": repr(part), "networks": known}
    if file.is_file():
        try:
            saved = json.loads(file.read_bytes())
            found, seconds = saved["found"], float(saved["seconds"])
        except UNREADABLE as error:
            raise ArgumentError(f"{file}: expected the results of a part, got {error!r}; remove the file") from error
        other = difference({name: saved.get(name) for name in wanted}, wanted, where=file.name)
        if other:
            raise ArgumentError(f"{file}: expected this part, got another: {other}")
        return found, seconds
    begin = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    found = part.run(setup, folder, progress)
    seconds = round(time.perf_counter() - begin, 1)
    write_json(file, {**wanted, "seconds": seconds, "found": found}, strict=True, fsync=True)
    return json.loads(file.read_bytes())["found"], seconds


@dataclass(frozen=True, kw_only=True)
class _PartRunner:
    """What a worker is sent to run parts; fields as of ``_part``."""

    out: Path
    networks: Mapping[str, Mapping[str, Any]]

    def __call__(self, chain: Sequence[tuple[StudyPart, Setup]]) -> None:
        """Run parts one after the other, each in its folder; those that are finished are not run again."""
        check_shared(self.out, MARK)
        for part, setup in chain:
            _part(part, setup, self.out, self.networks, silent)


def _run_parts(
    recipes: Sequence[StudyRecipe],
    setup: Setup,
    out: Path,
    networks: Mapping[str, Mapping[str, Any]],
    cluster: Cluster,
    progress: Progress,
) -> None:
    """Run every part once, in a worker; parts that go on with one study come one after the other in one call."""
    chains: dict[tuple[str, str], dict[str, tuple[StudyPart, Setup]]] = {}
    for recipe in recipes:
        for one in recipe.setups(replace(setup, device=cluster.device)):
            for part in recipe.parts(one):
                chains.setdefault((one.label, part.base.name), {}).setdefault(part.name, (part, one))
    calls = [list(chain.values()) for chain in chains.values()]
    count, total = 0, sum(map(len, calls))
    progress("running parts", count, total)
    for place, _ in each(cluster, _PartRunner(out=out.absolute(), networks=networks), calls):
        count += len(calls[place])
        progress("running parts", count, total)


def _csv(described: Mapping[str, Any]) -> str:
    """Every number in a row of its own."""
    buffer = io.StringIO()
    out = csv.writer(buffer)
    out.writerow(("recipe", "networks", "row", "column", "value", "low", "high", "hits", "trials"))
    tables = [("paper", described["printed"]), *(("+".join(f["networks"]), f["table"]) for f in described["found"])]
    for who, table in tables:
        for row in table["rows"] if table else ():
            for column, cell in zip(table["columns"], row["cells"], strict=True):
                if cell is not None:
                    numbers = (cell.get(name) for name in ("value", "low", "high", "hits", "trials"))
                    out.writerow((described["recipe"], who, row["name"], column, *numbers))
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a recipe would take; parts that an earlier recipe of the list has are none of it.

    Attributes:
        recipe: Its name.
        parts: Names of the parts, with the networks.
        cost: Of the parts.
        seconds: On this machine, by what a gradient and an evaluation of each network took just now.
        mebibytes: Of the images.
    """

    recipe: str
    parts: tuple[str, ...]
    cost: Cost
    seconds: float
    mebibytes: float


def plan_recipes(recipes: Sequence[StudyRecipe], setup: Setup) -> tuple[Planned, ...]:
    """Count what recipes would take; nothing is written.

    Raises:
        ValueError: As ``check_recipes``; faces or a network cannot be opened.
    """
    check_recipes(recipes, setup)
    _faces(replace(setup, search=None))  # nothing is searched yet
    speeds = {text: _seconds(model, setup.engine) for text, model in _opened(recipes, setup).items()}
    done: set[tuple[str, str]] = set()
    planned = []
    for recipe in recipes:
        cost, seconds, names = Cost(), 0.0, []
        for one in recipe.setups(setup):
            for part in recipe.parts(one):
                if (one.label, part.name) in done:
                    continue
                done.add((one.label, part.name))
                names.append(f"{one.label}/{part.name}")
                own = part.cost(one)
                cost += own
                gradient, forward = (sum(speeds[t][k] for t in one.networks) / len(one.networks) for k in (0, 1))
                seconds += own.gradients * gradient + own.forwards * forward + own.seconds
        size = cost.images * 3 * _SIZE * _SIZE * _PNG / 2**20
        planned.append(Planned(recipe=recipe.name, parts=tuple(names), cost=cost, seconds=seconds, mebibytes=size))
    return tuple(planned)


def _seconds(model: FaceModel, engine: Engine) -> tuple[float, float]:
    """Of a gradient evaluation and of an evaluation, for one image of a batch: those of a few steps of an attack."""
    noise = torch.Generator().manual_seed(0)
    images = torch.rand((_BATCH, 3, *model.input_size), generator=noise).to(model.device)
    goal = Impersonate(images.flip(0), threshold=1.0)
    steps = trace(fim(steps=_STEPS + 1), goal, model, images, at=(1, _STEPS + 1), engine=engine)
    next(steps)  # prepared and warm
    begin = time.perf_counter()
    next(steps)
    gradient = (time.perf_counter() - begin) / (_STEPS * _BATCH)
    ready = prepare(model, precision="fp32")
    with torch.no_grad():
        begin = time.perf_counter()
        for _ in range(_STEPS):
            ready(images).sum().item()
    return gradient, (time.perf_counter() - begin) / (_STEPS * _BATCH)
