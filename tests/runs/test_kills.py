"""`kill -9` at any moment, in every command that resumes: the same command ends with the same bytes."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import CALLS, ON_PHOTOGRAPHS, Call, write_inputs
from photographs import write_detector

pytestmark = pytest.mark.slow

NAMED = {call.name: call for call in (*CALLS, *ON_PHOTOGRAPHS)}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    write_detector(root / "mtcnn.safetensors")
    return root


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Callable[[str], tuple[Path, float]]:
    """The folder of a call that nothing disturbed, and the seconds that it was written in; made once."""
    runs = tmp_path_factory.mktemp("finished")
    seconds: dict[str, float] = {}

    def folder(name: str) -> tuple[Path, float]:
        if name not in seconds:
            if "{detect}" in NAMED[name].words:
                folder("detect")
            running = start(NAMED[name], inputs, runs)
            begin = appeared(running, runs / name)
            assert running.wait(300) == 0
            seconds[name] = time.monotonic() - begin
        return runs / name, seconds[name]

    return folder


def start(call: Call, inputs: Path, runs: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "fastadv", *call.arguments(inputs, runs)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)


def appeared(running: subprocess.Popen[bytes], out: Path) -> float:
    """When the folder was there, or the process was not any more."""
    while not out.exists() and running.poll() is None:
        time.sleep(0.002)
    return time.monotonic()


@pytest.mark.parametrize("name", [name for name, call in NAMED.items() if call.resumes])
def test_killed_again_and_again_it_ends_with_the_same_bytes(name, inputs, finished, rounds, tmp_path):
    whole, seconds = finished(name)
    if "{detect}" in NAMED[name].words:
        (tmp_path / "detect").symlink_to(finished("detect")[0])
    draw, kills, starts = random.Random(f"{name} {rounds}"), 0, 0
    while kills < rounds:
        starts += 1
        assert starts <= 20 * rounds, f"{kills} kills in {starts} starts"
        running = start(NAMED[name], inputs, tmp_path)
        begin = appeared(running, tmp_path / name)
        time.sleep(max(0.0, begin + draw.uniform(0, seconds) - time.monotonic()))
        running.kill()
        kills += running.wait(60) == -9
    resumed = start(NAMED[name], inputs, tmp_path)
    assert resumed.wait(300) == 0
    found, expected = NAMED[name].content(tmp_path / name), NAMED[name].content(whole)
    assert sorted(found) == sorted(expected)
    assert [file for file in expected if found[file] != expected[file]] == []
