"""The output folder of a run: whatever happens in between, the same bytes in the end."""

import json
import logging
import os
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import row
from run_files import CONFIG, NAMES, begin, content, image, write, written

from fastadv.core.notices import Notice
from fastadv.data import ManifestRow, RunFolder, RunFolderError, encode_png, read_image, read_manifest


def test_images_that_other_processes_wrote(tmp_path: Path, expected: dict[str, bytes]) -> None:
    for count in (5, len(NAMES)):  # the second call goes on
        with RunFolder.open(tmp_path, CONFIG) as run:
            run.claim()
            for name in NAMES[:count]:
                data, new = encode_png(image(name)), name not in run.done
                run.image_path(name).parent.mkdir(exist_ok=True)
                run.image_path(name).write_bytes(data)
                assert [run.add(written(name), len(data)) for _ in range(2)] == [new, False]
            assert run.done == set(NAMES[:count])
            if count == len(NAMES):
                run.finish(NAMES)
    assert content(tmp_path) == expected


def test_images_that_lie_elsewhere(tmp_path: Path) -> None:
    there = set(NAMES[:4])

    def lost(rows: Iterable[tuple[ManifestRow, int | None]]) -> list[str]:
        return [row.name for row, _ in rows if row.name not in there]

    with RunFolder.open(tmp_path, CONFIG, lost=lost) as run:
        for name in NAMES[:6]:
            run.add(written(name), 100)
    with RunFolder.open(tmp_path, CONFIG, lost=lost) as run:
        assert run.done == there


def test_a_whole_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        assert run.done == frozenset()
        write(run, NAMES)
        assert run.done == set(NAMES)
        assert [r.name for r in read_manifest(run.path)] == NAMES
        run.finish(sorted(NAMES))
        run.finish(sorted(NAMES))
    files = content(tmp_path / "run")
    assert sorted(files) == sorted(["manifest.parquet", "run.json", *(f"images/{n}.png" for n in NAMES)])
    assert read_manifest(tmp_path / "run") == [written(name) for name in sorted(NAMES)]
    for name in NAMES:
        np.testing.assert_array_equal(read_image(run.image_path(name)), image(name))
    described = json.loads(files["run.json"])
    assert described["config"] == CONFIG
    assert described["versions"]["torch"] == torch.__version__


def test_order_and_restarts_do_not_show(tmp_path: Path, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    for part in (NAMES[7:], NAMES[3:7], [], NAMES[:3]):
        with RunFolder.open(path, CONFIG) as run:
            write(run, part)
    with RunFolder.open(path, CONFIG) as run:
        assert run.done == set(NAMES)
        run.finish(NAMES)
    assert content(path) == expected


def test_threads_may_write(tmp_path: Path, expected: dict[str, bytes]) -> None:
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: run.write(row(name), encode_png(image(name))), NAMES))
        run.finish(NAMES)
    assert content(tmp_path / "run") == expected


def test_one_writer_in_one_process_too(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", CONFIG)
    late = RunFolder.open(tmp_path / "run", CONFIG)
    write(run, NAMES[:1])
    for _ in range(2):
        with pytest.raises(RunFolderError, match="expected a folder that no other process writes to"):
            RunFolder.open(tmp_path / "run", CONFIG)
        with pytest.raises(
            RunFolderError, match="expected a folder that no other process writes to"
        ):  # opened before the first image was written
            write(late, NAMES[:1])
    run.close()
    run.close()
    RunFolder.open(tmp_path / "run", CONFIG).close()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "seed": 8}, "seed: expected 7 (as in run.json), got 8"),
        (
            {**CONFIG, "attack": {"name": "fim", "eps": 0.04}},
            "attack.eps: expected 0.03 (as in run.json), got 0.04",
        ),
        ({"attack": CONFIG["attack"]}, "seed: expected 7 (as in run.json), got none"),
        ({**CONFIG, "extra": [1]}, "extra: expected none (as in run.json), got [1]"),
        ({**CONFIG, "seed": True}, "seed: expected 7 (as in run.json), got true"),
        ({**CONFIG, "faces": "0f" * 32}, "faces: expected none (as in run.json), got sha256 0f0f0f0f"),
    ],
)
def test_another_configuration_is_named(tmp_path: Path, config: dict, message: str) -> None:
    begin(tmp_path / "run")
    before = content(tmp_path)
    with pytest.raises(RunFolderError, match=re.escape(f"{message}; use --fresh or another --out")):
        RunFolder.open(tmp_path / "run", config)
    assert content(tmp_path) == before
    RunFolder.open(tmp_path / "run", {"seed": 7, **CONFIG}).close()  # the order of keys is no difference


def test_a_part_is_called_as_people_call_it(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", {"landmarks": "0f" * 32}, shown={"landmarks": "old.txt"}) as run:
        write(run, NAMES[:1])
    with pytest.raises(RunFolderError, match=r"landmarks: expected old\.txt \(as in run\.json\), got new\.txt; "):
        RunFolder.open(tmp_path / "run", {"landmarks": "1e" * 32}, shown={"landmarks": "new.txt"})


def test_fresh_removes_the_run_and_nothing_else(tmp_path: Path, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    begin(path, {"seed": 8})
    (path / "verification.json").write_text("{}")
    (path / "notes.txt").write_text("mine")
    with RunFolder.open(path, CONFIG, fresh=True) as run:
        assert run.done == frozenset()
        assert not run.finished
        (path / "notes.txt").rename(tmp_path / "notes.txt")
        write(run, NAMES)
        run.finish(NAMES)
    assert content(path) == expected


def test_a_fresh_run_that_fails_before_its_first_image_does_not_block_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begin(path, {"seed": 8})
    (path / "notes.txt").write_text("mine")
    RunFolder.open(path, CONFIG, fresh=True).close()
    begin(path)
    assert (path / "notes.txt").read_text() == "mine"


def test_a_manifest_that_cannot_be_read_is_made_again(tmp_path: Path, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        run.finish(NAMES)
    (path / "manifest.parquet").write_bytes(b"")
    with pytest.warns(Notice, match="manifest.parquet: .*; all images are generated again"):
        run = RunFolder.open(path, CONFIG)
    with run:
        assert run.done == frozenset()
        write(run, NAMES)
        run.finish(NAMES)
    assert content(path) == expected


def test_nothing_is_made_before_the_first_image(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "new" / "run", CONFIG) as run:
        with pytest.raises(ValueError, match="png: expected"):
            run.write(row("a"), b"JFIF")
        assert os.listdir(tmp_path) == []
        run.claim()
        assert sorted(os.listdir(tmp_path / "new" / "run")) == [".lock", "images", "manifest.jsonl", "run.json"]


def fail(path: Path, error: Exception) -> None:
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES[len(run.done) : len(run.done) + 2])
        assert not (path / "error.txt").exists()
        raise error


def test_the_last_error_is_kept_until_the_run_goes_on(tmp_path: Path, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    for error, said in (
        (OSError(28, "No space\nleft", "x.png"), "[Errno 28] No space left: 'x.png'\n"),
        (RunFolderError("name: expected a, got b"), "name: expected a, got b\n"),
        (RuntimeError("out of luck"), "RuntimeError: out of luck\n"),
    ):
        with pytest.raises(type(error)):
            fail(path, error)
        assert (path / "error.txt").read_text() == said
    with pytest.raises(KeyboardInterrupt), RunFolder.open(path, CONFIG):
        raise KeyboardInterrupt
    assert not (path / "error.txt").exists()
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES[6:])
        run.finish(NAMES)
    assert content(path) == expected


def test_an_error_before_the_first_image_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RunFolder.open(tmp_path / "run", CONFIG):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_made_is_said_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        RunFolder.open(tmp_path / "run", CONFIG)


def test_other_software_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin(tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    saved = json.loads(file.read_text())
    saved["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(saved))
    with caplog.at_level(logging.WARNING, logger="fastadv"):
        RunFolder.open(tmp_path / "run", CONFIG).close()
    assert "continues with other software than it began with: torch 1.0 -> " in caplog.text


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(
        RunFolderError, match=r"out: expected a new or empty folder.* no run\.json and holds thesis\.txt"
    ):
        RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(RunFolderError, match="out: expected a folder for the run, got the file"):
        RunFolder.open(tmp_path / "thesis.txt", CONFIG)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_damaged_description(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("[]")
    with pytest.raises(RunFolderError, match=r"run\.json: expected the description of a run"):
        RunFolder.open(tmp_path / "run", CONFIG)


@pytest.mark.parametrize("config", [{"a": float("nan")}, {"a": object()}, [1]], ids=["nan", "object", "list"])
def test_a_configuration_is_json(tmp_path: Path, config: object) -> None:
    with pytest.raises(ValueError, match="config: expected"):
        RunFolder.open(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a//b", "a/", ".", "a\\b", "a\0b", "a/./b"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with RunFolder.open(tmp_path / "run", CONFIG) as run, pytest.raises(ValueError, match="name: expected"):
        run.write(row(name), image("x"))
    assert os.listdir(tmp_path) == []


def test_links_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        run.claim()
        (run.path / "images" / "P0").symlink_to(tmp_path / "outside")
        with pytest.raises(ValueError, match="name: expected a folder inside of the run.s, got .*, a link to outside"):
            run.write(row("P0/x"), image("x"))
    assert os.listdir(tmp_path / "outside") == []


def test_what_cannot_be_written(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", CONFIG)
    with pytest.raises(ValueError, match="png: expected a PNG file"):
        run.write(row("a"), b"JFIF")
    with pytest.raises(ValueError, match="uint8"):
        run.write(row("a"), np.zeros((2, 2, 3)))
    run.write(row("a"), image("a"))
    with pytest.raises(ValueError, match="name: expected one that is not written yet, got a"):
        run.write(row("a"), image("a"))
    run.finish(["a"])
    with pytest.raises(RunFolderError, match="expected .* run.*, got a finished one"):
        run.write(row("b"), image("b"))
    run.close()
    with pytest.raises(RunFolderError, match="expected .* run.*, got a closed one"):
        run.write(row("b"), image("b"))
    with pytest.raises(RunFolderError, match="closed"):
        run.finish(["a"])


def test_the_order_is_checked(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        write(run, NAMES[:3])
        with pytest.raises(RunFolderError, match=f"not done yet: {NAMES[3]}"):
            run.finish(NAMES[:4])
        with pytest.raises(RunFolderError, match=f"done but not in the order: {NAMES[2]}"):
            run.finish(NAMES[:2])
        with pytest.raises(RunFolderError, match="twice"):
            run.finish([*NAMES[:3], NAMES[0]])
        run.finish(NAMES[:3])
        with pytest.raises(RunFolderError, match="expected the order in which the run was finished, got another"):
            run.finish(NAMES[2::-1])


def test_finish_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        started.set()
        go.wait(5)

    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        monkeypatch.setattr("fastadv.data.writer.write_atomically", slow)
        thread = threading.Thread(target=run.write, args=(row("a"), image("a")))
        thread.start()
        assert started.wait(5)
        with pytest.raises(RunFolderError, match="expected an open run .*, got one whose images are being written"):
            run.finish([])
        go.set()
        thread.join()


def test_an_empty_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", {}) as run:
        run.finish([])
    assert read_manifest(tmp_path / "run") == []
