"""Any number of workers, workers that fail and workers that die, on a Ray cluster of this machine."""

import os
import shutil
from dataclasses import replace

import pytest

from fastadv.core.errors import Error
from fastadv.data import ImageError
from fastadv.distributed import Cluster, cluster
from fastadv.distributed.cluster import ClusterError
from fastadv.runs.status import run_status
from fastadv.studies.attack import attack_on_ray

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


@pytest.mark.parametrize(("goal", "workers"), [("evade", 1), ("identify-as", 2), ("misidentify", 3)])
def test_any_number_of_workers_writes_the_bytes_of_one_process(goal, workers, ray, plan, single, content, tmp_path):
    attack_on_ray(plan(tmp_path / "run", goal=goal), Cluster(workers=workers))
    assert content(tmp_path / "run") == single(goal=goal)


def test_the_error_of_a_worker_is_the_drivers(ray, plan, faces, tmp_path, content):
    name = sorted(path.relative_to(faces) for path in faces.glob("*/*.png"))[4]
    shutil.copytree(faces, tmp_path / "faces")
    data = (tmp_path / "faces" / name).read_bytes()
    (tmp_path / "faces" / name).write_bytes(data[: len(data) // 2])  # its head is right
    wanted = plan(tmp_path / "run")
    wanted = replace(wanted, inputs=replace(wanted.inputs, data=tmp_path / "faces"))
    with pytest.raises(ImageError, match=rf"{name}: the .*image is damaged"):
        attack_on_ray(wanted, Cluster())
    assert "damaged" in run_status(tmp_path / "run")[0].last_error
    (tmp_path / "faces" / name).write_bytes(data)
    with pytest.raises(Error, match="holds another run; faces: expected"):
        attack_on_ray(wanted, Cluster())


def test_a_worker_that_always_dies_ends_the_run(ray, plan, tmp_path, monkeypatch):
    class Fatal(cluster.Engine):
        def __reduce__(self):
            return os._exit, (1,)  # where a worker unpacks it

    monkeypatch.setattr(cluster, "_RESTARTS", 1)
    monkeypatch.setattr("fastadv.distributed.attack.fitted", lambda engine: Fatal())
    with pytest.raises(ClusterError, match="ray: expected workers that do not die again and again, got"):
        attack_on_ray(plan(tmp_path / "run", limit=4), Cluster())
    assert not list(tmp_path.glob("run/images/*/*.png"))
