"""The scoreboard of the documentation, from results of recipes."""

import json

import pytest

from bench import collect, reproduction_tables


def estimate(value, low, high):
    return {"value": value, "low": low, "high": high, "hits": None, "trials": None}


def study(network, verdict):
    return {
        "networks": [network],
        "table": {
            "columns": ["targeted"],
            "rows": [{"name": "CW", "cells": [estimate(0.25, 0.125, 0.5)]}, {"name": "more", "cells": [None]}],
            "percent": True,
        },
        "claims": [{"statement": "it holds", "verdict": verdict, "estimate": estimate(0.1, 0.05, 0.15)}],
        "figures": [{"title": "a curve"}],
        "pictures": [],
    }


def result(recipe="paper-table-3", **more):
    printed = {"columns": ["targeted"], "rows": [{"name": "CW", "cells": [{"value": 0.349}]}], "percent": True}
    return {
        "recipe": recipe,
        "source": "Somebody 2020, table 3, section 5",
        "title": "Pairs above the threshold",
        "printed": printed,
        "found": [study("one", "pass"), study("two", "undecided")],
        **more,
    }


def test_a_finding_has_its_verdict_and_number_for_each_network():
    text = reproduction_tables.findings({"rows": [result()]})
    assert "### Somebody 2020" in text
    assert "| finding | source | one | two |" in text
    assert "| it holds | table 3 | **pass** 0.100 (0.050 to 0.150) | **undecided** 0.100 (0.050 to 0.150) |" in text


def test_a_study_of_several_networks_has_a_column_of_its_own():
    joint = study("one", "fail") | {"networks": ["one", "two"]}
    text = reproduction_tables.findings({"rows": [result(), result("paper-table-4", found=[joint])]})
    assert "| finding | source | one | two | together |" in text
    assert "|  |  | **fail** 0.100 (0.050 to 0.150) |" in text


def test_verdicts_are_counted_by_paper():
    text = reproduction_tables.counts({"rows": [result()]})
    assert "| Somebody 2020 | 1 | 1 | 0 | 1 |" in text


def test_the_papers_numbers_stand_above_ours():
    text = reproduction_tables.numbers({"rows": [result()]})
    assert text.startswith("### Somebody 2020, table 3, section 5: pairs above the threshold, per cent\n")
    assert text.index("| CW | paper | 34.9 |") < text.index("| CW | one | 25.0 (12.5 to 50.0) |")


def test_folders_of_recipes_are_collected_without_curves(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(result(name)))
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["collect", "--out", str(out), str(tmp_path / "a"), str(tmp_path / "b")])
    assert collect.main() == 0
    found = json.loads(out.read_text())
    assert found["benchmark"] == "reproduction-lfw"
    assert [row["recipe"] for row in found["rows"]] == ["a", "b"]
    assert all(set(each) == {"networks", "table", "claims"} for row in found["rows"] for each in row["found"])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text(json.dumps({"config": {"command": "verify"}}))
    monkeypatch.setattr("sys.argv", ["collect", "--out", str(out), str(tmp_path / "a"), str(tmp_path / "c")])
    with pytest.raises(SystemExit):
        collect.main()
