"""``fastadv study`` and ``fastadv compare`` on the command line."""

import json

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fastadv.cli import app
from fastadv.cli.study import ScaleName
from fastadv.core.errors import ArgumentError
from fastadv.studies.papers import run as running
from fastadv.studies.papers.catalog import RECIPES
from fastadv.studies.papers.recipe import SCALES


def inside(words, capsys):
    app([*map(str, words)], standalone_mode=False)
    return capsys.readouterr().out


def test_the_scales_are_the_librarys():
    assert tuple(scale.value for scale in ScaleName) == SCALES


def test_list_and_show_name_every_recipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = inside(["study", "list"], capsys)
    assert all(name in said for name in RECIPES)
    listed = json.loads(inside(["study", "list", "--json"], capsys))
    assert [one["name"] for one in listed] == list(RECIPES)
    said = inside(["study", "show", "massoli-table-3"], capsys)
    assert "92.8" in said
    assert "finding: targeted kNN-guided attacks push more pairs above the threshold than C&W" in said
    (shown,) = json.loads(inside(["study", "show", "massoli-table-3", "--json"], capsys))
    assert shown["printed"]["rows"][0]["cells"][1]["value"] == 0.928


def test_a_dry_run_prints_the_cost_and_writes_nothing(capsys, faces, tmp_path):
    words = ["study", "run", "massoli", "--data", faces, "--network", "synth-mobile", "--out", tmp_path / "out"]
    planned = json.loads(inside([*words, "--dry-run", "--json"], capsys))["planned"]
    assert planned[0]["cost"]["gradients"] > 0
    assert planned[0]["seconds"] > 0
    assert planned[-1]["parts"] == []
    said = inside([*words, "--dry-run"], capsys)
    assert "massoli-table-1" in said
    assert "time here" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def quick(monkeypatch):
    """Massoli et al.'s table 3 with a part that has measured before."""
    cell = {"attack": "cw-l2:50", "family": "cw-l2", "on_logits": True}
    scene = {"before": [0.1, 0.2], "after": [0.3, 0.4]}
    cells = [{**cell, "kind": kind, "impersonation": scene, "evasion": scene} for kind in ("targeted", "untargeted")]
    found = {"threshold": 0.35, "cells": cells}
    monkeypatch.setattr(running, "_part", lambda *given: (found, 1.0))


def test_run_prints_the_table_and_the_findings_and_draws_the_page(capsys, faces, tmp_path, monkeypatch, quick):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["study", "run", "massoli-table-3", "--data", faces, "--network", "synth-mobile", "--out"]
    said = inside([*words, tmp_path / "a"], capsys)
    assert "50.0 (9.5 to 90.5; 1 of 2)" in said
    assert "undecided: targeted kNN-guided attacks" in said
    assert (tmp_path / "a" / "massoli-table-3" / "report.html").is_file()
    found = json.loads(inside([*words, tmp_path / "b", "--json"], capsys))
    assert found["recipes"][0]["claims"][0]["verdict"] == "undecided"
    compared = json.loads(inside(["compare", tmp_path / "a", tmp_path / "b", "--json"], capsys))["recipes"]
    assert [one["recipe"] for one in compared] == ["massoli-table-3"]
    assert not any(cell["differs"] for cell in compared[0]["cells"])
    assert "B - A" in inside(["compare", tmp_path / "a", tmp_path / "b"], capsys)
    page = json.loads(inside(["report", tmp_path / "a" / "massoli-table-3", "--json"], capsys))
    assert page["report"].endswith("report.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "masoli"], "recipe: expected one of 'fastadv study list', got 'masoli'"),
        (["show", "massoli-tabel-1"], "got 'massoli-tabel-1'; did you mean 'massoli-table-1'"),
        (["run", "massoli", "--scale", "small"], "--data: expected faces with --scale small, got none"),
        (["run", "massoli", "--scale", "tiny"], "--scale: expected one of smoke, small, paper, got 'tiny'"),
        (["run", "massoli", "--network", "resnet7"], "resnet7"),
    ],
)
def test_a_users_mistake_is_named(words, message, tmp_path, capsys):
    with pytest.raises(ArgumentError, match=message):
        inside(["study", *words, *(["--out", tmp_path / "out"] if words[0] == "run" else [])], capsys)
    assert not (tmp_path / "out").exists()
