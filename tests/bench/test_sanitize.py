"""A report of a sanitizer, or one that is missing, fails the run."""

import json

import pytest

from bench import sanitize

FIGURES = json.dumps({"operations": 2, "cases": 3, "runtime": "pool"})
RACE = 'test "$1" = --race && { echo "data race" >&2; exit 66; }'


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        (f"{RACE}\necho '{FIGURES}'", 0, ""),
        (f"echo '{FIGURES}'", 1, "expected a report of data race, got none"),
        (f"{RACE}\necho '{FIGURES}'; exit 66", 1, "driver ended with 66, 0 reports"),
        (f"{RACE}\necho '{FIGURES}'; echo overflow > report.1", 1, "driver ended with 0, 1 reports"),
        ("test -n \"$1\" && echo 'another fault' >&2; exit 66", 1, "another fault"),
    ],
    ids=["clean", "no report of the fault on purpose", "fails", "reports", "reports another fault"],
)
def test_what_fails_a_run(script, code, said, tmp_path, monkeypatch, capsys):
    driver = tmp_path / "driver"
    driver.write_text(f"#!/bin/sh\ncd '{tmp_path}'\n{script}\n")
    driver.chmod(0o755)
    monkeypatch.setattr(sanitize, "FOLDER", tmp_path)
    monkeypatch.setattr(sanitize.Sanitizers, "build", lambda *_: tmp_path)
    assert sanitize.main(["--quick"]) == code
    told = capsys.readouterr()
    assert said in told.err
    assert ("cases" in told.out) == (code == 0)
