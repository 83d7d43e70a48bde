"""What commands print: the end of each, --quiet, --no-progress, and the progress bars."""

import io
import json
import re
import shlex

import pytest
from rich.console import Console
from typer.main import get_command

from fastadv.cli import app, show
from fastadv.cli.show import progress_bars

MODEL = ("--model", "synth-mobile")


def commands(command=None):
    command = command or get_command(app)
    below = list(getattr(command, "commands", {}).values())
    return [command, *(found for each in below for found in commands(each))]


@pytest.fixture
def said(monkeypatch, capsys):
    """Run a command in this process; what it printed on both streams."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        app([str(word) for word in words], standalone_mode=False)
        return capsys.readouterr()

    return call


def next_command(text):
    """The words of the last line, which must be a command that the parser takes."""
    line = text.strip().splitlines()[-1]
    assert line.startswith("next: fastadv "), line
    words = shlex.split(line.removeprefix("next: fastadv "))
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, line
    return line


def test_every_command_with_output_has_json_quiet_and_no_progress():
    at_once = {"doctor", "attacks", "models", "list", "show", "inspect", "compare", "status", "merge"}
    for command in commands():
        options = {option for parameter in command.params for option in parameter.opts}
        if "--json" in options and command.name not in at_once:
            assert {"--quiet", "--no-progress"} <= options, command.name


def test_a_run_ends_with_where_it_is_and_with_the_next_command(said, faces, pairs, tmp_path):
    first = said("verify", "--data", faces, *MODEL, "--pairs", pairs).out
    line = next_command(first)
    threshold = re.search(r"--threshold (\S+)", line).group(1)
    assert f"EER {threshold}"[:8] in first
    assert f"fastadv attack fim --data {faces} --model synth-mobile --threshold {threshold} --out run" in line
    out = tmp_path / "run"
    given = ("--steps", "1", "--limit", "2", "--threshold", threshold, "--out", out)
    attacked = said("attack", "fim", "--data", faces, *MODEL, *given).out
    assert str(out) in attacked
    line = next_command(attacked)
    assert line == f"next: fastadv report {shlex.quote(str(out))} --data {shlex.quote(str(faces))}"
    drawn = said(*shlex.split(line.removeprefix("next: fastadv "))).out
    assert f"open {out / 'report.html'}" in drawn
    next_command(drawn)


def test_quiet_prints_nothing_and_json_one_object(said, faces, pairs, tmp_path):
    verify = ("verify", "--data", faces, *MODEL, "--pairs", pairs)
    assert said(*verify, "--quiet") == ("", "")
    assert json.loads(said(*verify, "--quiet", "--json").out)["clean"]["pairs"] == 24


def test_quiet_still_says_what_is_wrong(inside, faces, tmp_path):
    code, said = inside("verify", "--data", faces, *MODEL, "--pairs", tmp_path / "none.csv", "--quiet")
    assert code == 2
    assert said.startswith("error: ")


def test_progress_goes_to_standard_error_with_images_per_second_and_the_time_left(monkeypatch, capsys):
    screen = io.StringIO()
    monkeypatch.setattr(show, "errors", Console(file=screen, force_terminal=True, width=120))
    with progress_bars(quiet=False) as progress:
        progress("embedding", 0, 100)
        progress("embedding", 50, 100)
        progress("fitting lstm", 0, 10)
        progress("fitting lstm", 5, 10)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"embedding .*50/100 +[0-9.]+ images/s +ETA", text)
    assert re.search(r"fitting lstm .*5/10 +[0-9.]+ steps/s +ETA", text)
    screen.truncate(0)
    with progress_bars(quiet=True) as progress:
        progress("embedding", 50, 100)
    assert "embedding" not in screen.getvalue()
    assert capsys.readouterr() == ("", "")
