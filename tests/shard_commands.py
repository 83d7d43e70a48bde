"""Commands that make a run in shards or in several processes, and what they print."""

import json

import pytest

from fastadv.cli import app
from fastadv.core.cores import own_cores

TWO = pytest.mark.skipif(len(own_cores()) < 2, reason="needs two cores")
GOALS = {
    "impersonate": ("fim", "--threshold", "0.9"),
    "evade": ("pgd", "--threshold", "0.4", "--goal", "evade", "--limit", "11"),
    "identify-as": ("m-fim", "--goal", "identify-as", "--limit", "7"),
}


def words(faces, out, *more, goal="impersonate"):
    name, *rest = GOALS[goal]
    given = ("--data", faces, "--model", "synth-mobile", "--steps", "2", "--seed", "7", "--batch", "4", "--json")
    return [str(word) for word in ("attack", name, *rest, *given, "--out", out, *more)]


def run(capsys, *words):
    """The command line in this process; what it prints."""
    app([str(word) for word in words], standalone_mode=False)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def figures(printed):
    return {name: value for name, value in printed.items() if name not in ("seconds", "out", "shards")}
