"""Memory that is freed is taken again without the system."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="page faults are counted on Unix alone")

PROBE = """
import resource, threading
from fastadv.core.allocator import keep_freed_memory
kept = {call}

def work():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [b"x" * (16 << 20) for _ in range(8)]
        del blocks
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
{run}
"""
RUNS = {"the first thread": "work()", "another thread": "thread.start()"}


def probe(call, run="work()", **environment):
    """What the call says, and the page faults when eight blocks of 16 MiB are taken for the third time."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(call=call, run=run)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_freed_blocks_cost_no_page_faults_again(run):
    kept, faults = probe("keep_freed_memory()", run)
    if not kept:
        pytest.skip("the C library is not glibc")
    assert faults < 100
    assert probe("False", run)[1] > 10_000  # 128 MiB in pages of 4 KiB, each time


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"])
def test_what_the_user_has_said_of_the_allocator_holds(name):
    assert not probe("keep_freed_memory()", **{name: "1000000"})[0]
