"""Recipes on defences: printed numbers, checks on results that are made by hand, and a table against its study."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import silent
from fastadv.core.statistics import mean_ratio, wilson
from fastadv.data import read_image, to_tensor, to_uint8
from fastadv.defences import MeanFilter, content_key
from fastadv.studies.papers import defending, mehr_schroeder_checks
from fastadv.studies.papers.catalog import RECIPES, find_recipes
from fastadv.studies.papers.defending import GOALS, attacked, paired, right_clean
from fastadv.studies.papers.mehr_schroeder_printed import DENOISER, MEAN, TABLE_1, TABLE_2, TABLE_3
from fastadv.studies.papers.recipe import Setup
from fastadv.studies.papers.run import plan_recipes, run_recipes

PAIRS = 40  # half of one person
SMOKE = Setup(scale="smoke", data=None, networks=())


def cell(hits, l2, *, met=None, generated=None, defended=None):
    """What a study says of ``PAIRS`` pairs, those of one person first."""
    flags = np.broadcast_to(np.asarray(hits, bool), PAIRS)
    before = np.zeros(PAIRS, bool) if met is None else np.asarray(met, bool)
    lengths = np.broadcast_to(np.asarray(l2, float), PAIRS)
    return {
        "hits": flags.tolist(),
        "met": before.tolist(),
        "generated": (flags & ~before if generated is None else np.asarray(generated, bool)).tolist(),
        "l2": lengths.tolist(),
        "defended": (lengths if defended is None else np.broadcast_to(np.asarray(defended, float), PAIRS)).tolist(),
    }


def both(anonymisation, impersonation):
    return np.repeat([anonymisation, impersonation], PAIRS // 2)


def part(cells, *, clean=None, **more):
    same = both(True, False).tolist()
    return {"same": same, "clean": clean or {"none": [False] * PAIRS}, "cells": cells, **more}


ATTACKS = ("FGSM", "DeepFool", "Uniform", "Gaussian")


def mehr_pairs(*, bare=None, zero=None, perfect=None):
    """Attacks succeed on all pairs with a norm of 1, noise of 30; behind the filter on none, and through it on all with
    a norm of 1.2 times as much; noise shrinks to a third behind the filter."""
    length = {"FGSM": 1.0, "DeepFool": 1.0, "Uniform": 30.0, "Gaussian": 30.0}
    none = {a: cell(both(True, a in ATTACKS[:2]), length[a]) for a in ATTACKS} | (bare or {})
    unaware = {a: cell(False, length[a], generated=none[a]["generated"], defended=length[a] / 3) for a in ATTACKS} | (
        zero or {}
    )
    aware = {a: cell(none[a]["hits"], 1.2 * length[a]) for a in ATTACKS} | (perfect or {})
    cells = {"zero": {"none": none, MEAN: unaware}, "perfect": {"none": none, MEAN: aware}}
    return {"mehr-pairs": part(cells)}


def test_the_printed_shares_of_mehr_and_schroeder_are_of_26_and_24_pairs():
    for table, columns in ((TABLE_1, range(6)), (TABLE_2, (0, 1, 4, 5))):
        for cells in table.rows.values():
            for column in columns:
                count = cells[column] * (26, 24)[column % 2]
                assert abs(count - round(count)) < 0.003
    assert TABLE_2.rows["Gaussian"] == (0.1153, 0.0, 11.34, 4.38, 1.0, 0.0417, 41.58, 52.52)
    assert TABLE_3.rows["FGSM"] == pytest.approx((0.9746, 0.7851, 0.9706, 0.7974, 0.9738, 0.7886))


def test_the_printed_accuracies_of_attack_as_defence_are_those_of_its_text():
    def numbers(name):
        cells = RECIPES[name].printed.rows.items()
        return {row: values[0] for row, values in cells if values[0] is not None}

    assert numbers("defence-table-1") == pytest.approx(
        {"no attack": 0.993, "FGSM, ε = 4": 0.075, "FGSM, ε = 8": 0.029, "PGD, ε = 4": 0.0, "C&W, ε = 4": 0.0}
    )
    assert numbers("defence-table-2") == pytest.approx({"PGD vs PGD": 0.714, "FGSM, then PGD vs PGD": 0.806})
    assert numbers("defence-table-3") == pytest.approx({"C&W vs C&W": 0.721})
    assert numbers("defence-table-4") == {}


def test_success_counts_the_pairs_that_were_right_before():
    met = np.arange(PAIRS) < 5
    found = part({"zero": {"none": {"FGSM": cell(np.arange(PAIRS) < 15, np.arange(PAIRS) / 10, met=met)}}})
    own = attacked(found, "FGSM", GOALS[0])
    assert (own.success().hits, own.success().trials) == (10, 15)
    assert own.success(below=1.0).hits == 5  # norms of 0.5 to 0.9
    assert own.length().value == pytest.approx(0.95)
    other = attacked(found, "FGSM", GOALS[1])
    assert other.success().value == 0.0
    assert other.length() is None
    assert attacked(found, "FGSM").success().trials == PAIRS - 5


def test_table_1_and_2_hold_shares_within_norms_and_mean_norms():
    found = mehr_pairs(bare={"DeepFool": cell(True, both(0.5, 2.0))})
    table = RECIPES["mehr-table-1"].table(found)
    assert [c.value for c in table.rows["DeepFool"]] == [1, 1, 1, 1, 1, 0, 0.5, 2.0]
    assert [None if c is None else c.value for c in table.rows["Uniform"]] == [1, 0, 0, 0, 0, 0, 30.0, None]
    assert (table.rows["FGSM"][0].hits, table.rows["FGSM"][0].trials) == (20, 20)
    values = [None if c is None else c.value for c in RECIPES["mehr-table-2"].table(found).rows["Gaussian"]]
    assert values == pytest.approx([0, 0, 10.0, None, 1, 0, 36.0, None])


@pytest.mark.parametrize(
    ("name", "found", "verdict"),
    [
        ("noise_is_longer", mehr_pairs(), "pass"),
        ("noise_is_longer", mehr_pairs(bare={"Gaussian": cell(both(True, False), 9.0)}), "fail"),
        ("noise_hardly_impersonates", mehr_pairs(), "pass"),
        ("noise_hardly_impersonates", mehr_pairs(bare={"Uniform": cell(True, 30.0)}), "undecided"),
        ("impersonation_costs_more", mehr_pairs(), "undecided"),
        ("filter_stops_most", mehr_pairs(), "pass"),
        ("filter_stops_most", mehr_pairs(zero={"FGSM": cell(True, 1.0)}), "fail"),
        ("knowing_restores", mehr_pairs(), "pass"),
        ("knowing_restores", mehr_pairs(perfect={"DeepFool": cell(False, 1.0)}), "fail"),
        ("filter_shortens_noise", mehr_pairs(), "pass"),
    ],
)
def test_findings_of_mehr_and_schroeder_follow_the_counts(name, found, verdict):
    assert getattr(mehr_schroeder_checks, name)(found).verdict == verdict


def test_an_attack_without_a_success_leaves_its_finding_open():
    found = mehr_pairs(bare={a: cell(False, 1.0) for a in ATTACKS})
    for name in ("noise_is_longer", "impersonation_costs_more", "filter_stops_most", "filter_shortens_noise"):
        assert getattr(mehr_schroeder_checks, name)(found) is None
    assert mehr_schroeder_checks.longer(ATTACKS[:2])(found) is None


def test_the_filter_makes_attacks_longer_by_the_mean_of_the_pairs_ratios():
    longer = mehr_schroeder_checks.longer(ATTACKS[:2])(mehr_pairs())
    assert (longer.value, longer.low) == pytest.approx((0.2, 0.2))
    table = RECIPES["mehr-figure-5"].table(mehr_pairs())
    assert [row[0].value for row in table.rows.values()] == pytest.approx([0.2, 0.2])


def black_box(values, counted=None):
    """A confidence of 0.9 on clean pairs; ``values`` by defence and attack."""
    cells = []
    for defence in ("none", MEAN, DENOISER):
        for attack in (None, *ATTACKS):
            value = 0.9 if attack is None else values.get((defence, attack), 0.5)
            counts = [True] * PAIRS if attack is None or counted is None else list(counted)
            spread = np.linspace(-0.01, 0.01, PAIRS)
            given = {"values": (value + spread).tolist(), "clean": [0.9] * PAIRS, "counted": counts}
            cells.append({"defence": defence, "attack": attack, **given})
    return {"mehr-black-box": part({}, black_box={"network": "other", "threshold": 0.3, "cells": cells})}


def test_table_3_is_of_the_pairs_whose_attack_succeeds():
    table = RECIPES["mehr-table-3"].table(black_box({("none", "FGSM"): 0.7}, counted=both(True, False)))
    shown = {row: [None if c is None else round(c.value, 3) for c in cells] for row, cells in table.rows.items()}
    assert shown["No Attack"] == [0.895, 0.905, 0.895, 0.905, 0.895, 0.905]
    assert shown["FGSM"] == [0.695, None, 0.495, None, 0.495, None]


def test_the_findings_of_table_3():
    lowered = black_box({(d, a): 0.8 for d in (MEAN, DENOISER) for a in ATTACKS[2:]})
    for name in ("lowers", "defences_give_back", "impersonation_stays"):
        assert getattr(mehr_schroeder_checks, name)(lowered).verdict == "pass", name
    other = black_box({(MEAN, a): 0.89 for a in ATTACKS[:2]} | {("none", "Uniform"): 0.95, (MEAN, "Uniform"): 0.9})
    for name in ("lowers", "defences_give_back", "impersonation_stays"):
        assert getattr(mehr_schroeder_checks, name)(other).verdict == "fail", name


def test_the_ratio_of_the_goals_stands_in_a_row_for_each_threshold():
    spread = np.tile(np.linspace(0.9, 1.1, PAIRS // 2), 2)
    cells = {a: cell(True, both(1.0, 2.0) * spread) for a in ATTACKS[:2]}
    goal = {"images": 20, "met_before_images": 0, "rest_successes": 20}
    swept = [
        {
            "attack": attack,
            "threshold": threshold,
            "impersonation": {**goal, "mean_l2": 10 * threshold},
            "evasion": {**goal, "mean_l2": 1.0},
            "ratio": None if threshold == 0.1 else {"ratio": 10 * threshold, "low": 2.5, "high": 3.5},
        }
        for attack in ATTACKS[:2]
        for threshold in (0.1, 0.3)
    ]
    found = {"mehr-thresholds": part({"zero": {"none": cells}}, sweep=swept)}
    table = RECIPES["mehr-thresholds"].table(found)
    assert list(table.rows) == ["cosine 0.10", "cosine 0.30", "the verifier's threshold"]
    assert table.rows["cosine 0.10"][:3] == (1.0, 1.0, None)
    assert (table.rows["cosine 0.30"][2].value, table.rows["cosine 0.30"][2].high) == (3.0, 3.5)
    expected = mean_ratio(2 * spread[:20], spread[:20])
    assert table.rows["the verifier's threshold"][2].low == pytest.approx(expected.low)
    assert mehr_schroeder_checks.impersonation_is_longer(found).verdict == "pass"
    (figure,) = RECIPES["mehr-thresholds"].figures(found)
    assert [(trace.x, trace.y) for trace in figure.traces] == [((0.3,), (3.0,))] * 2


FAMILIES = ("FGSM", "PGD", "C&W")


def defended(*, clean_wrong, hits):
    """The verifier without a defence right on clean pairs and wrong under attack; with one as given."""
    labels = [f"{family} on {side}" for family in FAMILIES for side in ("the gallery", "both")]
    clean = {"none": [False] * PAIRS, **{label: [clean_wrong] * PAIRS for label in labels}}
    cells = {"none": {f: cell(True, 1.0) for f in FAMILIES}}
    cells |= {label: {f: cell(np.arange(PAIRS) < hits, 1.0) for f in FAMILIES} for label in labels}
    return {"defence-pairs": part({"zero": cells}, clean=clean)}


def test_a_defence_that_inverts_decisions_meets_the_paper_and_has_its_clean_figure_beside():
    found = defended(clean_wrong=True, hits=0)
    recipe = RECIPES["defence-table-2"]
    rows = recipe.table(found).rows
    assert list(rows) == [
        "PGD vs PGD",
        "FGSM, then PGD vs PGD",
        "PGD, then PGD vs PGD",
        "C&W, then PGD vs PGD",
        "no attack vs PGD",
        "no attack, then PGD vs PGD",
    ]
    assert [cells[0].value for cells in rows.values()] == [1, 1, 1, 1, 0, 0]
    assert rows["PGD vs PGD"][1].trials == PAIRS // 2
    verdicts = [claim.check(found).verdict for claim in recipe.claims]
    assert verdicts == ["pass", "pass", "fail"]
    assert [claim.check(found).verdict for claim in RECIPES["defence-table-4"].claims] == ["fail", "fail"]
    assert right_clean(found["defence-pairs"], "PGD on both").sum() == 0


def test_a_paired_difference_has_newcombes_interval():
    first, second = np.repeat([1, 1, 0, 0], (36, 12, 2, 0)) > 0, np.repeat([1, 0, 1, 0], (36, 12, 2, 0)) > 0
    found = paired(first, second)  # an example of the source
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    other = paired(second, first)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))
    same = paired(first, first)
    assert (same.low, same.value) == (pytest.approx(-same.high), 0.0)
    all_of_all = paired(np.ones(20, bool), np.ones(20, bool))
    width = 1 - wilson(20, 20)[0]
    assert (all_of_all.low, all_of_all.high) == pytest.approx((-width, width))
    assert paired(np.zeros(0, bool), np.zeros(0, bool)) is None


def test_a_defence_that_does_not_help_fails_the_findings_and_keeps_clean_pairs():
    found = defended(clean_wrong=False, hits=PAIRS)
    assert [claim.check(found).verdict for claim in RECIPES["defence-table-3"].claims] == [
        "undecided",  # nothing was gained and nothing lost
        "fail",
        "undecided",  # so few pairs cannot show that at most five points are lost
    ]
    assert [claim.check(found).verdict for claim in RECIPES["defence-table-4"].claims] == ["pass", "undecided"]


def test_table_1_of_attack_as_defence_compares_accuracies_on_the_same_pairs():
    names = [f"{family}, ε = {level}" for family in FAMILIES for level in (2, 4, 8)]
    cells = {name: cell(np.arange(PAIRS) < (28 if name.startswith("FGSM") else 40), 1.0) for name in names}
    found = {"defence-attacks": part({"zero": {"none": cells}})}
    recipe = RECIPES["defence-table-1"]
    rows = recipe.table(found).rows
    assert list(rows) == ["no attack", *names]
    assert [c.value for c in rows["FGSM, ε = 4"]] == [0.3, 0.0, 0.6]
    below, more = (claim.check(found) for claim in recipe.claims)
    low, high = wilson(12, 40)
    assert (below.value, below.low, below.high) == pytest.approx((0.2, 0.5 - high, 0.5 - low))
    assert (more.value, more.verdict) == (pytest.approx(0.3), "pass")


def test_the_costs_grow_with_the_scale_and_the_paper_scale_has_the_papers_steps():
    recipes = find_recipes(["mehr", "defence"])
    (part,) = RECIPES["defence-table-2"].parts(Setup(scale="paper", data=None, networks=("synth-mobile",)))
    assert dict(part.attacks) == {"FGSM": "ffm@4/255", "PGD": "pgd:40@4/255", "C&W": "pgd-cw:40@4/255"}
    assert dict(part.defences)["PGD on the gallery"] == "pair(pgd:40@4/255):gallery"
    assert part.pairs is None
    (part,) = RECIPES["mehr-table-1"].parts(Setup(scale="paper", data=None, networks=("synth-mobile",)))
    assert part.pairs == 50
    planned = plan_recipes(recipes, SMOKE)
    assert sum(bool(each.parts) for each in planned) == 5  # what the others need is among these
    assert all(each.cost.gradients > 0 for each in planned if each.parts)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of two recipes that share their part."""
    out = tmp_path_factory.mktemp("run")
    run_recipes(find_recipes(["mehr-table-2", "mehr-figure-3"]), SMOKE, out)
    return out


@pytest.mark.slow
def test_a_table_is_what_its_study_found(run):
    found = json.loads((run / "mehr-table-2" / "results.json").read_text())
    study = json.loads((run / "parts" / "synth-mobile" / "mehr-pairs" / "defences.json").read_text())
    rows = {row["name"]: row["cells"] for row in found["found"][0]["table"]["rows"]}
    labels = dict(zip(ATTACKS, ("minimal-fgsm", "deepfool", "noise-uniform", "noise-gaussian"), strict=True))
    for name, label in labels.items():
        for k, goal in enumerate(("evasion", "impersonation")):
            of = {c["threat"]: c[goal] for c in study["cells"] if (c["defence"], c["attack"]) == ("mean:3", label)}
            expected = (
                of["zero"]["success_of_rest"],
                of["zero"]["mean_l2_defended"],
                of["perfect"]["success_of_rest"],
                of["perfect"]["mean_l2"],
            )
            for column, value in zip((k, k + 2, k + 4, k + 6), expected, strict=True):
                cell = rows[name][column]
                assert (cell is None) == (value is None), (name, column)
                assert value is None or math.isclose(cell["value"], value, rel_tol=1e-9), (name, column)


@pytest.mark.slow
def test_the_pictures_are_of_one_image_with_noise_and_what_the_defences_leave_of_it(run):
    (picture,) = json.loads((run / "mehr-figure-3" / "results.json").read_text())["found"][0]["pictures"]
    clean, noisy, filtered, restored = (read_image(run / file) / 255 for _, file in picture["files"])
    change = [np.linalg.norm(image - clean) for image in (noisy, filtered, restored)]
    assert change[0] > change[1] > change[2]
    mean = MeanFilter(size=3)
    images = to_tensor(read_image(run / picture["files"][1][1]))[None]
    np.testing.assert_array_equal(
        to_uint8(mean(images, content_key(images, 0))[0].clamp(0, 1)), read_image(run / picture["files"][2][1])
    )


def test_the_black_box_is_named_as_the_study_of_defences_opens_it(monkeypatch, tmp_path):
    (black_box,) = find_recipes(["mehr-table-3"])[0].parts(Setup(scale="smoke", data=None, networks=()))
    asked = []
    monkeypatch.setattr(defending, "verify_folder", lambda plan, progress: SimpleNamespace(threshold=0.3))

    def stop(plan, progress):
        asked.append(plan.black_box)
        raise KeyboardInterrupt

    monkeypatch.setattr(defending, "defend_folder", stop)
    for text in ("mine=synth-vgg:FILE", "mine=synth-vgg", "synth-vgg=FILE", "synth-vgg"):
        setup = Setup(scale="smoke", data=tmp_path, networks=("synth-mobile", text))
        with pytest.raises(KeyboardInterrupt):
            black_box.run(setup, tmp_path / "part", silent)
    assert asked == ["synth-vgg=FILE", "synth-vgg", "synth-vgg=FILE", "synth-vgg"]


def test_a_recipe_of_two_networks_refuses_one():
    with pytest.raises(ArgumentError, match="--network: expected 2 or more for mehr-table-3, got 1"):
        RECIPES["mehr-table-3"].setups(Setup(scale="small", data=None, networks=("synth-mobile",)))


def test_the_recipes_of_attack_as_defence_say_which_numbers_there_are():
    for recipe in find_recipes(["defence"]):
        assert "its tables were not available" in recipe.notes[0]
