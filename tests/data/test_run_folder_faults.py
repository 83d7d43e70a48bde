"""The output folder of a run after kills, damage and full disks: the same bytes in the end."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rows import row
from run_files import CONFIG, NAMES, content, image, write

from fastadv.core.notices import Notice
from fastadv.data import RunFolder, RunFolderError, encode_png


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
