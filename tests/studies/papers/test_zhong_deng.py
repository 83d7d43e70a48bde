"""Recipes of Zhong and Deng 2020: the printed numbers, what the parts give, and what is made of it."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fastadv import load
from fastadv.core.errors import ArgumentError
from fastadv.data import Pair
from fastadv.studies.papers import zhong_deng_printed as printed
from fastadv.studies.papers.catalog import RECIPES
from fastadv.studies.papers.recipe import Setup
from fastadv.studies.papers.transfer_parts import Hits, TransferPart, bounded, independent
from fastadv.studies.papers.verifier_parts import MatrixPart
from fastadv.studies.papers.zhong_deng import RECIPES as PAPER
from fastadv.studies.transfer.areas import area_draws
from fastadv.training import save_weights


@pytest.mark.parametrize(
    ("table", "row", "column", "value"),
    [
        (printed.TABLE_1, "ftgsm", "WebFace → IMDB-Face", 1.85),
        (printed.TABLE_1, "itgsm", "VGGFace2 → WebFace", 31.92),
        (printed.TABLE_1, "ffm", "MS1M → VGGFace2", 10.54),
        (printed.TABLE_1, "fim", "VGGFace2 → MS1M", 32.24),
        (printed.TABLE_2, "dfanet-fim", "IMDB-Face → MS1M", 58.70),
        (printed.TABLE_2, "m-fim", "MS1M → WebFace", 43.43),
        (printed.TABLE_2, "dfanet-di-m-fim", "WebFace → MS1M", 64.00),
        (printed.TABLE_3, "fim", "Triplet Loss → CosFace", 57.82),
        (printed.TABLE_3, "dfanet-m-fim", "ArcFace → Triplet Loss", 73.18),
        (printed.TABLE_3, "di-m-fim", "CosFace → ArcFace", 93.21),
        (printed.TABLE_4, "dfanet-fim", "SENet-50 → Incep-ResNet", 36.62),
        (printed.TABLE_4, "dfanet-m-fim", "ResNet-50 → SENet-50", 99.17),
        (printed.TABLE_4, "dfanet-di-m-fim", "Incep-ResNet → MobileNet", 73.44),
        (printed.TABLE_5, "dfanet-di-m-fim, VGGFace2 → Face++", "FAR 1e-4", 80.50),
        (printed.TABLE_5, "di-m-fim, MS1M → Face++", "FAR 1e-5", 68.50),
        (printed.TABLE_6, "SphereFace", "TALFW", 62.47),
        (printed.TABLE_6, "Gaussian blur, 5x5, sigma 2", "TALFW", 77.95),
        (printed.TABLE_6, "adversarial training", "LFW", 99.62),
    ],
)
def test_the_printed_numbers_are_the_papers(table, row, column, value):
    assert table.rows[row][table.columns.index(column)] == pytest.approx(value / 100)


def test_the_mean_of_a_printed_row_is_that_of_its_numbers():
    for table in (printed.TABLE_1, printed.TABLE_2, printed.TABLE_3, printed.TABLE_4):
        assert len(table.columns) == 13
        for mean, *rates in table.rows.values():
            assert mean == pytest.approx(math.fsum(rates) / 12, abs=1e-6)
    assert printed.TABLE_2.rows["fim"] == printed.TABLE_1.rows["fim"]  # one experiment, printed twice
    assert printed.TABLE_5.rows["di-m-fim, mean"][2] == pytest.approx((0.805 + 0.8649 + 0.8359) / 3, abs=1e-6)


def test_each_table_and_figure_has_a_recipe():
    names = [f"zhong-deng-table-{k}" for k in range(1, 7)] + [f"zhong-deng-figure-{k}" for k in range(4, 9)]
    assert sorted(recipe.name for recipe in PAPER) == sorted(names)
    assert set(names) <= set(RECIPES)


@pytest.fixture(scope="module")
def runs(smoke):
    out = smoke("zhong")
    files = (out / recipe.name / "results.json" for recipe in PAPER)
    return out, {file.parent.name: json.loads(file.read_bytes()) for file in files}


def cells(found, name, row):
    (study,) = found[name]["found"]
    table = study["table"]
    numbers = next(each["cells"] for each in table["rows"] if each["name"] == row)
    return dict(zip(table["columns"], numbers, strict=True))


@pytest.mark.slow
def test_a_hit_rate_is_that_of_the_study(runs):
    out, found = runs
    file = out / "parts" / "synth-mobile+synth-vgg" / "transfer-features" / "study" / "transfer.json"
    study = json.loads(file.read_bytes())
    for method in ("fim", "m-fim", "di-m-fim", "dfanet-di-m-fim"):
        for cell in study["cells"]:
            if cell["method"] == method and not cell["white_box"]:
                own = cells(found, "zhong-deng-table-2", method)[f"{cell['surrogate']} → {cell['target']}"]
                place = 0 if method in ("fim", "m-fim") else -1  # after few steps, and after all
                assert own["value"] == pytest.approx(cell["hit_rate_by_steps"][place])
                assert own["trials"] == study["pairs"]
    by_steps = cells(found, "zhong-deng-figure-5", "di-m-fim")
    rates = [c["hit_rate_by_steps"] for c in study["cells"] if c["method"] == "di-m-fim" and not c["white_box"]]
    assert [each["value"] for each in by_steps.values()] == pytest.approx(np.mean(rates, axis=0).tolist())
    far = cells(found, "zhong-deng-figure-6", "fim")
    own = [c["distance_by_steps"][-1] for c in study["cells"] if c["method"] == "fim" and c["white_box"]]
    assert far["surrogate"]["value"] == pytest.approx(np.mean(own), abs=1e-4)


@pytest.mark.slow
def test_an_ensemble_is_shown_to_the_network_that_is_not_in_it(runs):
    _, found = runs
    (study,) = found["zhong-deng-table-5"]["found"]
    assert study["networks"] == ["synth-mobile", "synth-vgg", "synth-shuffle"]
    own = cells(found, "zhong-deng-table-5", "di-m-fim, synth-mobile+synth-vgg → synth-shuffle")
    assert own["FAR 1e-1"]["trials"] == 6
    assert own["FAR 1e-3"] is None  # 100 negative pairs do not show it
    assert cells(found, "zhong-deng-table-5", "di-m-fim, WebFace → Face++")["FAR 1e-1"] is None


@pytest.mark.slow
def test_the_accuracies_of_the_copy_are_those_of_the_studies(runs):
    out, found = runs
    folder = out / "parts" / "synth-mobile+synth-vgg" / "adversarial-copy"
    for place, name in enumerate(("synth-mobile (attacked)", "synth-vgg")):
        study = json.loads((folder / f"verify-{place}" / "defences.json").read_bytes())
        own = cells(found, "zhong-deng-table-6", name)
        assert own["LFW"]["value"] == pytest.approx(study["defences"][0]["clean"]["accuracy"])
        assert own["TALFW"]["value"] == pytest.approx(study["cells"][0]["accuracy_refitted"])
    blur = next(c for c in study["cells"] if c["defence"] == "gauss:5:2")
    own = cells(found, "zhong-deng-table-6", "Gaussian blur, 5x5, sigma 2")
    assert own["TALFW"]["value"] == pytest.approx(blur["accuracy_refitted"])
    assert cells(found, "zhong-deng-table-6", "Face++") == {"LFW": None, "TALFW": None}


@pytest.mark.slow
def test_the_areas_of_the_matrices_are_those_of_the_studies(runs):
    out, found = runs
    for name, part in (("7", "untargeted-all-with-all"), ("8", "untargeted-targets-with-queries")):
        folder = out / "parts" / "synth-mobile+synth-vgg" / part / "study"
        study = json.loads((folder / "untargeted.json").read_bytes())
        own = {(row["method"].partition(":")[0], row["network"]): row["auc"] for row in study["rows"]}
        for method in ("fim", "gd-uap", "s-fim", "dfanet-fim"):
            shown = cells(found, f"zhong-deng-figure-{name}", method)
            assert shown["AUC, synth-vgg"]["value"] == pytest.approx(own[method, "synth-vgg"], abs=1e-6)
        assert len(found[f"zhong-deng-figure-{name}"]["found"][0]["figures"]) == 2


@pytest.mark.slow
def test_one_architecture_comes_twice_by_aliases_and_one_without_a_head_gets_one(runs, tmp_path):
    out, _ = runs
    bare = load("synth-vgg")
    bare.head = None
    save_weights(bare, tmp_path / "bare.safetensors")
    networks = ("one=synth-vgg", f"two=synth-vgg:{tmp_path / 'bare.safetensors'}")
    setup = Setup(scale="smoke", data=out / "faces", pairs=out / "pairs.csv", networks=networks)
    part = TransferPart(name="p", methods=("ftgsm", "fim"), steps=1, pairs=2, images=3, fars=(0.1,), heads=8)
    found = part.run(setup, tmp_path / "part", lambda *stage: None)
    assert found["networks"] == ["one", "two"]
    assert [(c["surrogate"], c["method"]) for c in found["cells"]] == [
        (name, method) for name in ("one", "two") for method in ("ftgsm", "fim")
    ]
    assert [file.name for file in (tmp_path / "part" / "heads").iterdir()] == ["two.safetensors"]
    assert load("synth-vgg", weights=tmp_path / "part" / "heads" / "two.safetensors").head.out_features == 24
    hits = Hits(found)
    assert hits.of(("one", "two"), "fim").tolist() == hits.of(("two", "one"), "fim").tolist()  # the same network


def part_of(cells_, independent=4):
    return {
        "networks": ["a", "b"],
        "pairs": 4,
        "independent": independent,
        "fars": [0.1, 0.01],
        "cells": [
            {
                "surrogate": surrogate,
                "method": method,
                "steps": [2, 5],
                "targets": {
                    name: {
                        "hits": hits if name != surrogate else ["1111", "1111"],
                        "distance": [1.0, 0.5],
                        "last": [0.5, 0.25, 0.0, 1.0] if name == surrogate else [1.0, 1.0, 1.0, 1.0],
                        "by_far": {"0.1": hits[-1], "0.01": "0001"},
                    }
                    for name in ("a", "b")
                },
            }
            for (surrogate, method), hits in cells_.items()
        ],
    }


def test_hits_are_read_by_method_steps_and_false_accept_rate():
    known = {("a", "x"): ["0000", "1100"], ("b", "x"): ["1000", "1010"], ("a", "y"): ["1111", "1111"]}
    hits = Hits(part_of({**known, ("b", "y"): ["1111", "0011"]}))
    assert hits.moves == (("a", "b"), ("b", "a"))
    assert hits.first("x") == 2
    assert hits.rate(("a", "b"), "x").hits == 2
    assert hits.rate(("a", "b"), "x", far=0.01).hits == 1
    assert hits.by_pair("x").tolist() == [1.0, 0.5, 0.5, 0.0]
    assert hits.by_pair("x", 2).tolist() == [0.5, 0.0, 0.0, 0.0]
    assert hits.by_pair("x", surrogate="a").tolist() == [1.0, 1.0, 0.0, 0.0]
    assert hits.mean("x").value == 0.5
    assert hits.above("y", "x").value == pytest.approx(0.25)
    assert hits.above("y", "x", (None, 2)).value == pytest.approx(0.625)
    assert hits.distances("x", white_box=True).tolist() == [0.5, 0.25, 0.0, 1.0]
    assert hits.distances("x", white_box=False).tolist() == [1.0] * 4


def test_a_few_equal_differences_decide_nothing_and_many_do():
    few, many = bounded(np.ones(4)), bounded(np.ones(40))
    assert (few.value, few.high, few.verdict) == (1.0, 1.0, "undecided")
    assert many.verdict == "pass"
    assert bounded(np.zeros(40)).verdict == "undecided"
    share = bounded(np.ones(8), low=0.0)
    assert share.low > 0.6
    assert share.high == 1.0


def test_pairs_that_share_images_count_as_the_images_do():
    grid = [(f"s{i}", f"t{j}") for i in range(10) for j in range(7)]
    assert independent(grid) == pytest.approx(7)
    assert independent([(f"s{i}", f"t{i}") for i in range(5)]) == 5
    assert independent([("s", f"t{j}") for j in range(5)]) == 1
    assert independent([("a", "x"), ("a", "y"), ("b", "z")]) == pytest.approx(9 / 5)


def test_copies_of_pairs_make_no_interval_narrower_and_no_verdict_surer():
    def hits(times):
        texts = {("a", "x"): ["0000", "0110"], ("b", "x"): ["1000", "1010"], ("a", "y"): ["1111", "0111"]}
        texts[("b", "y")] = ["1111", "1011"]
        found = part_of({key: [text * times for text in each] for key, each in texts.items()})
        for cell in found["cells"]:
            for target in cell["targets"].values():
                target.update(last=target["last"] * times)
        return Hits(found)

    once, often = hits(1), hits(1000)
    assert often.rate(("a", "b"), "x").trials == 4000
    for ask in (
        lambda h: h.rate(("a", "b"), "x"),
        lambda h: h.mean("x"),
        lambda h: h.above("y", "x"),
        lambda h: h.unbounded(h.distances("x", white_box=True)),
    ):
        one, many = ask(once), ask(often)
        assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high))
        assert many.verdict == one.verdict


def all_with_all(people):
    names = [(p, f"{p}/{k}") for p in people for k in range(2)]
    return [Pair(first=a, second=b, same=p == q) for k, (p, a) in enumerate(names) for q, b in names[k + 1 :]]


def test_the_area_of_all_pairs_is_sklearns_and_ties_count_half():
    pairs = all_with_all("abcdef")
    rng = np.random.default_rng(0)
    scores = np.stack([rng.normal(size=len(pairs)), rng.integers(0, 3, len(pairs)).astype(float), np.ones(len(pairs))])
    found = area_draws(scores, pairs, draws=5, seed=1)
    assert found.shape == (3, 6)
    same = [p.same for p in pairs]
    assert found[:, 0] == pytest.approx([roc_auc_score(same, row) for row in scores])
    assert found[2] == pytest.approx(0.5)
    assert np.array_equal(area_draws(scores, pairs, draws=5, seed=1), found)
    assert not np.array_equal(area_draws(scores, pairs, draws=5, seed=2)[:, 1:], found[:, 1:])


def test_the_draws_of_two_scores_are_the_same_people():
    pairs = all_with_all("abcd")
    row = np.random.default_rng(1).normal(size=len(pairs))
    found = area_draws(np.stack([row, 2 * row + 1]), pairs, draws=20)
    assert np.array_equal(found[0], found[1], equal_nan=True)


def test_areas_need_a_score_for_each_pair():
    pairs = all_with_all("ab")
    with pytest.raises(ArgumentError, match=r"scores: expected \(K, 6\), one for each pair, got \(1, 5\)"):
        area_draws(np.zeros((1, 5)), pairs)


@pytest.mark.parametrize(("queries", "count", "same"), [(False, 66, 18), (True, 36, 12)])
def test_a_matrix_has_each_pair_once(tmp_path, queries, count, same):
    for person in "abcdef":
        (tmp_path / person).mkdir()
        for k in range(5):
            (tmp_path / person / f"{k}.png").write_bytes(b"")
    part = MatrixPart(name="m", people=3, each=4, queries=queries, methods=("fim",), steps=1)
    pairs = part.pairs(Setup(scale="smoke", data=tmp_path, networks=()))
    assert len(pairs) == count
    assert len({frozenset((p.first, p.second)) for p in pairs}) == count
    assert sum(p.same for p in pairs) == same
    assert len({p.first.split("/")[0] for p in pairs}) == 3
