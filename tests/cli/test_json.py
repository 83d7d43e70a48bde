"""`docs/json.md` is what `--json` prints: every field of every command, with its type."""

import json

import pytest
from commands import CALLS
from documented import SECTIONS, problems, sections

from fastadv.cli import app
from fastadv.studies.papers import run as running


def printed(capsys, *words):
    app([str(word) for word in words], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_what_recipes_print_is_documented(faces, tmp_path, capsys, monkeypatch):
    scene = {"before": [0.1], "after": [0.4]}
    cells = [
        {"kind": "targeted", "family": family, "attack": attack, "on_logits": on_logits, "impersonation": scene}
        for family, attack, on_logits in (("cw-l2", "cw-l2", True), ("knn-df", "knn-df@5/255", False))
    ]
    monkeypatch.setattr(running, "_part", lambda *given: ({"threshold": 0.3, "cells": cells}, 1.0))
    out = tmp_path / "out"
    run = ("study", "run", "massoli-table-3", "--data", faces, "--network", "synth-mobile", "--out", out, "--json")
    assert problems("fastadv study run", printed(capsys, *run)) == []
    assert problems("fastadv study run --dry-run", printed(capsys, *run, "--dry-run")) == []
    assert problems("fastadv compare", printed(capsys, "compare", out, out, "--json")) == []
    for section, words in (("list", ()), ("show", ("all",))):
        for found in printed(capsys, "study", section, *words, "--json"):
            assert problems(f"fastadv study {section}", found) == []


def test_what_commands_print_is_documented(faces, pairs, weights, tmp_path, capsys):
    model = ("--data", faces, "--model", "synth-mobile")
    attack = ("--steps", "1", "--limit", "2", "--json")
    run, shards = tmp_path / "run", tmp_path / "shards"
    printed(capsys, "attack", "fim", *model, "--threshold", "0.4", "--out", shards, "--shard", "1/2", *attack)
    calls = {
        "fastadv attack": ("attack", "fim", *model, "--threshold", "0.4", "--out", run, *attack),
        "fastadv merge": ("merge", run, "--json"),
        "fastadv status": ("status", shards, "--json"),
        "fastadv verify": ("verify", *model, "--pairs", pairs, "--attack", "fim", "--out", tmp_path / "v", *attack),
        "fastadv identify": ("identify", *model, "--attack", "fim", "--out", tmp_path / "i", *attack),
        "fastadv report": ("report", run, "--json"),
        "fastadv doctor": ("doctor", "--json"),
        "fastadv models inspect": ("models", "inspect", weights, "--json"),
        "fastadv models check": ("models", "check", *model, "--pairs", pairs, "--json"),
    }
    for section, words in calls.items():
        assert problems(section, printed(capsys, *words)) == []
    for command in ("attacks", "models"):
        for found in printed(capsys, command, "--json"):
            assert problems(f"fastadv {command}", found) == []


@pytest.mark.filterwarnings("ignore")
def test_what_defend_prints_with_every_measurement_is_documented(faces, pairs, tmp_path, capsys):
    words = "--limit 8 --threshold 0.3 --defence mean --defence pair(pgd:1@4/255) --attack deepfool:2 --threat zero"
    words += " --sweep 0.2 --sweep 0.4 --black-box synth-vgg --model synth-mobile --json"
    call = ("defend", "--data", faces, "--pairs", pairs, *words.split(), "--out", tmp_path / "out")
    found = printed(capsys, *call)
    assert problems("fastadv defend", found) == []
    assert len(found["sweep"]) == 2
    assert len(found["black_box"]["cells"]) == 4


def test_every_call_has_a_section():
    assert {call.name for call in CALLS} == set(SECTIONS)
    assert set(SECTIONS.values()) <= set(sections())


def test_the_check_finds_what_is_missing_and_what_is_undocumented():
    (model,) = ({"name": "a", "parameters": 1, "input": 112, "width": 112, "weights": "b", "shipped": True},)
    assert problems("fastadv models", model) == []
    assert problems("fastadv models", {**model, "new": 1}) == ["fastadv models: new is not documented"]
    assert problems("fastadv models", {**model, "input": "112"}) == ["fastadv models: input is no integer: '112'"]
    del model["name"]
    assert problems("fastadv models", model) == ["fastadv models: name is missing"]
