"""What a worker checks, and what is said of it: in this process, without a cluster."""

import json
import os
import sys
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastadv as fa
from fastadv.attacks import Impersonate
from fastadv.core.errors import MissingPackageError, UnavailableError
from fastadv.core.notices import notify
from fastadv.distributed import Cluster
from fastadv.distributed import cluster as driver
from fastadv.distributed.attack import AttackWorker, WorkerTask
from fastadv.distributed.cluster import ClusterError, packed
from fastadv.distributed.dataset import DatasetTask, DatasetWorker
from fastadv.runs.workers import fitted
from fastadv.studies.attack import prepare_attack

pytest.importorskip("ray", reason="ray is not installed: the extra `ray`")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture
def begun(plan, tmp_path, monkeypatch):
    """What a worker of a run that has begun is sent, and its orders as columns."""
    prepared = prepare_attack(plan(tmp_path / "run", limit=5))
    with prepared.identity.open(tmp_path / "run") as run:
        run.claim()
    task = WorkerTask(
        model=prepared.model,
        source=prepared.source,
        attack=prepared.wanted.attack,
        aim=prepared.wanted.aim,
        enrolled=None,
        sample=prepared.orders[0],
        seed=7,
        engine=fitted(prepared.identity.engine),
        out=tmp_path / "run",
        place=str(tmp_path),
    )
    monkeypatch.chdir(tmp_path)
    columns = {name: np.array([getattr(o, name) for o in prepared.orders]) for name in ("name", "source", "target")}
    return packed(task), columns


@contextmanager
def working(sent):
    with warnings.catch_warnings():  # it takes the notices of its process
        yield AttackWorker(sent, "cpu", torch.get_num_threads())


def test_a_call_gives_the_same_rows_again_in_the_order_of_its_block(begun, tmp_path):
    sent, columns = begun
    with working(sent) as worker:
        first = worker(columns)
        images = {path: path.read_bytes() for path in (tmp_path / "run" / "images").rglob("*.png")}
        assert len(images) == 5
        assert first.equals(worker(columns))
    assert all(path.read_bytes() == data for path, data in images.items())
    assert [json.loads(text)["name"] for text in first["text"].to_pylist()] == list(columns["name"])


def test_a_folder_that_a_node_does_not_see_is_refused(begun, tmp_path):
    sent, columns = begun
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    expected = r"out: expected a folder that all nodes share, got .*run, in which .* sees no run\.json; use a shared"
    with working(sent) as worker, pytest.raises(fa.Error, match=expected):
        worker(columns)
    assert not (tmp_path / "run").exists()


def test_a_face_that_differs_from_the_drivers_is_refused(begun, faces):
    sent, columns = begun
    path = faces / f"{columns['source'][2]}.png"
    before, times = path.read_bytes(), path.stat()
    try:
        path.write_bytes(before + b"\0")
        with working(sent) as worker, pytest.raises(fa.Error, match="expected the file as it was when the run began"):
            worker(columns)
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_notices_of_a_worker_reach_the_driver(begun):
    sent, columns = begun
    with working(sent) as worker:
        notify("out of memory with 8 slots")
        found = worker(columns)
    told = [text for text, host in zip(*found.to_pydict().values(), strict=True) if not host]
    assert told == [b"out of memory with 8 slots"]


LINE = "fastadv 1, torch 2.13.0, cpu {}, threads 1, device cpu"


def test_workers_with_another_instruction_set_are_said(monkeypatch):
    monkeypatch.setattr(driver, "software", lambda: LINE.format("AVX512"))
    assert driver.software_notes({LINE.format("AVX512"): {"a"}, LINE.format("AVX2"): {"b", "c"}}) == [
        "ray: the workers have different software, which can change bits: cpu AVX2 in b, c; cpu AVX512 in a, the driver"
    ]
    assert driver.software_notes({LINE.format("AVX512"): {"a"}}) == []
    assert driver.software_notes({}) == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"gpus_per_worker": -0.5}, "gpus_per_worker: expected a number of at least 0, got -0.5"),
        ({"address": "ray://host:1"}, "ray: expected auto, local or HOST:PORT, got 'ray://host:1'"),
        ({"address": ""}, "ray: expected auto, local or HOST:PORT, got ''"),
    ],
)
def test_a_wrong_cluster_is_one_sentence(given, text):
    with pytest.raises(ValueError, match=text):
        Cluster(**given)


def test_a_cluster_that_is_not_there(monkeypatch):
    import ray

    def refused(*given, **more):
        raise ConnectionError("Could not find any running\nRay instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    with (
        pytest.raises(ClusterError, match="ray: expected a running cluster at auto, got none: Could not find any runn"),
        Cluster().connected(),
    ):
        pass


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match="distributed.run: expected ray .*, got no such package; pip install"):
        fa.distributed.run(fa.attacks.fim(), GOAL, NET, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_worker_without_its_gpu_says_so():
    with pytest.raises(
        UnavailableError, match="gpus_per_worker: expected workers with a GPU that PyTorch can use, got"
    ):
        AttackWorker(b"", "cuda", torch.get_num_threads())


# a user's dataset

NET = fa.load("synth-mobile")
FACE = np.zeros((112, 112, 3), np.uint8)
GOAL = Impersonate(torch.ones(1, 128), threshold=0.5)


@pytest.mark.parametrize(
    ("columns", "goal", "text"),
    [
        ({"picture": [FACE], "name": ["a"]}, GOAL, "dataset: expected a column 'image', got picture, name"),
        ({"image": [FACE]}, GOAL, "dataset: expected a column 'name', got image"),
        ({"image": [FACE[:50]], "name": ["a"]}, GOAL, "image 'a': expected uint8 of shape .112, 112, 3., got uint8 of"),
        ({"image": [FACE / 255], "name": ["a"]}, GOAL, "image 'a': expected uint8 of shape .*, got float64"),
        ({"image": [b"noise"], "name": ["a"]}, GOAL, "a: "),
        ({"image": [FACE], "name": ["a"]}, lambda row: row["name"], "goal: expected a goal for a, got str"),
    ],
)
def test_a_wrong_row_is_one_sentence(columns, goal, text):
    task = DatasetTask(
        attack=fa.attacks.fim(steps=1), goal=goal, model=NET, image="image", name="name", seed=0, engine=fa.Engine()
    )
    worker = DatasetWorker(packed(task), "cpu", torch.get_num_threads())
    with pytest.raises((ValueError, TypeError), match=text):
        worker(columns)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"dataset": [1]}, "dataset: expected a ray.data.Dataset, got list"),
        ({"goal": 3}, "goal: expected a goal, or a function from a row to one, got int"),
        ({"goal": Impersonate(torch.ones(2, 8), threshold=0.5)}, "goal: expected one row for all images, got 2; give"),
        ({"model": torch.nn.Identity()}, "model: expected a FaceModel, got Identity"),
        ({"seed": -1}, "seed: expected an integer"),
        ({"workers": 0}, "workers: expected at least 1"),
        (
            {"gpus_per_worker": 1, "engine": fa.Engine(batch=0)},
            "engine: expected a fixed batch and precision with GPUs, got 0 and None",
        ),
    ],
)
def test_a_wrong_argument_is_one_sentence(changed, text, monkeypatch):
    import ray.data

    given = {"attack": fa.attacks.fim(), "goal": GOAL, "model": NET, "dataset": SimpleNamespace(), **changed}
    if "dataset" not in changed:
        monkeypatch.setattr(ray.data, "Dataset", SimpleNamespace)
    with pytest.raises((ValueError, TypeError), match=text):
        fa.distributed.run(**given)
