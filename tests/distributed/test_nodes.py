"""Nodes and drivers that are killed in the middle: nothing is lost, and nothing is written twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from fastadv.data import read_manifest
from fastadv.distributed import Cluster
from fastadv.studies.attack import attack_on_ray

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings
LONG = {"steps": 150}


def images(out):
    return len(list(out.glob("images/*/*.png")))


def waits(out, count):
    until = time.monotonic() + 120
    while images(out) < count:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def nodes():
    """A cluster of three nodes on this machine: a head without cores, and two with one core each."""
    ray = pytest.importorskip("ray", reason="ray is not installed: the extra `ray`")
    from ray.cluster_utils import Cluster as Nodes

    size = {"object_store_memory": 80 * 2**20}
    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
    others = [made.add_node(num_cpus=1, **size) for _ in range(2)]
    ray.init(made.address, log_to_driver=False)
    yield made, others
    ray.shutdown()
    made.shutdown()


def test_the_images_of_a_node_that_is_killed_start_again_elsewhere(nodes, plan, single, content, tmp_path):
    out, (made, others) = tmp_path / "run", nodes
    seen = []

    def kill():
        waits(out, 5)
        seen.append(images(out))
        made.remove_node(others[1], allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    attack_on_ray(plan(out, **LONG), Cluster(workers=2))
    killer.join()
    assert seen[0] < 18  # in the middle
    assert content(out) == single(**LONG)
    assert len(read_manifest(out)) == 18


def test_the_calls_of_a_node_that_is_killed_are_repeated_elsewhere(nodes, tmp_path):
    made, others = nodes
    folder = str(tmp_path)

    def work(k):
        import time
        from pathlib import Path

        import ray

        with (Path(folder) / str(k)).open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        time.sleep(1)
        return k

    def begun():
        return [file.read_text().split() for file in sorted(tmp_path.iterdir())]

    def kill():
        until = time.monotonic() + 120
        while not any(others[1].node_id in on for on in begun()):
            assert time.monotonic() < until
            time.sleep(0.01)
        made.remove_node(others[1], allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    with closing(Cluster(workers=2).each(work, range(4))) as ended:
        assert sorted(ended) == [(k, k) for k in range(4)]
    killer.join()
    assert [on[-1] for on in begun()] == [others[0].node_id] * 4
    assert sum(map(len, begun())) == 5  # the call that ran there, a second time


def test_the_run_of_a_driver_that_is_killed_goes_on(faces, content, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}

    def command(out, *more):
        given = ("--data", faces, "--model", "synth-mobile", "--threshold", "0.9", "--batch", "4", "--out", out)
        words = [sys.executable, "-m", "fastadv", "attack", "fim", *given, "--steps", "60", "--json", *more]
        return [str(word) for word in words]

    single, out = tmp_path / "single", tmp_path / "run"
    expected = subprocess.run(command(single), check=True, env=environment, capture_output=True, text=True)
    given = command(out, "--ray", "local", "--workers", "2")
    with subprocess.Popen(given, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        waits(out, 6)
        os.killpg(running.pid, signal.SIGKILL)
    assert 6 <= images(out) < 18
    again = subprocess.run(given, env=environment, capture_output=True, text=True, timeout=300)
    ours = [line for line in again.stderr.splitlines() if " core_worker.cc:" not in line]  # which Ray writes itself
    assert (again.returncode, ours) == (0, [])
    assert content(out) == content(single)
    ours, theirs = (json.loads(done.stdout) for done in (again, expected))
    assert {**ours, "out": "", "seconds": 0} == {**theirs, "out": "", "seconds": 0}
