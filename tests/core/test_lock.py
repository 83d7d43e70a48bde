"""The lock of a folder: one holder, in this process and among others; nothing is left."""

import subprocess
import sys

import pytest

from fastadv.core.lock import FolderLock

# holds the lock for as long as it takes to make a file that nobody else may make meanwhile
HOLDER = """
import os, sys
from pathlib import Path
from fastadv.core.lock import FolderLock
folder, held = Path(sys.argv[1]), 0
while held < int(sys.argv[2]):
    try:
        lock = FolderLock(folder / ".lock")
    except BlockingIOError:
        continue
    os.close(os.open(folder / "mine", os.O_CREAT | os.O_EXCL))
    os.unlink(folder / "mine")
    lock.release()
    held += 1
"""


def test_one_holder_at_a_time(tmp_path):
    lock = FolderLock(tmp_path / ".lock")
    with pytest.raises(BlockingIOError, match="held by another process"):
        FolderLock(tmp_path / ".lock")
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    FolderLock(tmp_path / ".lock").release()


def test_a_place_where_no_file_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        FolderLock(tmp_path / "file" / ".lock")


@pytest.mark.slow
def test_processes_in_turn(tmp_path, rounds):
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(100 * rounds)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == [""] * 4
    assert list(tmp_path.iterdir()) == []
