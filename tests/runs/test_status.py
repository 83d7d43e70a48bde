"""How far a run and its shards are."""

import errno
import json
import os
import time

import pytest
from rows import row
from run_files import content, image
from shard_files import CONFIG, names, write, write_shards

from fastadv.core.errors import FileError
from fastadv.data import RunFolder, RunFolderError
from fastadv.runs import status
from fastadv.runs.merging import merge_shards
from fastadv.runs.sharding import Shard
from fastadv.runs.status import run_status


def test_how_far_a_run_is(tmp_path):
    run = tmp_path / "run"
    order, now = names(6), time.time()
    write(run, CONFIG, order[:4], total=6, finish=False)
    for k, name in enumerate(order[:4]):
        os.utime(run / "images" / f"{name}.png", (now - 10 + k / 2,) * 2)
    found, shards = run_status(run)
    assert (found.state, found.images, found.done, found.left, found.last_error, shards) == (
        *("unfinished", 6, 4, 2, None, {}),
    )
    assert found.images_per_second == pytest.approx(3 / 1.5, rel=1e-3)
    assert found.seconds_since_image == pytest.approx(8.5, abs=5)
    before = content(run)
    with open(run / "manifest.jsonl", "ab") as journal:
        journal.write(b'[1]\n{"name": "cut sho')  # what a kill can leave
    assert run_status(run)[0].done == 5
    (run / "manifest.jsonl").write_bytes(before["manifest.jsonl"])
    assert content(run) == before  # nothing is written
    write(run, CONFIG, [], total=6, finish=False)
    with RunFolder.open(run, CONFIG) as again:
        for name in order[4:]:
            again.write(row(name), image(name))
        again.finish(order)
    found, _ = run_status(run)
    assert (found.state, found.images, found.done, found.left) == ("finished", 6, 6, 0)
    assert (found.images_per_second, found.seconds_since_image) == (None, None)


def test_how_far_shards_are(tmp_path):
    order = names(10)
    write_shards(tmp_path, order, 3, only={1})
    last = tmp_path / "shards" / "3-of-3"
    config = Shard.parse("3/3").identity(CONFIG)

    def fail():
        with RunFolder.open(last, config, images=10) as run:
            run.write(row(order[2]), image(order[2]))
            raise FileError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.png")

    with pytest.raises(FileError):
        fail()
    found, shards = run_status(tmp_path)
    assert {name: (each.state, each.images, each.done, each.left) for name, each in shards.items()} == {
        "1-of-3": ("finished", 4, 4, 0),
        "2-of-3": ("missing", 3, 0, 3),
        "3-of-3": ("unfinished", 3, 1, 2),
    }
    assert (found.state, found.images, found.done, found.left) == ("unfinished", 10, 5, 5)
    assert found.last_error == "3-of-3: [Errno 28] No space left on device: 'x.png'"
    write_shards(tmp_path, order, 3, only={2})
    write(last, config, [], total=10, finish=False)
    assert run_status(tmp_path)[0].last_error is None  # continued since
    with RunFolder.open(last, config) as run:
        for name in (order[5], order[8]):
            run.write(row(name), image(name))
        run.finish(order[2::3])
    assert run_status(tmp_path)[0].state == "not merged"
    merge_shards(tmp_path)
    found, shards = run_status(tmp_path)
    assert (found.state, found.done, shards) == ("finished", 10, {})


def test_a_run_that_is_finished_meanwhile(tmp_path, monkeypatch):
    write(tmp_path, CONFIG, names(3), total=3, finish=False)

    def finishing(*given):
        monkeypatch.undo()
        with RunFolder.open(tmp_path, CONFIG) as run:
            run.finish(names(3))
        return open(*given)

    monkeypatch.setattr(status, "open", finishing, raising=False)
    found, _ = run_status(tmp_path)
    assert (found.state, found.done, found.left) == ("finished", 3, 0)


def test_a_run_of_an_earlier_version_says_no_total_and_goes_on(tmp_path):
    write(tmp_path, CONFIG, names(2), total=5, finish=False)
    file = tmp_path / "run.json"
    saved = json.loads(file.read_text())
    assert saved.pop("images") == 5
    assert "images" not in saved["config"]
    file.write_text(json.dumps(saved))
    found, _ = run_status(tmp_path)
    assert (found.images, found.done, found.left) == (None, 2, None)
    with RunFolder.open(tmp_path, CONFIG, images=5) as run:
        assert run.done == set(names(2))


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "expected the folder of a run, got one without run.json or shards"),
        ({"run.json": b"{}"}, "run.json: expected the description of a run, got a damaged file"),
        ({"run.json": None, "manifest.parquet": b"PAR0"}, "manifest.parquet: expected a Parquet file, got another"),
    ],
)
def test_no_run_is_one_sentence(files, text, tmp_path):
    write(tmp_path / "whole", CONFIG, names(1), total=1)
    run = tmp_path / "run"
    run.mkdir()
    for name, data in files.items():
        (run / name).write_bytes((tmp_path / "whole" / name).read_bytes() if data is None else data)
    for place in (run, tmp_path / "nowhere"):
        with pytest.raises(RunFolderError, match=text if place == run else "expected the folder of a run"):
            run_status(place)
