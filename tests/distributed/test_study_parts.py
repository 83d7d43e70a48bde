"""`fastadv study run` by workers: whole parts, in the folder of the run."""

import json
from dataclasses import dataclass

import pytest

pytest.importorskip("ray", reason="ray is not installed: the extra `ray`")

from fastadv.data import SyntheticFaces, write_pairs_csv
from fastadv.data.run_files import RunFolderError
from fastadv.distributed import Cluster
from fastadv.engine import Engine
from fastadv.studies.papers import run as running
from fastadv.studies.papers.recipe import Cost, PaperTable, Setup, StudyPart, StudyRecipe
from fastadv.studies.papers.run import run_recipes
from fastadv.studies.papers.transfer_parts import TransferPart

NETWORKS = ("synth-mobile", "synth-vgg")


@dataclass(frozen=True, kw_only=True)
class Noted(StudyPart):
    """A part that notes that it was run, perhaps after another one."""

    earlier: StudyPart | None = None

    def run(self, setup, folder, progress):
        seen = self.earlier is None or folder.with_name(f"{self.earlier.name}.json").is_file()
        with (setup.data.parent / "log").open("a") as log:
            log.write(f"{setup.label}/{self.name}\n")
        return {"value": 0.5, "seen": seen}

    def cost(self, setup):
        return Cost()


FIRST = Noted(name="first")
PARTS = (FIRST, Noted(name="second", earlier=FIRST), Noted(name="third"))


def recipe(name, *parts, **more):
    def table(found):
        return PaperTable(columns=("a",), rows={part.name: (found[part.name]["value"],) for part in parts})

    given = {"source": "Somebody 2020", "title": "Numbers", "parts": lambda setup: parts, "table": table, **more}
    return StudyRecipe(name=name, **given)


RECIPES = (recipe("paper-1", *PARTS[:2]), recipe("paper-2", PARTS[0], PARTS[2]), recipe("x", PARTS[2], together=True))
ALL = {f"{label}/{part.name}" for label in NETWORKS for part in PARTS} | {"+".join(NETWORKS) + "/third"}


@pytest.fixture
def setup(faces, tmp_path):
    (tmp_path / "faces").symlink_to(faces)
    return Setup(scale="smoke", data=tmp_path / "faces", networks=NETWORKS)


def results(out):
    """What the folder holds, without times."""
    found = {}
    for file in sorted(out.rglob("*.json")):
        value = json.loads(file.read_text())
        value.pop("seconds", None)
        for study in value.get("found", ()) if isinstance(value.get("found"), list) else ():
            study.pop("seconds")
        found[str(file.relative_to(out))] = value
    return found | {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*.csv"))}


def test_every_part_is_run_once_and_the_results_are_those_of_one_process(setup, here, killed, tmp_path):
    run_recipes(RECIPES, setup, tmp_path / "single")
    (tmp_path / "log").unlink()
    out, said = tmp_path / "run", []
    with pytest.raises(killed):
        run_recipes(RECIPES, setup, out, cluster=here(workers=2, until=2))
    begun = (tmp_path / "log").read_text().split()
    assert 2 <= len(begun) < len(ALL)
    run_recipes(RECIPES, setup, out, cluster=here(workers=2), progress=lambda *told: said.append(told))
    log = (tmp_path / "log").read_text().split()
    assert (log[: len(begun)], len(log), set(log)) == (begun, len(ALL), ALL)
    for label in NETWORKS:
        assert json.loads((out / "parts" / label / "second.json").read_text())["found"]["seen"]
    assert results(out) == results(tmp_path / "single")
    assert (said[0], said[-1]) == (("running parts", 0, len(ALL)), ("running parts", len(ALL), len(ALL)))
    run_recipes(RECIPES, setup, out)  # nothing is left for one process either
    assert (tmp_path / "log").read_text().split() == log


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    runner = running._PartRunner(out=tmp_path / "elsewhere", networks={})
    with pytest.raises(RunFolderError, match=r"out: expected a folder that all nodes share, got .*/elsewhere, in "):
        runner([])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_gives_the_results_of_one_process(ray, faces, content, tmp_path):
    pairs = tmp_path / "pairs.csv"
    write_pairs_csv(pairs, SyntheticFaces(identities=6, per_identity=3, seed=5).pairs(20, folds=2, seed=1))
    wanted = {"methods": ("fim",), "pairs": 3, "images": 3, "fars": (0.2,)}
    parts = tuple(TransferPart(name=f"{steps} steps", steps=steps, **wanted) for steps in (2, 3))

    def table(found):
        return PaperTable(columns=("pairs",), rows={part.name: (found[part.name]["pairs"],) for part in parts})

    setup = Setup(scale="smoke", data=faces, networks=NETWORKS, pairs=pairs, engine=Engine(batch=4))
    recipes = [recipe("paper-1", *parts, together=True, table=table)]
    run_recipes(recipes, setup, tmp_path / "single")
    run_recipes(recipes, setup, tmp_path / "run", cluster=Cluster(workers=2))
    assert results(tmp_path / "run") == results(tmp_path / "single")
    single, run = (content(tmp_path / name / "parts") for name in ("single", "run"))
    made = [name for name in single if name.endswith((".png", ".parquet"))]
    assert len(made) == 12 + 2
    assert {name: run[name] for name in made} == {name: single[name] for name in made}
