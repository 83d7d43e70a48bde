"""What the driver keeps, in a folder and at a URL: with the workers in this process."""

import random
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace

import fsspec
import pytest
from killed import Killed

import fastadv as fa
from fastadv.core.notices import Notice
from fastadv.core.remote import RemotePath
from fastadv.data import read_manifest
from fastadv.distributed import Cluster
from fastadv.distributed.cluster import packed
from fastadv.studies.attack import attack_as_planned, attack_on_ray

pytest.importorskip("ray", reason="ray is not installed: the extra `ray`")


@dataclass(frozen=True, kw_only=True)
class Here(Cluster):
    """Workers in this process, whose blocks end in any order, some of them twice.

    Attributes:
        until: The driver is killed after so many blocks.
    """

    until: int = 99
    threads = 1

    def connected(self):
        return nullcontext()

    def results(self, worker, task, blocks):
        order = [*blocks, *blocks[:1]]
        random.Random(len(blocks)).shuffle(order)
        with warnings.catch_warnings():
            here = worker(packed(task), "cpu", 1)
            for k, block in enumerate(order):
                if k == self.until:
                    raise Killed
                yield here({name: block[name].to_pylist() for name in block.column_names})


@pytest.fixture(params=["folder", "url"])
def out(request, tmp_path):
    """Where a run goes, and what lies there."""
    if request.param == "folder":
        yield tmp_path / "run"
        return
    yield "memory://bucket/run"
    memory = fsspec.filesystem("memory")
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


@pytest.fixture
def stored(out, content):
    def read():
        if not isinstance(out, str):
            return content(out)
        memory = fsspec.filesystem("memory")
        return {path.removeprefix("/bucket/run/"): memory.cat(path) for path in memory.find("/bucket/run")}

    return read


def test_a_driver_that_is_killed_goes_on(out, stored, plan, single):
    expected = single()
    said = []
    with pytest.raises(Killed):
        attack_on_ray(plan(out), Here(until=2), progress=lambda *told: said.append(told))
    kept = said[-1][1]
    assert 4 <= kept < 18
    begun = stored()
    assert "manifest.parquet" not in begun
    assert ("run.json" in begun) is not isinstance(out, str)
    again = []
    summary = attack_on_ray(plan(out), Here(), progress=lambda *told: again.append(told))
    assert again[0] == ("attacking", kept, 18)
    assert again[-1] == ("attacking", 18, 18)
    assert stored() == expected
    assert attack_on_ray(plan(out), Here()) == summary  # nothing is left
    assert stored() == expected


def test_images_that_are_lost_are_generated_again(out, stored, plan, single):
    attack_on_ray(plan(out), Here())
    lost = next(path for path in stored() if path.startswith("images/"))
    if isinstance(out, str):
        fsspec.filesystem("memory").rm(f"/bucket/run/{lost}")
    else:
        (out / lost).unlink()
    with pytest.warns(Notice, match="images are missing.* generated again: "):
        attack_on_ray(plan(out), Here())
    assert stored() == single()


def test_another_run_is_refused_and_begun_anew_where_that_is_wanted(out, stored, plan, single):
    attack_on_ray(plan(out, limit=5), Here())
    before = stored()
    with pytest.raises(fa.Error, match=r"run: holds another run; .*limit") as error:
        attack_on_ray(plan(out), Here())
    assert str(out) in str(error.value)
    assert stored() == before
    attack_on_ray(plan(out, fresh=True), Here())
    assert stored() == single()


def test_an_error_before_the_new_run_begins_leaves_the_old_one(out, stored, plan, tmp_path):
    attack_on_ray(plan(out, limit=5), Here())
    before = stored()
    with pytest.raises(fa.Error, match="missing.csv"):
        attack_on_ray(replace(plan(out, fresh=True), pairs=tmp_path / "missing.csv"), Here())
    assert stored() == before


def test_a_removal_that_ends_early_is_repeated(plan, single, monkeypatch):
    """Whatever is left, and also where the new run ends before its description is written."""
    out, memory, unlink, left = "memory://bucket/run", fsspec.filesystem("memory"), RemotePath.unlink, [3]

    def fails(self):
        left[0] -= 1
        if not left[0]:
            raise OSError(f"{self}: lost connection")
        unlink(self)

    try:
        attack_on_ray(plan(out, limit=5), Here())
        monkeypatch.setattr(RemotePath, "unlink", fails)
        with pytest.raises(OSError, match="lost connection"):
            attack_on_ray(plan(out, fresh=True), Here())
        monkeypatch.setattr(RemotePath, "unlink", unlink)
        attack_on_ray(plan(out, fresh=True), Here())
        read = {path.removeprefix("/bucket/run/"): memory.cat(path) for path in memory.find("/bucket/run")}
        assert read == single()
        memory.rm("/bucket", recursive=True)
        memory.pipe_file("/bucket/run/.hashes.json", b"{}")
        attack_on_ray(plan(out), Here())
        assert memory.exists("/bucket/run/run.json")
    finally:
        memory.rm("/bucket", recursive=True)


def test_something_else_is_left_alone(out, stored, plan):
    if isinstance(out, str):
        fsspec.filesystem("memory").pipe_file("/bucket/run/thesis.txt", b"years of work")
    else:
        out.mkdir()
        (out / "thesis.txt").write_bytes(b"years of work")
    for fresh in (False, True):
        with pytest.raises(fa.Error, match="out: expected a new or empty folder, or that of a run, got .*thesis.txt"):
            attack_on_ray(plan(out, fresh=fresh), Here())
    assert stored() == {"thesis.txt": b"years of work"}


def test_one_process_goes_on_with_a_run_of_many(plan, single, content, tmp_path):
    with pytest.raises(Killed):
        attack_on_ray(plan(tmp_path / "run"), Here(until=1))
    assert 0 < len(read_manifest(tmp_path / "run")) < 18
    attack_as_planned(plan(tmp_path / "run"))
    assert content(tmp_path / "run") == single()
