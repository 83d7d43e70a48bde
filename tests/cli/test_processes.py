"""`fastadv attack --workers`: several processes make the bytes of one."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from photographs import write_detector
from shard_commands import TWO, figures, run, words

from fastadv.core.cores import given_to_children, own_cores, shares
from fastadv.core.notices import Notice
from fastadv.data import read_manifest
from fastadv.runs.status import run_status
from fastadv.studies import workers
from fastadv.studies.attack import attack_as_planned

PROC = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")


def test_cores_are_divided_and_children_keep_to_theirs():
    cores = own_cores()
    assert sorted(cores) == sorted(set(cores))
    for count in {1, 2, len(cores)} - {c for c in (2,) if len(cores) < 2}:
        parts = shares(count)
        assert [len(part) for part in parts] == [len(cores) // count] * count
        assert len({core for part in parts for core in part}) == sum(map(len, parts))
    if not hasattr(os, "sched_getaffinity"):
        return
    before = os.environ.get("OMP_NUM_THREADS")
    with given_to_children(cores[-1:], 3):
        said = subprocess.check_output(
            [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0), os.environ['OMP_NUM_THREADS'])"]
        )
    assert said.split() == [str(cores[-1]).encode(), b"3"]
    assert (own_cores(), os.environ.get("OMP_NUM_THREADS")) == (cores, before)


def waits(process, out, images):
    """Until so many images are there."""
    until = time.monotonic() + 240
    while len(list(out.glob("shards/*/images/*/*.png"))) < images and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)


def alive(group):
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = stat.read_text().rpartition(") ")[2].split()[:3]
            found += [stat] if int(of) == group and state != "Z" else []
    return found


@TWO
def test_what_cannot_begin_anew_stays(single, inside, faces, content, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(single("impersonate"), out)
    for more, text in (
        (("--limit", "1"), "shard: expected at most one for each of the 1 images, got 1/2"),
        ((), "out: expected nothing beside the run to begin it anew in several processes, got notes.txt; remove it"),
    ):
        before = content(out)
        code, said = inside(*words(faces, out, "--workers", "2", "--fresh", *more))
        assert (code, text in said) == (2, True), said
        assert content(out) == before
        (out / "notes.txt").write_text("years of work")


@pytest.fixture
def one_by_one(monkeypatch):
    """The shards that the processes of a run would make, made in this process."""
    made = []

    def attack(wanted, devices, images, progress):
        for shard in devices:
            made.append(str(shard))
            attack_as_planned(replace(wanted, shard=shard))

    monkeypatch.setattr(workers, "_attack", attack)
    return made


@TWO
def test_finished_shards_are_merged_at_once(faces, content, one_by_one, tmp_path, capsys):
    expected, out = tmp_path / "single", tmp_path / "run"
    run(capsys, *words(faces, expected, "--batch", "3"))
    for shard in ("1/2", "2/2"):
        run(capsys, *words(faces, out, "--shard", shard, "--batch", "3"))
    whole = tmp_path / "whole"
    shutil.copytree(out, whole)
    moved = "images/person0/1.png"  # the merge was killed here
    (out / moved).parent.mkdir(parents=True)
    shutil.move(next(out.glob(f"shards/*/{moved}")), out / moved)
    run(capsys, *words(faces, out, "--workers", "2", "--batch", "0"))  # 0: as the shards have measured
    assert one_by_one == []
    assert content(out) == content(expected)
    next(whole.glob(f"shards/*/{moved}")).write_bytes(b"")
    with pytest.warns(Notice, match="images are missing or damaged and are generated again: person0/1"):
        run(capsys, *words(faces, whole, "--workers", "2", "--batch", "0"))
    assert one_by_one == ["1/2", "2/2"]
    assert content(whole) == content(expected)


@TWO
def test_an_unfinished_run_of_one_process_goes_on_in_one(single, faces, content, one_by_one, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(single("impersonate"), out)
    (out / "manifest.parquet").unlink()
    (out / "manifest.jsonl").touch()  # as a repair begins that is killed
    with pytest.warns(Notice, match="run: holds an unfinished run of one process, and is continued in one process"):
        run(capsys, *words(faces, out, "--workers", "2"))
    assert one_by_one == []
    assert content(out) == content(single("impersonate"))


@TWO
def test_device_memory_is_given_back_before_the_processes_start(faces, one_by_one, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(workers.torch.cuda, "empty_cache", lambda: one_by_one.append("given back"))
    run(capsys, *words(faces, tmp_path, "--workers", "2", "--limit", "2"))
    assert one_by_one == ["given back", "1/2", "2/2"]


def many(faces, out, *more):
    """A run of two processes that takes some seconds."""
    return words(faces, out, "--workers", "2", "--steps", "40", *more)


@pytest.fixture
def process(monkeypatch):
    """Start the command line at the head of a group of processes, as a shell does; what is left of it is killed."""
    started = []

    def call(*arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "fastadv", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield call
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.communicate()


@pytest.fixture(scope="module")
def long_single(faces, fastadv, tmp_path_factory):
    out = tmp_path_factory.mktemp("single") / "run"
    done = fastadv(*words(faces, out, "--steps", "40"))
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@TWO
def test_two_processes_make_the_run_of_one(long_single, faces, fastadv, content, tmp_path):
    out = tmp_path / "run"
    done = fastadv(*many(faces, out))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert figures(json.loads(done.stdout)) == figures(long_single[1])
    assert content(out) == content(long_single[0])
    assert all("threads 1" in row.software for row in read_manifest(out))
    damaged = out / "images" / "person1" / "1.png"
    damaged.write_bytes(b"")
    again = fastadv(*many(faces, out))
    assert "images are missing or damaged and are generated again: person1/1" in again.stderr
    assert content(out) == content(long_single[0])


@TWO
@PROC
@pytest.mark.slow
@pytest.mark.parametrize("whom", ["all", "parent", "child"])
def test_killed_processes_go_on(whom, long_single, faces, process, fastadv, content, tmp_path):
    out = tmp_path / "run"
    running = process(*many(faces, out))
    waits(running, out, 2)
    if whom == "all":
        os.killpg(running.pid, signal.SIGKILL)
    elif whom == "parent":
        running.kill()
    else:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        workers = [pid for pid in children if b"multiprocessing.spawn" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGKILL)
    _, said = running.communicate(timeout=120)
    if whom == "child":
        assert running.returncode == 2
        assert "error: shard 2/2: expected its process to finish, got exit code -9; the same command" in said
    else:
        assert running.returncode == -9
    assert len(list(out.glob("shards/*/images/*/*.png"))) < 18
    assert run_status(out)[0].state == "unfinished"
    again = fastadv(*many(faces, out))
    assert again.returncode == 0, again.stderr
    assert content(out) == content(long_single[0])


@pytest.mark.slow
@TWO
@PROC
def test_ctrl_c_ends_all_of_them_cleanly(long_single, faces, process, fastadv, content, tmp_path):
    out = tmp_path / "run"
    running = process(*many(faces, out))
    waits(running, out, 2)
    os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert said == "stopped; finished work is on disk, and the same command continues from there\n"
    until = time.monotonic() + 60
    while alive(running.pid):  # the tracker of multiprocessing ends a moment later
        assert time.monotonic() < until
    found, shards = run_status(out)
    assert (found.state, found.last_error, set(shards)) == ("unfinished", None, {"1-of-2", "2-of-2"})
    assert 2 <= found.done < 18
    assert not [p for p in out.rglob("*") if p.name.endswith(".fastadv-tmp") or p.name == ".lock"]
    again = fastadv(*many(faces, out))
    assert again.returncode == 0, again.stderr
    assert content(out) == content(long_single[0])


@TWO
def test_an_error_of_one_process_names_its_shard(faces, fastadv, tmp_path):
    out = tmp_path / "run"
    (out / "shards").mkdir(parents=True)
    (out / "shards" / "2-of-2").write_text("a file")
    done = fastadv(*many(faces, out))
    assert done.returncode == 2
    assert "error: shard 2/2: out: expected a folder for the run, got the file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@TWO
@pytest.mark.slow
def test_processes_are_given_detector_and_ensemble(faces, fastadv, content, tmp_path):
    write_detector(tmp_path / "mtcnn.safetensors")
    more = ("--align", "--detector-weights", tmp_path / "mtcnn.safetensors", "--least-face", "60")
    for out, processes in (("one", ()), ("two", ("--workers", "2"))):
        given = words(faces, tmp_path / out, "--ensemble", "synth-vgg", *more, *processes)
        done = fastadv(*["e-fim" if word == "fim" else word for word in given])
        assert done.returncode == 0, done.stderr
    assert content(tmp_path / "two") == content(tmp_path / "one")


@TWO
@pytest.mark.slow
def test_processes_begin_anew(long_single, faces, fastadv, content, tmp_path, capsys):
    out = tmp_path / "run"
    run(capsys, *words(faces, out, "--shard", "1/3"))
    for more in (("--fresh",), ("--fresh", "--seed", "8"), ("--fresh", "--seed", "7")):
        done = fastadv(*many(faces, out, *more))
        assert done.returncode == 0, done.stderr
    assert content(out) == content(long_single[0])
