"""The recipes of Massoli et al.: rows, counts, AUCs and findings from results that were made up."""

import pytest

from fastadv.core.estimates import mean_of, share_of
from fastadv.studies.papers.catalog import RECIPES

KINDS = ("targeted", "untargeted")


def cell(attack, kind, *, on_logits, after, distance, below=(), within=(0.9,)):
    """An attack: how many of ten impersonations are accepted after it, and of how many evasions are refused."""
    before = [0.1] * 10
    return {
        "attack": attack,
        "family": attack.partition(":")[0].partition("@")[0],
        "kind": kind,
        "on_logits": on_logits,
        "images": 12,
        "met_before_images": 2,
        "rest_successes": 9,
        "names": [f"p/{k}" for k in range(len(distance))],
        "distance": list(distance),
        "impersonation": {"before": before, "after": [0.9] * after + [0.1] * (10 - after)},
        "evasion": {"before": [0.9] * 10, "after": [0.1] * len(below) + [0.9] * (10 - len(below))},
        "pixels": None if on_logits else {"within": list(within), "levels": [0.5, 0.25, 0.25]},
    }


def images(*, guided=10, cw=0):
    cells = []
    for kind in KINDS:
        for name in ("bim:10@0.03", "mi-fgsm:10@0.03"):
            cells.append(cell(name, kind, on_logits=True, after=5, distance=(0.8, 0.82, 0.84)))
        cells.append(cell("cw-l2:50,search_steps=2", kind, on_logits=True, after=cw, distance=(0.8, 0.82, 0.84)))
        for levels in (5, 7, 10):
            cells.append(
                cell(
                    f"knn-df:100@{levels}/255",
                    kind,
                    on_logits=False,
                    after=guided,
                    distance=(0.4, 0.42, 0.44),
                    below=range(8 if kind == "targeted" else 1),
                    within=(0.9, 0.8),
                )
            )
    return {"classifier": {"threshold": 0.5, "cells": cells, "pictures": []}}


def verdicts(name, found):
    return {
        claim.statement: None if (made := claim.check(found)) is None else made.verdict
        for claim in RECIPES[name].claims
    }


def test_table_3_counts_the_pairs_at_and_above_the_threshold():
    table = RECIPES["massoli-table-3"].table(images(guided=9, cw=2))
    assert table.rows["δ = 7"] == (share_of(0, 10), share_of(9, 10)) * 2
    assert table.rows["CW"] == (share_of(0, 10), share_of(2, 10)) * 2
    printed = RECIPES["massoli-table-3"].printed
    assert (printed.columns, list(printed.rows)) == (table.columns, list(table.rows))
    assert printed.rows["CW"] == pytest.approx((0.505, 0.349, 0.08, 0.093))


def test_table_4_counts_the_pairs_below_the_threshold():
    table = RECIPES["massoli-table-4"].table(images())
    assert table.rows["δ = 5"] == (share_of(0, 10), share_of(8, 10), share_of(0, 10), share_of(1, 10))


@pytest.mark.parametrize(
    ("guided", "cw", "verdict"), [(10, 0, "pass"), (6, 5, "undecided"), (0, 10, "fail"), (5, 5, "undecided")]
)
def test_guided_attacks_against_cw_as_the_interval_of_the_difference_says(guided, cw, verdict):
    found = verdicts("massoli-table-3", images(guided=guided, cw=cw))
    assert set(found.values()) == {verdict}
    expected = share_of(guided, 10) - share_of(cw, 10)
    assert RECIPES["massoli-table-3"].claims[0].check(images(guided=guided, cw=cw)).low == expected.low


def test_targeted_attacks_evade_more_often_in_these_results():
    assert (
        verdicts("massoli-table-4", images())["targeted kNN-guided attacks evade more often than untargeted ones"]
        == "pass"
    )


def test_guided_attacks_end_nearer_in_these_results():
    found = images()
    assert set(verdicts("massoli-figure-6", found).values()) == {"pass", "undecided"}
    assert set(verdicts("massoli-figure-7", found).values()) == {"pass"}
    table = RECIPES["massoli-figure-6"].table(found)
    (mean,) = table.rows["kNN-guided, targeted"]
    assert (mean.trials, mean.low) == (3, pytest.approx(mean_of([0.4, 0.42, 0.44]).low))  # three images, not nine
    table = RECIPES["massoli-figure-7"].table(found)
    assert table.rows["kNN, δ = 10"] == (mean_of([0.4, 0.42, 0.44]),)
    (figure,) = RECIPES["massoli-figure-7"].figures(found)
    assert [sum(trace.y) for trace in figure.traces] == pytest.approx([1.0] * 6)


def test_success_is_of_the_images_that_had_not_reached_the_goal():
    assert RECIPES["massoli-figure-5"].table(images()).rows["δ = 5"] == (share_of(9, 10), share_of(9, 10))


def test_figure_9_is_the_mean_share_of_small_changes():
    table = RECIPES["massoli-figure-9"].table(images())
    assert table.rows["δ = 10"] == (mean_of([0.9, 0.8]),)
    first, _ = RECIPES["massoli-figure-9"].figures(images())
    assert (first.traces[0].x, first.traces[0].y) == ((0.0, 1.0, 2.0), (0.5, 0.25, 0.25))


def test_where_nothing_succeeded_nothing_is_said():
    found = images()
    for one in found["classifier"]["cells"]:
        one.update(names=[], distance=[], impersonation=None, evasion=None, pixels=None)
        one.update(images=2, met_before_images=2)
    for name in ("table-3", "table-4", *(f"figure-{n}" for n in range(5, 12))):
        recipe = RECIPES[f"massoli-{name}"]
        cells = [c for row in recipe.table(found).rows.values() for c in row]
        assert all(c is None or c == 0.5 for c in cells), name  # the threshold
        assert set(verdicts(recipe.name, found).values()) <= {None}
        assert recipe.figures is None or recipe.figures(found) == ()


PEOPLE = [f"p{k}" for k in range(8) for _ in range(2)]


def scored(*, cw=0.0):
    """Detectors that separate every attack but C&W, by which ``cw`` of the images are scored as attacked."""
    groups = [
        {
            "group": f"{attack} {kind}",
            "family": family,
            "attack": attack,
            "kind": kind,
            "on_logits": on,
            "people": PEOPLE,
        }
        for attack, family, on in (
            ("bim:10@0.03", "bim", True),
            ("mi-fgsm:10@0.03", "mi-fgsm", True),
            ("cw-l2:50", "cw-l2", True),
            *((f"knn-df:100@{d}/255", "knn-df", False) for d in (5, 7, 10)),
        )
        for kind in KINDS
    ]
    hidden = round((1 - cw) * len(PEOPLE))
    calm = [0.01 * k for k in range(len(PEOPLE))]
    detectors = []
    for reading, networks in (("raw", ("lstm", "mlp")), ("relative", ("lstm", "mlp", "linear"))):
        for network in networks:
            for representatives in ("medoid", "centroid"):
                for metric in ("l2", "cosine"):
                    scores = {"": calm}
                    for group in groups:
                        seen = 0 if group["family"] != "cw-l2" else hidden
                        scores[group["group"]] = [-1.0] * seen + [1.0] * (len(PEOPLE) - seen)
                    detectors.append(
                        {
                            "network": network,
                            "representatives": representatives,
                            "metric": metric,
                            "reading": reading,
                            "validation_worst": 0.9,
                            "scores": scores,
                        }
                    )
    return {"detectors": {"detectors": detectors, "groups": groups, "natural": PEOPLE}}


@pytest.mark.parametrize("name", ["table-1", "table-2", "table-5", "table-6", "figure-2", "figure-3", "figure-12"])
def test_the_papers_rows_and_columns_are_there(name):
    recipe = RECIPES[f"massoli-{name}"]
    table = recipe.table(scored())
    assert set(recipe.printed.rows) <= set(table.rows)
    assert recipe.printed.columns == table.columns
    assert any(row.endswith(", relative") for row in table.rows)


def test_table_1_has_the_auc_of_each_attack_and_their_mean():
    table = RECIPES["massoli-table-1"].table(scored(cw=0.25))
    bim, cw, mi, macro = table.rows["LSTM + M + cos"]
    assert (bim.value, cw.value, mi.value, bim.trials) == (1.0, 0.25, 1.0, 16)
    assert macro.value == pytest.approx(2.25 / 3)
    assert "logistic + C + L2, relative" in table.rows


def test_cw_is_the_hardest_where_it_is():
    assert verdicts("massoli-table-1", scored(cw=0.25))["C&W is the hardest to detect, targeted"] == "pass"
    assert verdicts("massoli-table-1", scored(cw=1.0))["C&W is the hardest to detect, targeted"] == "undecided"
    assert set(verdicts("massoli-table-5", scored()).values()) == {"pass"}
    assert set(verdicts("massoli-table-6", scored()).values()) == {"undecided"}


def test_figures_have_a_curve_for_each_detector_or_attack():
    figures = RECIPES["massoli-figure-2"].figures(scored())
    assert [len(figure.traces) for figure in figures] == [8, 8, 8, 8]
    assert [trace.label for trace in RECIPES["massoli-figure-3"].figures(scored())[0].traces] == [
        "BIM",
        "CW",
        "MI-FGSM",
    ]
    assert all(t.x[0] == t.y[0] == 0.0 and t.x[-1] == t.y[-1] == 1.0 for f in figures for t in f.traces)
