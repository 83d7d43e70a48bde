"""Recipes of Carrara et al. 2017: the printed numbers, the kNN study, and what is made of it."""

import json

import numpy as np
import pytest
import torch

from fastadv import load
from fastadv.attacks.spec import parse_attack
from fastadv.core.errors import ArgumentError
from fastadv.data import SyntheticFaces, read_image
from fastadv.data.run_files import IMAGES
from fastadv.engine import Engine
from fastadv.studies.detection.knn import KnnScores
from fastadv.studies.detection.knn_study import knn_folder
from fastadv.studies.detection.study import StudyConfig
from fastadv.studies.papers.carrara import RECIPES as PAPER
from fastadv.studies.papers.catalog import RECIPES
from fastadv.training import HeadConfig


@pytest.mark.parametrize(
    ("recipe", "row", "column", "value"),
    [
        ("table-2", "None, kNN", "L-BFGS", 0.707),
        ("table-2", "None, W-kNN", "Errors", 0.596),
        ("table-2", "L2Norm, DW-kNN", "L-BFGS", 0.817),
        ("table-2", "PCA + Whiten, kNN", "FGS", 0.834),
        ("table-2", "PCA + Whiten, W-kNN", "Errors", 0.650),
        ("table-2", "PCA + Whiten, DW-kNN", "Aggr.", 0.850),
        ("table-3", "hardest 1", "score", 0.13),
        ("table-3", "hardest 4", "score", 0.08),
        ("table-3", "easiest 4", "score", 0.0),
        ("figure-3", "threshold that keeps 98 %", "L-BFGS", 0.5),
        ("figure-3", "threshold that keeps 98 %", "FGS", 0.4),
    ],
)
def test_the_printed_numbers_are_the_papers(recipe, row, column, value):
    table = RECIPES[f"carrara-{recipe}"].printed
    assert table.rows[row][table.columns.index(column)] == pytest.approx(value)


def test_each_table_and_figure_has_a_recipe():
    names = ["table-2", "table-3", "figure-2", "figure-3", "figure-4"]
    assert [recipe.name for recipe in PAPER] == [f"carrara-{name}" for name in names]


def config(**more):
    settings = {"natural": 3, "attacked": 2, "controls": (), "outside": 0.0, "new_head": True}
    return StudyConfig(**{"attacks": (parse_attack("lbfgs:3"), parse_attack("fgsm@12/255")), **settings, **more})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knn") / "study"
    source = SyntheticFaces(identities=6, per_identity=10, seed=3, first=900_000)
    model = load("synth-mobile")
    how = {"path": folder, "engine": Engine(batch=8), "head": HeadConfig(epochs=40, lr=0.1)}
    return folder, source, model, how, knn_folder(config(), source, model, **how)


def test_the_study_is_of_the_last_layer_and_of_both_attacks(study):
    folder, _, model, _, found = study
    kinds = [(s.processing, s.weighting) for s in found.scores]
    assert kinds == [(p, w) for p in ("none", "l2", "pca") for w in ("uniform", "rank", "inverse_square")]
    assert {s.layer for s in found.scores} == {model.layers[-1]}
    assert set(found.best.attacked) == {cell.group for cell in found.cells if cell.made}
    assert found.best.aggregate == ("lbfgs targeted", "fgsm targeted")
    assert found.index == 6 * 5
    written = json.loads((folder / "knn.json").read_bytes())
    assert [row["accuracy"] for row in written["rows"]] == [dict(s.row().accuracy) for s in found.scores]


def test_an_image_counts_when_the_network_no_longer_takes_it_for_its_person(study):
    *_, found = study
    fgsm = next(cell for cell in found.cells if cell.family == "fgsm")
    assert any(not row.success for row in fgsm.rows)  # it has left its person, and not reached the target
    for cell in found.cells:
        assert cell.features is not None
        assert len(cell.rows) == len(cell.features) == cell.made
    assert all(each.actual != each.predicted for each in found.examples)


def test_an_example_has_the_nearest_indexed_image_of_the_predicted_person(study):
    folder, _, _, _, found = study
    scores = [each.score for each in found.examples]
    assert scores == sorted(scores, reverse=True)
    assert len(found.examples) == sum(cell.made for cell in found.cells)
    for each in found.examples:
        assert each.neighbour is None or each.neighbour.startswith(f"{each.predicted}/")
        assert each.image.is_file()
        assert folder in each.image.parents
        assert -1 <= each.likeness < 0.999


def test_a_second_call_finds_the_same_without_an_attack(study):
    folder, source, model, how, found = study
    images = {file: file.stat().st_mtime_ns for file in folder.rglob(f"{IMAGES}/**/*.png")}
    again = knn_folder(config(), source, model, **how)
    assert [each.score for each in again.examples] == [each.score for each in found.examples]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob(f"{IMAGES}/**/*.png")} == images


@pytest.mark.parametrize(
    ("attacks", "more", "expected"),
    [
        (("fim",), {}, "attack: expected one on logits, got fim"),
        (("fgsm",), {"layer": "nowhere"}, "layer: expected one of"),
    ],
)
def test_what_the_study_cannot_do_is_refused(study, tmp_path, attacks, more, expected):
    _, source, model, how, _ = study
    specs = tuple(parse_attack(text) for text in attacks)
    with pytest.raises(ArgumentError, match=expected):
        knn_folder(config(attacks=specs), source, model, **{**how, "path": tmp_path / "study"}, **more)


def test_the_figures_of_a_kind_of_score_are_those_of_its_numbers():
    scores = KnnScores(
        layer="a",
        processing="none",
        components=None,
        weighting="rank",
        k=3,
        natural=torch.tensor([0.9, 0.8, 0.7, 0.2]),
        errors=torch.tensor([0.75]),
        attacked={"lbfgs targeted": torch.tensor([0.1, 0.1, 0.1, 0.3]), "bim targeted": torch.tensor([0.95])},
    )
    assert scores.aggregate == ("lbfgs targeted", "bim targeted")  # no FGSM: all of them
    assert scores.accuracy("lbfgs targeted") == 0.75
    assert scores.accuracy("bim targeted") == 0.0
    row = scores.row()
    assert row.images == {"lbfgs targeted": 4, "bim targeted": 1, "aggregate": 5, "natural errors": 1}
    assert row.natural == 4
    assert row.refused["aggregate"] is None  # four images do not show 2 %


@pytest.mark.parametrize(("errors", "verdict"), [(4, "undecided"), (400, "pass")])
def test_few_natural_errors_decide_nothing(errors, verdict):
    shares = {"aggregate": [0.9] * 3, "natural errors": [0.7] * 3, "lbfgs targeted": [0.9] * 3}
    part = {
        "accuracies": {
            f"{p} {w}": shares for p in ("none", "l2", "pca") for w in ("uniform", "rank", "inverse_square")
        },
        "images": {"aggregate": 500, "natural errors": errors, "lbfgs targeted": 500},
    }
    claims = {claim.statement: claim.check({"nearest-neighbours": part}) for claim in PAPER[0].claims}
    found = claims["adversarial images are easier to refuse than natural errors"]
    assert found.value == pytest.approx(0.2)
    assert found.verdict == verdict
    assert claims["L2 normalisation is better than none"].verdict == "undecided"
    assert claims["L-BFGS is easier to detect than FGS"] is None  # no FGS


@pytest.fixture(scope="module")
def runs(smoke):
    out = smoke("carrara")
    files = (out / recipe.name / "results.json" for recipe in PAPER)
    return out, {file.parent.name: json.loads(file.read_bytes()) for file in files}


def table(found, name):
    (study,) = found[f"carrara-{name}"]["found"]
    rows = {row["name"]: row["cells"] for row in study["table"]["rows"]}
    return study, study["table"]["columns"], rows


@pytest.mark.slow
def test_table_2_has_the_accuracies_of_the_study_with_intervals(runs):
    out, found = runs
    written = json.loads((out / "parts/synth-mobile/nearest-neighbours/study/knn.json").read_bytes())
    _, columns, rows = table(found, "table-2")
    for row, cells in zip(written["rows"], rows.values(), strict=True):
        for column, cell in zip(("lbfgs targeted", "fgsm targeted", "aggregate", "natural errors"), cells, strict=True):
            if column in row["accuracy"]:
                assert cell["value"] == pytest.approx(row["accuracy"][column], abs=1e-6)
                assert cell["low"] <= cell["value"] <= cell["high"]
                assert cell["trials"] == row["images"][column]
            else:
                assert cell is None
    assert columns == ["L-BFGS", "FGS", "Aggr.", "Errors"]


@pytest.mark.slow
def test_the_pictures_are_files_of_the_run(runs):
    out, found = runs
    study, _, rows = table(found, "table-3")
    assert list(rows)[:1] == ["hardest 1"]
    for each in study["pictures"]:
        assert len(each["files"]) in (2, 3)
        for _, file in each["files"]:
            assert read_image(out / file).shape == (112, 112, 3)
    scores = [rows[f"hardest {k}"][0]["value"] for k in range(1, 5) if rows.get(f"hardest {k}", [None])[0]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_a_threshold_keeps_what_it_says(runs):
    _, found = runs
    study, _, rows = table(found, "figure-3")
    authentic = next(t for t in study["figures"][0]["traces"] if t["label"].startswith("Authentic"))
    assert authentic["y"][0] == 1.0  # threshold 0 refuses nothing
    assert np.all(np.diff(authentic["y"]) <= 0)
    for cells in rows.values():
        assert all(cell is None or 0 <= cell["value"] <= 1 for cell in cells)


@pytest.mark.slow
def test_the_densities_are_shares(runs):
    _, found = runs
    for trace in table(found, "figure-4")[0]["figures"][0]["traces"]:
        assert sum(trace["y"]) == pytest.approx(1.0)
