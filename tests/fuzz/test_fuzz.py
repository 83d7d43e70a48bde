"""Damaged and hostile files: every reader takes them or refuses them by one of its named errors."""

from __future__ import annotations

import mmap
import os
import re
import signal
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from fuzz import engines, targets
from fuzz.edits import LARGEST, TOKENS, drawn, edited
from fuzz.judge import ACCEPTED, REFUSED, Target, judge, smaller
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_NUMBERS = st.integers(0, 2**32 - 1)
_EDITS = st.lists(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS), min_size=1, max_size=5)
_HERE = targets.TARGETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("target", _HERE, ids=lambda target: target.name)
def test_a_damaged_file_is_taken_or_refused(target: Target, folder: Path) -> None:
    @settings(max_examples=target.examples, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(start=st.integers(0, 2**16), edits=_EDITS)
    def every(start: int, edits: list[tuple[int, int, int]]) -> None:
        assert judge(target, target.made(start, edits), folder) in (ACCEPTED, REFUSED)

    judge(target, target.corpus[0], folder)  # what is set up once
    every()


@pytest.mark.parametrize("target", _HERE, ids=lambda target: target.name)
def test_a_whole_file_is_taken_and_a_hostile_one_is_answered(target: Target, folder: Path) -> None:
    judge(target, target.corpus[0], folder)
    found = [judge(target, data, folder) for data in target.corpus]
    seeds = found[: len(target.seeds())]
    assert set(found) <= {ACCEPTED, REFUSED}
    assert seeds.count(ACCEPTED) * 2 > len(seeds) or target.name == "arguments"
    assert ACCEPTED in seeds


def _target(read: object) -> Target:
    return Target(name="mine", seeds=lambda: [b"seed"], read=read, errors=(KeyError,), seconds=0.05, memory=50 << 20)


def _leave_open(data: bytes, folder: Path) -> None:
    _leave_open.file = open(folder / "x", "wb")  # noqa: SIM115


def _leave_for_the_collector(data: bytes, folder: Path) -> None:
    open(folder / "x", "wb").write(data)  # noqa: SIM115


def _write_elsewhere(data: bytes, folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes(data)


def _loop(data: bytes, folder: Path) -> None:
    for _ in range(10**7):
        pass


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda data, folder: None, "accepted"),
        (lambda data, folder: {}["a"], "refused"),
        (lambda data, folder: [][0], "IndexError at the target"),
        (lambda data, folder: os.system("true"), "code or files: os.system"),
        (lambda data, folder: warnings.warn("x", RuntimeWarning, stacklevel=1), "RuntimeWarning: x"),
        (lambda data, folder: warnings.warn("x", UserWarning, stacklevel=1), "accepted"),
        (_leave_open, "1 file handles left open"),
        (_leave_for_the_collector, "ResourceWarning: unclosed file"),
        (_write_elsewhere, "code or files: open for writing"),
        (_loop, "time: "),
    ],
)
def test_what_is_a_find(read: object, found: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert judge(_target(read), b"data", tmp_path / "in").startswith(found)
    if read is _leave_open:
        _leave_open.file.close()


def test_a_process_that_ends_is_a_find_with_its_input(tmp_path: Path) -> None:
    def read(data: bytes, folder: Path) -> None:
        if data.startswith(b"\xff"):
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"large":
            memory = mmap.mmap(-1, 200 << 20)
            for at in range(0, len(memory), 4096):
                memory[at] = 1

    target = replace(_target(read), seeds=lambda: [b"a", b"\xff1", b"large", b"\xff2", b"c"], seconds=5)
    result = engines.mutations(target, first=0, count=5, seed=0, out=tmp_path)
    assert (result.inputs, result.accepted, result.refused) == (5, 2, 0)
    kinds = {re.sub(r" \d+ MiB more$", "", what): about["count"] for what, about in result.finds.items()}
    assert kinds == {"crash: signal 9": 2, "memory:": 1}
    assert Path(result.finds["crash: signal 9"]["file"]).read_bytes() == b"\xff1"


def test_an_input_is_that_of_its_number_and_seed() -> None:
    target = targets.by_name("pairs")
    assert target.input(0, 3) == target.seeds()[0]
    assert [target.input(k, 3) for k in range(300)] == [target.input(k, 3) for k in range(300)]
    assert len({target.input(k, 3) for k in range(100, 300)}) > 150
    assert target.input(200, 3) != target.input(200, 4)


@given(data=st.binary(max_size=400), edits=_EDITS)
@settings(max_examples=200)
def test_edits_are_those_of_their_numbers(data: bytes, edits: list[tuple[int, int, int]]) -> None:
    made = edited(data, edits, [b"other"])
    assert made == edited(data, edits, [b"other"])
    assert len(made) <= LARGEST
    assert edited(data, [], [b"other"]) == data


def test_every_kind_of_edit_occurs() -> None:
    import random

    chance, data = random.Random(0), b"0123456789" * 30
    made = [edited(data, drawn(chance), [b"other"] * 3) for _ in range(500)]
    assert len(set(made)) > 450
    assert any(len(each) < 100 for each in made)
    assert any(len(each) > 1000 for each in made)
    assert any(TOKENS[-1] in each for each in made)


def test_a_find_is_made_smaller(tmp_path: Path) -> None:
    target = _target(lambda data, folder: data.index(b"bad") and [][0])
    found = judge(target, b"a" * 50 + b"bad" + b"b" * 50, tmp_path)
    assert smaller(target, b"a" * 50 + b"bad" + b"b" * 50, found, tmp_path) == b"abad"


def test_all_inputs_are_shared_out() -> None:
    made = targets.shares(10_000, ())
    assert sum(made.values()) >= 10_000
    assert min(made.values()) >= 1
    assert targets.shares(7, ("png",)) == {"png": 7}
    with pytest.raises(SystemExit, match="target: expected one of png, .*, got 'gif'"):
        targets.by_name("gif")
