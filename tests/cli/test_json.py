"""`docs/json.md` is what `--json` prints: every field of every command, with its type."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from commands import CALLS, write_inputs

from fastadv.cli import app
from fastadv.studies.papers import run as running

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
KINDS = {"integer": int, "number": (int, float), "text": str, "boolean": bool, "object": dict, "list": list}
# the section of each call of tests/commands.py
SECTIONS = {
    **dict.fromkeys(("impersonate", "evade", "identify-as", "minimal"), "fastadv attack"),
    **dict.fromkeys(("verify", "clean"), "fastadv verify"),
    **{name: f"fastadv {name}" for name in ("identify", "talfw", "transfer", "defend", "train")},
    "untargeted": "fastadv transfer --untargeted",
    "detect": "fastadv detect fit",
    "evaluate": "fastadv detect evaluate",
    "score": "fastadv detect score",
    "calibrate": "fastadv detect calibrate",
    "head": "fastadv train --head",
    "denoiser": "fastadv train denoiser",
}


@cache
def sections():
    """The fields of each heading with their types, in the order of the page."""
    found = {}
    for part in re.split(r"(?m)^##+ ", PAGE.read_text(encoding="utf-8"))[1:]:
        title, _, text = part.partition("\n")
        rows = re.findall(r"(?m)^\| `([^`]+)` \| ([^|]+) \|", text)
        if rows:
            found[title.strip()] = {name: kind.strip() for name, kind in rows}
    return found


def problems(section, value):
    """What of a JSON value is not as the section says: a line each."""
    rules = sections()[section]
    if "..." in rules:
        rules = {**sections()[rules["..."]], **{name: kind for name, kind in rules.items() if name != "..."}}
    return [f"{section}: {line}" for line in _of_object(value, rules, "")]


def _of_object(value, rules, before):
    for name, inner in value.items():
        path = next((p for p in (before + name, f"{before}NAME") if _known(p, rules)), None)
        if path is None:
            yield f"{before}{name} is not documented"
        elif path in rules:
            yield from _of_type(inner, rules[path], rules, path)
        else:
            yield from _of_object(inner, rules, f"{path}.")
    for path, kind in rules.items():
        name = path.removeprefix(before)
        direct = path.startswith(before) and not re.search(r"NAME|[.\[]", name)
        if direct and name not in value and "absent" not in kind:
            yield f"{path} is missing"


def _known(path, rules):
    return path in rules or any(rule.startswith(f"{path}.") for rule in rules)


def _of_type(value, kind, rules, path):
    if kind == "any" or (value is None and "null" in kind):
        return
    kind = re.sub(r" or (null|absent)$", "", kind) if not kind.startswith("list of") else kind
    if kind.startswith("list of "):
        if not isinstance(value, list):
            yield f"{path} is no list: {value!r}"
            return
        inner = kind.removeprefix("list of ").removesuffix(" or absent")
        for each in value:
            yield from _of_type(each, inner, rules, f"{path}[]")
    elif kind in KINDS:
        if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
            yield f"{path} is no {kind}: {value!r}"
        elif kind == "object":
            yield from _of_object(value, rules, f"{path}.")
    else:
        yield from (f"{path}: {line}" for line in problems(kind, value))


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_every_command_prints_is_documented(tmp_path, capsys):
    runs = tmp_path / "runs"
    runs.mkdir()
    write_inputs(tmp_path)
    for call in CALLS:
        assert problems(SECTIONS[call.name], printed(capsys, *call.arguments(tmp_path, runs))) == [], call.name
    network = (
        "--model",
        "synth-mobile",
        "--detector",
        runs / "detect" / "detectors" / "mlp-medoid-l2-relative.safetensors",
    )
    guard = printed(capsys, "detect", "export", *network, "--out", runs / "guard.pt2", "--json")
    assert problems("fastadv detect export", guard) == []
    image = next((tmp_path / "faces").rglob("*.png"))
    why = printed(capsys, "detect", "explain", image, *network, "--eer", "--json")
    assert problems("fastadv detect explain", why) == []
    assert problems("fastadv demo", printed(capsys, "demo", "--pairs", "20", "--out", runs / "demo", "--json")) == []


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
