"""The peak of memory of a work, whatever earlier works have left."""

import subprocess
import sys

import pytest

from bench import growth, tables
from bench.measure import peak, reset_peak

_AGAIN = """
import torch
from bench.measure import peak, reset_peak
from fastadv import keep_freed_memory
keep_freed_memory()
for size in (256, 64):
    before = reset_peak("cpu")
    parts = [torch.ones(2**18) for _ in range(size)]  # 1 MiB each
    del parts
    print(peak("cpu", before))
"""


def readable():
    return sys.platform == "linux" and reset_peak("cpu") is not None


@pytest.mark.skipif(not readable(), reason="the system does not say how much memory a process had")
def test_a_peak_counts_what_is_freed_again_and_memory_that_an_earlier_work_left():
    done = subprocess.run([sys.executable, "-c", _AGAIN], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    assert 250 < first < 280
    assert 60 < second < 80


def test_without_a_beginning_there_is_no_peak():
    assert peak("cpu", None) is None


def test_every_row_has_its_peak(monkeypatch):
    works = [("slots", 16, lambda: 4), ("classes", 1_000, lambda: 8)]
    monkeypatch.setattr(growth, "_works", lambda device, quick: iter(works))
    monkeypatch.setattr(growth, "keep_freed_memory", lambda: True)  # of the process that runs the tests
    rows = growth.growth(device="cpu", quick=False)
    assert [row["images"] for row in rows] == [4, 8]
    assert all(row["peak_mib"] is None or 0 <= row["peak_mib"] < 64 for row in rows)
    assert tables.growth({"rows": rows}).count("\n| ") == 3
