"""A cluster that is started for one run."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="Ray is not installed: the extra `ray`")

PROGRAM = """
import os, ray
from fastadv.distributed import Cluster
with Cluster(address="local").connected():
    print("niceness", ray.get(ray.remote(lambda: os.nice(0)).remote()) - os.nice(0))
print("left", ray.is_initialized())
"""


@pytest.mark.slow
def test_its_workers_have_the_priority_of_the_command():
    """Ray's own niceness of 15 would leave them no time beside other programs."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_worker_niceness"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, timeout=120, env={**environment, "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["niceness 0", "left False"], done.stderr
