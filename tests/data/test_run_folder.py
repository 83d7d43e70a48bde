"""The output folder of a run: whatever happens in between, the same bytes in the end."""

import contextlib
import hashlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from rows import row

from fastadv.core.notices import Notice
from fastadv.data import ManifestRow, RunFolder, RunFolderError, encode_png, face_id, read_image, read_manifest

CONFIG = {"attack": {"name": "fim", "eps": 0.03}, "seed": 7}
NAMES = [f"P{index % 3}/P{index % 3}_{index:04d}" for index in range(12)]


def image(name: str) -> np.ndarray:
    return np.random.default_rng(face_id(name)).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def written(name: str) -> ManifestRow:
    """The row as it is read back: with the hash of its image."""
    return row(name, image_hash=hashlib.sha256(encode_png(image(name))).hexdigest())


def begin(path: Path, config: dict = CONFIG) -> None:
    """A run with one image, which is what claims the folder."""
    with RunFolder.open(path, config) as run:
        write(run, NAMES[:1])


def write(run: RunFolder, names: list[str]) -> None:
    for name in names:
        run.write(row(name), image(name))


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


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


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        run.finish(NAMES)
    return content(path)


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


def crash_torn_line(path: Path) -> None:
    with open(path / "manifest.jsonl", "ab") as journal:
        journal.write(b'{"name": "P0/P0_00')


def crash_garbage_line(path: Path) -> None:
    with open(path / "manifest.jsonl", "ab") as journal:
        journal.write(b"\0\0\0\n[1]\n")


def crash_image_lost(path: Path) -> None:
    (path / "images" / f"{NAMES[1]}.png").unlink()


def crash_image_short(path: Path) -> None:
    file = path / "images" / f"{NAMES[1]}.png"
    file.write_bytes(file.read_bytes()[:-5])


def crash_temporaries(path: Path) -> None:
    for folder in (path, path / "images", path / "images" / "P1"):
        (folder / ".0123456789abcdef.fastadv-tmp").write_bytes(b"half")


def crash_image_without_row(path: Path) -> None:
    (path / "images" / f"{NAMES[5]}.png").parent.mkdir(exist_ok=True)
    (path / "images" / f"{NAMES[5]}.png").write_bytes(b"half")


def crash_stale_lock(path: Path) -> None:
    (path / ".lock").touch()


@pytest.mark.parametrize(
    ("crash", "left"),
    [
        (crash_torn_line, 4),
        (crash_garbage_line, 4),
        (crash_image_lost, 3),
        (crash_image_short, 3),
        (crash_temporaries, 4),
        (crash_image_without_row, 4),
        (crash_stale_lock, 4),
    ],
)
def test_a_crash_is_made_good(
    tmp_path: Path, expected: dict[str, bytes], crash: Callable[[Path], None], left: int
) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES[:4])
    crash(path)
    with RunFolder.open(path, CONFIG) as run:
        assert len(run.done) == left
        write(run, [name for name in NAMES if name not in run.done])
        run.finish(NAMES)
    assert content(path) == expected


def test_a_crash_inside_finish(tmp_path: Path, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        journal = (path / "manifest.jsonl").read_bytes()
        run.finish(NAMES)
    (path / "manifest.jsonl").write_bytes(journal)
    with RunFolder.open(path, CONFIG) as run:
        assert run.finished
        assert run.done == set(NAMES)
    assert content(path) == expected


CHILD = """
import os, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_run_folder import CONFIG, NAMES, image
from fastadv.data import RunFolder
from rows import row
run = RunFolder.open(sys.argv[1], CONFIG)
for name in NAMES[:5]:
    run.write(row(name), image(name))
print("ready", flush=True)
sys.stdin.read()
"""


def test_kill_9_and_go_on(tmp_path: Path, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(
            RunFolderError, match="expected a folder that no other process writes to, got a run that is being written"
        ):
            RunFolder.open(path, CONFIG)
        child.send_signal(signal.SIGKILL)
    with RunFolder.open(path, CONFIG) as run:
        assert run.done == set(NAMES[:5])
        write(run, NAMES[5:])
        run.finish(NAMES)
    assert content(path) == expected


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


def damage_gone(file: Path) -> None:
    file.unlink()


def damage_zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def damage_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", [damage_gone, damage_zeroed, damage_short])
def test_a_damaged_image_is_made_again(
    tmp_path: Path, expected: dict[str, bytes], damage: Callable[[Path], None], finished: bool
) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        if finished:
            run.finish(NAMES)
        file = run.image_path(NAMES[4])
    damage(file)
    with (
        pytest.warns(Notice, match=f"missing or damaged and are generated again: {NAMES[4]}")
        if finished
        else contextlib.nullcontext()
    ):
        run = RunFolder.open(path, CONFIG)
    with run:
        assert not run.finished
        assert run.done == set(NAMES) - {NAMES[4]}
        write(run, NAMES[4:5])
        run.finish(NAMES)
    assert content(path) == expected


def test_temporary_files_of_a_killed_call_go_also_from_a_finished_run(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        run.finish(NAMES)
    crash_temporaries(path)
    RunFolder.open(path, CONFIG).close()
    assert content(path) == expected


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


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["replace", "write"])
def test_a_full_disk_under_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes], call: str
) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES[:2])
        before = content(path)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match=rf"No space left on device: '.*{NAMES[2]}\.png'"):
                run.write(row(NAMES[2]), image(NAMES[2]))
        assert content(path) == before
        assert run.done == set(NAMES[:2])
        write(run, NAMES[2:])  # room was made
        run.finish(NAMES)
    assert content(path) == expected


def test_a_full_disk_amid_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    really_write = os.write

    def half(file: int, data: bytes) -> int:
        if bytes(data[:1]) != b"{":
            return full()  # the rest of the line
        return really_write(file, bytes(data[: len(data) // 2]))

    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES[:2])
        journal = (path / "manifest.jsonl").read_bytes()
        data = encode_png(image(NAMES[2]))
        with monkeypatch.context() as patch:
            patch.setattr("fastadv.data.writer.write_atomically", lambda *_, **__: None)
            patch.setattr(os, "write", half)
            with pytest.raises(OSError, match=r"No space left on device: '.*manifest\.jsonl'"):
                run.write(row(NAMES[2]), data)
        assert (path / "manifest.jsonl").read_bytes() == journal
        write(run, NAMES[2:])
        run.finish(NAMES)
    assert content(path) == expected


def test_a_full_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(OSError, match=r"manifest\.parquet"):
                run.finish(NAMES)
        assert not run.finished
        run.finish(NAMES)
    assert content(path) == expected


def test_a_disk_that_is_full_amid_the_manifest(tmp_path: Path, expected: dict[str, bytes]) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        before, limits = content(path), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the first bytes fit
        try:
            with pytest.raises(OSError, match=r"File too large: '.*manifest\.parquet'"):
                run.finish(NAMES)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert content(path) == before
        run.finish(NAMES)
    assert content(path) == expected


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
