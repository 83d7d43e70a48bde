"""Runs that are killed, interrupted, or left without room, permission, memory or input: nothing is lost or mixed up."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Call
from faults import ERRORS, INTERRUPTS, KILLS, Fault
from torture import NAMED, Found, Torture

from fastadv.core.lock import FolderLock
from fastadv.data.images import read_image, write_png

RESUMING = [name for name, call in NAMED.items() if call.resumes]
FEW = ("impersonate",)  # in the suite of every day
ANY = [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in RESUMING]
# what takes seconds to make is disturbed at its changes by the program alone
LIGHT = [
    n for n in NAMED if n not in ("detect", "defend", "study", "demo", "evaluated", "exported", "train", "aligned")
]
# what each command reads: the part of its words, and how another file comes in its place
FACES, LIST, WEIGHTS, DETECTOR = "faces", "list", "weights", "detector"
# a set of aligned faces goes on with what was added, changed or removed; what each call begins anew
FREE = {"align": (FACES,), "head": (FACES, WEIGHTS), "fresh": (FACES, WEIGHTS)}
REFUSED = (
    "holds another|holds shards of another|holds other faces|that the run began with|as in study.json"
    "|expected this part, got another: networks"
)


@pytest.fixture(scope="module")
def torture(forks, tmp_path_factory) -> Torture:
    return Torture(forks, tmp_path_factory.mktemp("torture"))


# the program itself, on programs of a few lines

CAREFUL = """
import os, sys, threading
from fastadv.core.files import replacing, write_atomically
def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    for name in "ab":
        if not os.path.exists(f"{folder}/{name}"):
            write_atomically(f"{folder}/{name}", name.encode() * 10, fsync=name == "b")
    with replacing(f"{folder}/c") as file:
        file.write(b"c" * 10)
    if os.path.exists(f"{folder}/d"):
        os.unlink(f"{folder}/d")
    with open(f"{folder}/d", "ab") as file:
        file.write(b"d")
    for name in os.listdir(folder):
        if name.startswith("."):
            os.unlink(f"{folder}/{name}")
"""
CARELESS = """
import os, sys
def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    if not os.path.exists(f"{folder}/a"):
        file = os.open(f"{folder}/a", os.O_WRONLY | os.O_CREAT)
        os.write(file, b"a" * 10)
"""
LANDMARKS = """
import sys
from pathlib import Path
from fastadv.data.kept_landmarks import FoundFace, KeptLandmarks
def main():
    folder = Path(sys.argv[1])
    for left in folder.glob(".*.fastadv-tmp"):
        left.unlink()
    kept = KeptLandmarks.open(folder / "landmarks.txt")
    rows, new = dict(kept.rows), [name for name in "ORDER" if name not in kept.rows]
    if kept.begun and new:
        sys.exit("rows are lost")
    for k, name in enumerate(new):
        row = FoundFace(name=name, sha256="0", search="s", score=0.5, landmarks=(1.0,) * 10)
        kept.add(row, kept.rows, first=k == 0)
        rows[name] = row
    kept.finish(rows)
    for name in ("begun", "over"):
        (folder / name).write_bytes(b"")
"""
TOYS = {"toy": Call(name="toy", words="{out}")}


@pytest.fixture
def toy(forks, tmp_path):
    """What disturbing a program at every change comes to."""

    def disturbed(program: str, kind: str) -> tuple[Torture, Found]:
        root, found = tmp_path / "root", Found()
        root.mkdir()
        (tmp_path / "toy.py").write_text(program)
        torture = Torture(forks, root, calls=TOYS, program=str(tmp_path / "toy.py"))
        torture.disturb("toy", kind, torture.points("toy", 0), found)
        return torture, found

    return disturbed


def test_every_change_of_the_disk_is_counted(toy):
    torture, found = toy(CAREFUL, "kill")
    changes = [kind for kind, _ in torture.whole("toy").changes]
    assert changes == [
        *("mkdir", "open", "write", "rename"),  # a
        *("open", "write", "fsync", "rename"),  # b
        *("open", "write", "rename"),  # c
        "open",  # d, whose write is none of ours
    ]
    assert found.problems == []
    assert found.codes == {"-9": len(changes)}


@pytest.mark.parametrize(("kind", "left"), [("kill", b""), ("half", b"a" * 5)])
def test_a_program_that_leaves_a_part_of_a_file_is_found(kind, left, toy):
    torture, found = toy(CARELESS, kind)
    assert [line.partition(":")[0] for line in found.problems] == [f"{kind} at 2, write in "]
    assert [path.read_bytes() for path in torture.root.rglob("a")].count(left) == 1


@pytest.mark.parametrize(("kind", "order"), [("kill", "bca"), ("half", "bca"), ("power", "bca"), ("power", "abc")])
def test_a_list_of_landmarks_is_taken_up_after_a_power_cut(kind, order, toy):
    _, found = toy(LANDMARKS.replace("ORDER", order), kind)
    assert found.problems == []
    assert sum(found.faults.values()) > 5


# commands


def test_changes_of_a_run_are_those_that_are_known(torture):
    """Nothing is written by other ways than those at which faults are injected."""
    kinds = {kind for kind, _ in torture.whole("impersonate").changes}
    assert kinds == {"open", "write", "fsync", "rename", "remove", "mkdir"}
    places = {place.partition(" < ")[0] for _, place in torture.whole("impersonate").changes}
    assert {"data/writer.py:write", "data/writer.py:_append", "data/manifest.py:write_parquet"} <= places


@pytest.mark.parametrize("name", ANY)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(name, torture, rounds):
    found = Found()
    torture.kill(name, rounds, random.Random(f"{name} {rounds}"), found)
    assert (found.kills, found.problems) == (rounds, [])


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in LIGHT])
def test_a_fault_at_a_change_of_the_disk_is_said_and_loses_nothing(name, torture):
    draw, found = random.Random(name), Found()
    points, kinds = torture.points(name, 1), [*draw.sample(KILLS, 1), *draw.sample((*ERRORS, *INTERRUPTS), 2)]
    for kind in kinds if name in FEW else kinds[:2]:
        torture.disturb(name, kind, draw.sample(points, 1), found)
    assert found.problems == []


@pytest.mark.parametrize("name", ANY)
def test_a_folder_that_another_run_writes_is_refused(name, torture):
    runs, lock = torture.finished(name), torture.whole(name).lock
    assert lock is not None
    held = FolderLock(runs / lock)
    try:
        done = torture.start(name, runs).wait()
        assert (done.returncode, "that no other" in done.stderr) == (2, True), done.stderr
    finally:
        held.release()
    assert torture.left(name, runs) == torture.whole(name).content


def applicable():
    for name, words in ((name, NAMED[name].words) for name in RESUMING):
        reads = {
            FACES: "{faces}" in words,
            LIST: "{pairs}" in words or "{held}" in words,
            WEIGHTS: "synth-mobile" in words,
            DETECTOR: "{detector}" in words,
        }
        for what in (what for what, there in reads.items() if there and what not in FREE.get(name, ())):
            yield pytest.param(name, what, marks=[] if name in FEW else pytest.mark.slow)


@pytest.mark.parametrize(("name", "what"), list(applicable()))
def test_an_input_that_changes_between_two_calls_is_refused(name, what, torture, tmp_path, monkeypatch):
    shutil.copytree(torture.inputs, tmp_path / "inputs")
    runs, changed = torture.finished(name), CHANGE[what](tmp_path / "inputs", NAMED[name].words)
    monkeypatch.setattr(torture, "inputs", tmp_path / "inputs")
    monkeypatch.setitem(torture.calls, name, replace(NAMED[name], words=changed))
    done = torture.start(name, runs).wait()
    assert done.returncode == 2, done.stderr
    assert re.search(f"error: .*({REFUSED})", done.stderr), done.stderr
    assert "expected" in done.stderr
    assert torture.left(name, runs) == torture.whole(name).content


def other_faces(inputs: Path, words: str) -> str:
    for file in (inputs / "faces").rglob("*.png"):
        image = read_image(file)
        image[0, 0] ^= 1
        write_png(file, image)
    return words


def other_list(inputs: Path, words: str) -> str:
    for name in ("pairs.csv", "held.csv"):
        lines = (inputs / name).read_text().splitlines()
        (inputs / name).write_text("\n".join([lines[0], *lines[2:], ""]))
    return words


def other_weights(inputs: Path, words: str) -> str:
    if "--model synth-mobile" in words:
        return words.replace("--model synth-mobile", "--model synth-mobile --weights {two}")
    return words.replace("--network synth-mobile", "--network synth-mobile={two}")


def other_detector(inputs: Path, words: str) -> str:
    from safetensors.torch import load_file, save_file

    state = load_file(inputs / "mtcnn.safetensors")
    state["onet.dense6_3.bias"] = state["onet.dense6_3.bias"] + 0.01
    save_file(state, inputs / "mtcnn.safetensors")
    return words


CHANGE = {FACES: other_faces, LIST: other_list, WEIGHTS: other_weights, DETECTOR: other_detector}


def test_the_same_input_elsewhere_is_the_same_run(torture, tmp_path, monkeypatch):
    shutil.copytree(torture.inputs, tmp_path / "inputs")
    runs = torture.finished("impersonate")
    monkeypatch.setattr(torture, "inputs", tmp_path / "inputs")
    done = torture.start("impersonate", runs).wait()
    assert done.returncode == 0, done.stderr
    left, expected = (dict(each) for each in (torture.left("impersonate", runs), torture.whole("impersonate").content))
    del left[".hashes.json"], expected[".hashes.json"]
    assert left == expected


def test_a_weights_file_that_is_written_anew_is_another_run(torture, tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    shutil.copy(torture.inputs / "two.safetensors", file)
    words = NAMED["impersonate"].words.replace("--model synth-mobile", f"--model synth-mobile --weights {file}")
    monkeypatch.setitem(torture.calls, "impersonate", replace(NAMED["impersonate"], words=words))
    runs = torture.trial("impersonate")
    assert torture.start("impersonate", runs).wait().returncode == 0
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = torture.start("impersonate", runs).wait()
    assert done.returncode == 2
    assert "holds another run; weights: expected w.safetensors (sha256 " in done.stderr


@pytest.mark.parametrize("name", ["clean", *(pytest.param(n, marks=pytest.mark.slow) for n in ("align", "train"))])
def test_a_file_that_cannot_be_read_to_its_end_is_named_and_ctrl_c_ends_the_wait(name, torture):
    runs = torture.trial(name)
    child = torture.start(name, runs, Fault(below=str(runs), kind="stall", name="p1/1.png"))
    child.until(lambda: "still being read" in child.said)
    assert "p1/1: still being read after 0 s; Ctrl-C stops the run" in child.said
    child.signal(signal.SIGINT)
    done = child.wait(60)
    assert (done.returncode, "stopped" in done.stderr, "Traceback" in done.stderr) == (130, True, False), done.stderr
    assert torture.finish(name, runs) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["impersonate", "verify", "train"])
def test_with_little_memory_it_ends_or_says_so(name, torture, rounds):
    """Arrow, oneDNN and PyTorch abort or read a null pointer where they are refused memory: a kill like any other."""
    draw = random.Random(name)
    for _ in range(2 * rounds):
        runs = torture.trial(name)
        done = torture.start(name, runs, Fault(below=str(runs), kind="limit", at=draw.randrange(8, 256))).wait()
        assert done.returncode in (0, 2, -signal.SIGABRT, -signal.SIGSEGV), done.stderr
        assert "Traceback" not in done.stderr
        assert torture.start(name, runs).wait().returncode == 0
        assert torture.left(name, runs) == torture.whole(name).content


@pytest.mark.slow
def test_the_program_prints_its_figures():
    program = Path(__file__).parents[1] / "torture.py"
    words = ("--command", "clean", "--rounds", "1", "--fault", "half", "--jobs", "1")
    done = subprocess.run([sys.executable, program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"{'kills': 1, 'faults': [1-9]\d*, 'problems_found': 0}", done.stdout.splitlines()[-1])
