"""Recipes in one folder: shared parts run once, a killed run goes on, another setup is refused, nothing is lost."""

import csv
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fastadv import load
from fastadv.core.errors import ArgumentError
from fastadv.core.estimates import share_of
from fastadv.data.images import write_png
from fastadv.engine import Engine
from fastadv.models.identity import model_identity
from fastadv.report.pages.study import read_results, render, table_rows
from fastadv.studies.papers import run as running
from fastadv.studies.papers.catalog import RECIPES, find_recipes
from fastadv.studies.papers.compare import compare_runs
from fastadv.studies.papers.recipe import (
    Claim,
    Cost,
    Figure,
    PaperTable,
    Pictures,
    Setup,
    StudyPart,
    StudyRecipe,
    Trace,
)
from fastadv.studies.papers.run import plan_recipes, run_recipes

MODEL = "synth-mobile"


@dataclass(frozen=True, kw_only=True)
class Counted(StudyPart):
    """A part that says how many hits of ten, and writes down that it was run."""

    name: str = "counted"
    hits: int = 9

    def run(self, setup, folder, progress):
        folder.mkdir(exist_ok=True)
        with (folder / "log").open("a") as log:
            log.write(f"{setup.label}\n")
        if (setup.data.parent / "stop").exists():
            raise KeyboardInterrupt
        write_png(folder / "face.png", np.full((8, 8, 3), 90, np.uint8))
        return {"hits": self.hits, "picture": str((folder / "face.png").relative_to(folder.parents[2]))}

    def cost(self, setup):
        return Cost(gradients=setup.at(10, 100, 1000), forwards=7, images=4, seconds=60.0)


def recipe(name="paper-table-1", *, hits=9, **more):
    def table(found):
        return PaperTable(
            columns=("hits", "none"), rows={"a": (share_of(found["counted"]["hits"], 10), None)}, percent=True
        )

    return StudyRecipe(
        name=name,
        source="Somebody 2020, table 1",
        title="Hits",
        parts=lambda setup: (Counted(hits=hits),),
        table=table,
        **{
            "printed": PaperTable.of_percent(("hits", "more"), {"a": (92.8, 1.0), "b": (50.0, None)}),
            "claims": (
                Claim(statement="most hit", check=lambda found: share_of(found["counted"]["hits"], 10) - 0.5),
                Claim(statement="not measured", check=lambda found: None),
            ),
            **more,
        },
    )


@pytest.fixture
def faces(tmp_path):
    for k in range(3):
        place = tmp_path / "faces" / f"p{k}"
        place.mkdir(parents=True)
        write_png(place / "0.png", np.full((112, 112, 3), 50 + k, np.uint8))
    return tmp_path / "faces"


@pytest.fixture
def setup(faces):
    return Setup(scale="smoke", data=faces, networks=(MODEL,))


def log(out, label=MODEL):
    return (out / "parts" / label / "counted" / "log").read_text().splitlines()


def test_the_results_hold_both_tables_verdicts_seeds_and_hashes(setup, tmp_path):
    out = tmp_path / "out"
    (folder,) = run_recipes([recipe()], setup, out)
    found = read_results(folder)
    assert [cell["value"] for cell in found["printed"]["rows"][0]["cells"]] == [0.928, 0.01]
    (study,) = found["found"]
    cell = study["table"]["rows"][0]["cells"][0]
    assert (cell["value"], cell["hits"], cell["trials"]) == (0.9, 9, 10)
    assert [(c["statement"], c["verdict"]) for c in study["claims"]] == [
        ("most hit", "pass"),
        ("not measured", "undecided"),
    ]
    assert (found["scale"], found["seed"], list(found["networks"])) == ("smoke", 0, [MODEL])
    assert found["networks"] == {MODEL: model_identity(load(MODEL))}
    assert len(found["faces"]) == 64
    assert found["engine"] == {"batch": None, "precision": "fp32", "channels_last": True}
    assert found["versions"]["fastadv"]
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert {(r["networks"], r["row"], r["column"]): r["value"] for r in rows} == {
        ("paper", "a", "hits"): "0.928",
        ("paper", "a", "more"): "0.01",
        ("paper", "b", "hits"): "0.5",
        (MODEL, "a", "hits"): "0.9",
    }


def test_the_table_has_the_papers_rows_and_columns_and_ours_beside_them(setup, tmp_path):
    (folder,) = run_recipes([recipe()], setup, tmp_path / "out")
    assert list(table_rows(read_results(folder))) == [
        ("a", "paper", "92.8", "1.0", "–"),
        ("a", "here", "90.0 (59.6 to 98.2; 9 of 10)", "–", "–"),
        ("b", "paper", "50.0", "–", "–"),
    ]


def test_a_part_of_two_recipes_is_run_once_and_a_finished_one_not_again(setup, tmp_path):
    out = tmp_path / "out"
    run_recipes([recipe(), recipe("paper-table-2")], setup, out)
    assert log(out) == [MODEL]
    before = (out / "paper-table-1" / "results.json").read_bytes()
    run_recipes([recipe(), recipe("paper-table-2")], setup, out)
    assert log(out) == [MODEL]
    assert (out / "paper-table-1" / "results.json").read_bytes() == before


def test_a_killed_run_goes_on_with_the_part_that_was_not_finished(setup, tmp_path):
    out, stop = tmp_path / "out", tmp_path / "stop"
    stop.touch()
    with pytest.raises(KeyboardInterrupt):
        run_recipes([recipe()], setup, out)
    assert not (out / "paper-table-1").exists()
    stop.unlink()
    (folder,) = run_recipes([recipe()], setup, out)
    assert log(out) == [MODEL] * 2
    assert read_results(folder)["found"][0]["claims"][0]["verdict"] == "pass"


def test_each_network_has_a_study_of_its_own_or_all_have_one(setup, tmp_path):
    both = replace(setup, networks=(MODEL, "synth-vgg"))
    one, together = run_recipes([recipe(), recipe("paper-table-2", together=True)], both, tmp_path / "out")
    assert [study["networks"] for study in read_results(one)["found"]] == [[MODEL], ["synth-vgg"]]
    assert [study["networks"] for study in read_results(together)["found"]] == [[MODEL, "synth-vgg"]]
    assert log(tmp_path / "out", f"{MODEL}+synth-vgg") == [f"{MODEL}+synth-vgg"]
    assert list(read_results(one)["networks"]) == [MODEL, "synth-vgg"]


def test_the_page_shows_tables_figures_and_pictures(setup, tmp_path):
    figure = Figure(
        title="A curve",
        traces=(Trace(label="one", x=(0.0, 1.0), y=(0.0, 1.0)),),
        x_name="steps",
        y_name="share",
        level=("half", 0.5),
    )
    made = recipe(
        figures=lambda found: (figure,),
        pictures=lambda found: (Pictures(title="Two faces", files=(("a face", found["counted"]["picture"]),)),),
        notes=("Measured on ten.",),
    )
    (folder,) = run_recipes([made], setup, tmp_path / "out")
    page = render(folder).read_text()
    for said in ("A curve", "Two faces", "a face", "Measured on ten.", "most hit", "92.8", "59.6 to 98.2", "undecided"):
        assert said in page
    assert 'src="http' not in page  # nothing is loaded


def test_a_dry_run_counts_shared_parts_once_and_writes_nothing(setup, tmp_path):
    first, second = plan_recipes([recipe(), recipe("paper-table-2")], setup)
    assert (first.cost.gradients, first.cost.forwards, first.cost.images) == (10, 7, 4)
    assert first.parts == (f"{MODEL}/counted",)
    assert 60 < first.seconds < 70
    assert first.mebibytes == pytest.approx(4 * 3 * 112 * 112 * 0.75 / 2**20)
    assert (second.parts, second.cost, second.seconds) == ((), Cost(), 0.0)
    assert plan_recipes([recipe()], replace(setup, scale="paper"))[0].cost.gradients == 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces"]


def test_other_faces_another_scale_seed_or_part_are_refused_by_name(setup, tmp_path):
    out = tmp_path / "out"
    run_recipes([recipe()], setup, out)
    for other, said in (
        (replace(setup, scale="small"), "scale: expected smoke"),
        (replace(setup, seed=1), "seed: expected 0"),
        (replace(setup, engine=Engine(precision="bf16")), r"engine\.precision: expected fp32 .*got bf16"),
        (replace(setup, engine=Engine(batch=4)), r"engine\.batch: expected none .*got 4"),
    ):
        with pytest.raises(ValueError, match=said):
            run_recipes([recipe()], other, out)
    with pytest.raises(ValueError, match=r"part: expected Counted.*got Counted.*use --fresh or another --out"):
        run_recipes([recipe(hits=3)], setup, out)
    (folder,) = run_recipes([recipe(hits=3)], setup, out, fresh=True)
    assert read_results(folder)["found"][0]["claims"][0]["verdict"] == "undecided"
    write_png(setup.data / "p0" / "1.png", np.zeros((112, 112, 3), np.uint8))
    with pytest.raises(ValueError, match=r"faces: expected .*got 4 images"):
        run_recipes([recipe(hits=3)], setup, out)


@pytest.mark.parametrize("field", ["mean", "std", "channels", "input_size", "structure"])
def test_a_part_of_a_network_that_computes_otherwise_is_refused_by_name(setup, tmp_path, monkeypatch, field):
    out = tmp_path / "out"
    run_recipes([recipe()], setup, out)
    other = {**model_identity(load(MODEL)), field: "another"}
    monkeypatch.setattr(running, "model_identity", lambda model: other)
    with pytest.raises(ArgumentError, match=rf"networks\.{MODEL}\.{field}: expected .*got another"):
        run_recipes([recipe()], setup, out)


def test_fresh_removes_recipes_and_leaves_what_the_user_put_beside_them(setup, tmp_path):
    out = tmp_path / "out"
    (folder,) = run_recipes([recipe("massoli-table-1")], setup, out)
    shutil.copytree(folder, out / "before")
    run_recipes([recipe()], setup, out, fresh=True)
    assert (out / "before" / "results.json").is_file()
    assert not folder.exists()
    assert log(out) == [MODEL]


def test_a_damaged_part_is_named(setup, tmp_path):
    out = tmp_path / "out"
    run_recipes([recipe()], setup, out)
    (out / "parts" / MODEL / "counted.json").write_text("{")
    with pytest.raises(ArgumentError, match=r"counted\.json: expected the results of a part.*remove the file"):
        run_recipes([recipe()], setup, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None, "scale": "small"}, "--data: expected faces with --scale small, got none"),
        ({"networks": (), "scale": "small"}, "--network: expected 1 or more for paper-table-1, got 0"),
        ({"networks": (MODEL, MODEL)}, f"--network: expected each one once, got '{MODEL}' twice"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(setup, tmp_path, change, message):
    with pytest.raises(ArgumentError, match=message):
        run_recipes([recipe()], replace(setup, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_recipe_is_refused(setup, tmp_path):
    with pytest.raises(ArgumentError, match="recipes: expected at least one"):
        run_recipes([], setup, tmp_path / "out")


def test_at_smoke_shipped_networks_are_taken_where_none_is_given(setup):
    bare = replace(setup, networks=())
    assert [one.networks for one in recipe().setups(bare)] == [(MODEL,)]
    (one,) = recipe(together=True, networks=3).setups(bare)
    assert len(one.networks) == 3


def test_a_table_with_a_short_row_is_refused():
    with pytest.raises(ArgumentError, match="rows: expected 2 cells in 'a', got 1"):
        PaperTable(columns=("x", "y"), rows={"a": (1.0,)})


def test_two_runs_are_compared_cell_by_cell(setup, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run_recipes([recipe()], setup, first)
    run_recipes([recipe(hits=1), recipe("paper-table-2", hits=1)], replace(setup, seed=1), second)
    (found,) = compare_runs(first, second)
    (cell,) = found["cells"]
    expected = share_of(1, 10) - share_of(9, 10)
    assert (cell["row"], cell["column"], cell["networks"]) == ("a", "hits", MODEL)
    assert (cell["difference"]["value"], cell["difference"]["high"]) == (expected.value, expected.high)
    assert cell["differs"]
    assert [(c["first"], c["second"]) for c in found["claims"]] == [("pass", "fail"), ("undecided", "undecided")]
    (same,) = compare_runs(first / "paper-table-1", first)
    assert not same["cells"][0]["differs"]


def test_what_cannot_be_compared_is_refused(setup, tmp_path):
    run_recipes([recipe()], setup, tmp_path / "a")
    run_recipes([recipe("paper-table-2")], setup, tmp_path / "b")
    with pytest.raises(ArgumentError, match="in common, got paper-table-1 and paper-table-2"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ArgumentError, match=r"got one without results\.json"):
        compare_runs(tmp_path / "a", tmp_path / "faces")
    (tmp_path / "b" / "paper-table-2" / "results.json").write_text("[]")
    with pytest.raises(ArgumentError, match="expected the results of a recipe"):
        compare_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found.pop("recipe"),
        lambda found: found.pop("title"),
        lambda found: found.pop("found"),
        lambda found: found["found"].clear(),
        lambda found: found["found"][0].pop("table"),
        lambda found: found["found"][0].pop("claims"),
        lambda found: found["found"][0]["table"]["rows"][0]["cells"].pop(),
        lambda found: found["found"][0]["table"]["rows"][0]["cells"][0].update(value="high"),
    ],
)
def test_damaged_results_are_refused_by_the_files_name(setup, tmp_path, damage):
    (folder,) = run_recipes([recipe()], setup, tmp_path / "out")
    found = json.loads((folder / "results.json").read_bytes())
    damage(found)
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(ArgumentError, match=r"results\.json: expected the results of a recipe, got"):
        compare_runs(folder, folder)


def test_a_recipe_that_is_found_twice_is_refused(setup, tmp_path):
    out = tmp_path / "out"
    (folder,) = run_recipes([recipe()], setup, out)
    shutil.copytree(folder, out / "before")
    with pytest.raises(ArgumentError, match="out: expected each recipe once, got paper-table-1 twice"):
        compare_runs(folder, out)


def test_recipes_are_found_by_name_paper_and_all():
    assert find_recipes(["all"]) == tuple(RECIPES.values())
    assert {r.paper for r in find_recipes(["massoli"])} == {"massoli"}
    assert [r.name for r in find_recipes(["massoli-table-3", "massoli-table-3"])] == ["massoli-table-3"]
    with pytest.raises(ArgumentError, match="got 'massoli-table-33'; did you mean"):
        find_recipes(["massoli-table-33"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_where_it_is_from_and_has_parts_with_a_cost_at_every_scale(name):
    one = RECIPES[name]
    assert one.name == name
    assert one.source
    assert one.title
    networks = ("synth-mobile", "synth-vgg", "synth-shuffle", "synth-resnet")[: one.networks]
    costs = []
    for scale in ("smoke", "small", "paper"):
        setup = Setup(scale=scale, data=Path("lfw"), networks=networks)
        parts = one.parts(setup)
        assert parts
        assert len({part.name for part in parts}) == len(parts)
        assert parts == one.parts(setup)
        costs.append(sum((part.cost(setup) for part in parts), Cost()))
    work = [cost.gradients + cost.forwards + cost.seconds for cost in costs]
    assert work == sorted(work)


def test_equal_names_are_equal_parts():
    for scale in ("smoke", "small", "paper"):
        known = {}
        for one in RECIPES.values():
            networks = ("synth-mobile", "synth-vgg", "synth-shuffle", "synth-resnet")[: one.networks]
            setup = Setup(scale=scale, data=Path("lfw"), networks=networks)
            for part in one.parts(setup):
                assert known.setdefault((setup.label, part.name), part) == part, one.name


def test_results_are_plain_json(setup, tmp_path):
    (folder,) = run_recipes([recipe()], setup, tmp_path / "out")
    text = (folder / "results.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))
