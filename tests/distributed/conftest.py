"""A Ray cluster of two cores, a small folder of faces, and the run of one process."""

import os
import random
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import run_files
import torch
from killed import Killed

from fastadv.attacks import by_name
from fastadv.data import SyntheticFaces
from fastadv.data.synthetic import write_faces
from fastadv.distributed import Cluster
from fastadv.distributed.cluster import packed, unpacked
from fastadv.engine import Engine
from fastadv.runs.goals import GoalChoice
from fastadv.runs.inputs import RunInputs
from fastadv.studies.attack import AttackPlan, attack_as_planned

BUCKET = "faces"
SECRETS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
# Ray gives its workers the least priority, for which a busy machine has no time
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
STARTED = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 2**20, "log_to_driver": False}
GOALS = {
    "impersonate": ("fim", {"threshold": 0.9}),
    "evade": ("pgd", {"threshold": 0.4}),
    "identify-as": ("m-fim", {}),
    "misidentify": ("pgd", {}),
}


@pytest.fixture(autouse=True)
def one_thread():
    """In all processes: then bits are equal."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def own_priority():
    """Of the workers that tests start."""
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    drawn = SyntheticFaces(identities=6, per_identity=3, seed=5)
    write_faces(drawn, drawn.names, root)
    return root


@pytest.fixture(scope="session")
def plan(faces):
    """An attack on these faces, into a folder."""

    def made(out, *, goal="impersonate", steps=2, limit=None, **more) -> AttackPlan:
        name, aim = GOALS[goal]
        inputs = RunInputs(data=faces, model="synth-mobile", seed=7, engine=Engine(batch=4), out=out, **more)
        attack = by_name(name, steps=steps)
        return AttackPlan(inputs=inputs, attack=attack, aim=GoalChoice(goal=goal, **aim), limit=limit)

    return made


@pytest.fixture(scope="session")
def content():
    """Every file below a folder with its bytes."""
    return run_files.content


@pytest.fixture(scope="session")
def single(plan, content, tmp_path_factory):
    """What one process writes, by the arguments of the plan."""
    made = {}

    def of(**wanted):
        key = tuple(sorted(wanted.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("single") / "run"
            attack_as_planned(plan(out, **wanted))
            made[key] = content(out)
        return made[key]

    return of


@pytest.fixture(scope="session")
def s3():
    """A bucket of a server on this machine; the variables that name it reach the workers, which are started after."""
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(
        "127.0.0.1", 0, verbose=False
    )
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server.start()
    host, port = server.get_host_and_port()
    wanted = {**SECRETS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    import s3fs

    s3fs.S3FileSystem().mkdir(BUCKET)
    yield s3fs.S3FileSystem(use_listings_cache=False)
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def ray(s3):
    """Ray with two cores, which the workers share; it is started last, so that they reach the bucket."""
    found = pytest.importorskip("ray", reason="ray is not installed: the extra `ray`")
    import ray.data  # noqa: F401

    found.init("local", **STARTED)
    yield found
    found.shutdown()


@dataclass(frozen=True, kw_only=True)
class Here(Cluster):
    """Workers in this process, whose calls end in any order.

    Attributes:
        until: The driver is killed after so many calls.
    """

    until: int = 99

    def connected(self):
        return nullcontext()

    def each(self, do, items):
        calls = list(enumerate(items))
        random.Random(len(calls)).shuffle(calls)
        there = unpacked(packed(do), "cpu")
        for k, (place, item) in enumerate(calls):
            if k == self.until:
                raise Killed
            yield place, unpacked(packed(there(unpacked(packed(item), "cpu"))), "cpu")


@pytest.fixture(scope="session")
def here():
    """A cluster whose workers are in this process."""
    return Here


@pytest.fixture(scope="session")
def killed():
    """What ends a driver."""
    return Killed
