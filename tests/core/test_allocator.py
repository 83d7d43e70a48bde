"""Memory that is freed is taken again without the system."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="page faults are counted on Unix alone")

PROBE = """
import resource
from fastadv.core.allocator import keep_freed_memory
kept = {call}
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def probe(call, **environment):
    """What the call says, and the page faults of the third block of 64 MiB."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(call=call)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def test_a_freed_block_costs_no_page_faults_again():
    kept, faults = probe("keep_freed_memory()")
    if not kept:
        pytest.skip("the C library is not glibc")
    assert faults < 100
    assert probe("False")[1] > 10_000  # 64 MiB in pages of 4 KiB, each time


def test_what_the_user_has_said_of_the_allocator_holds():
    assert not probe("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="1000000")[0]
