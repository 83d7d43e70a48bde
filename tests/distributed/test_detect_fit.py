"""`fastadv detect fit` by workers: the detectors of one process, whatever dies."""

import pytest

from fastadv import load
from fastadv.attacks.spec import parse_attack
from fastadv.data import SyntheticFaces
from fastadv.detection import FitConfig
from fastadv.distributed import Cluster
from fastadv.engine import Engine
from fastadv.studies.detection.configurations import Configuration
from fastadv.studies.detection.fit import fit_folder
from fastadv.studies.detection.study import StudyConfig
from fastadv.training import HeadConfig

pytest.importorskip("ray", reason="ray is not installed: the extra `ray`")

PEOPLE = SyntheticFaces(identities=6, per_identity=7, seed=3)
CONFIGURATIONS = tuple(
    Configuration(network="mlp", representatives=name, metric="l2", reading="relative")
    for name in ("centroid", "medoid")
)


@pytest.fixture(scope="module")
def fit():
    """A study of six people; knn-df is guided by embeddings, bim by a class head."""
    attacks = tuple(map(parse_attack, ("bim:4@12/255", "knn-df:3@12/255")))
    more = {"natural": 2, "attacked": 2, "validate": 0.34, "test": 0.33, "outside": 0.0}
    config = StudyConfig(attacks=attacks, controls=(), **more)

    def made(path, **more):
        return fit_folder(
            config,
            PEOPLE,
            load("synth-mobile"),
            path=path,
            engine=Engine(batch=4),
            configurations=CONFIGURATIONS,
            fitting=FitConfig(epochs=1, batch=16),
            head=HeadConfig(epochs=40, lr=0.1, start="means"),
            **more,
        )

    return made


@pytest.fixture(scope="module")
def one_process(fit, content, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "study"
    fit(path)
    return content(path)


def results(found):
    """Of a study's files all but the checkpoints of the fits."""
    return {name: data for name, data in found.items() if not name.startswith("fits/")}


def test_workers_make_the_bytes_of_one_process_and_a_driver_that_is_killed_goes_on(
    fit, one_process, here, killed, content, tmp_path
):
    path, said = tmp_path / "study", []

    def stop(stage, done, total):
        if stage.startswith("knn-df") and done:
            raise killed

    with pytest.raises(killed):
        fit(path, cluster=here(workers=2), progress=stop)
    kept = {name for name in content(path) if name.endswith(".png")}
    assert {name.split("/")[1].split(":")[0] for name in kept} == {"bim", "knn-df"}
    times = {name: (path / name).stat().st_mtime_ns for name in kept}
    fit(path, cluster=here(workers=3), progress=lambda *told: said.append(told))
    assert results(content(path)) == results(one_process)
    assert len([name for name in one_process if name.endswith(".png")]) > len(kept)
    assert {name: (path / name).stat().st_mtime_ns for name in kept} == times  # not made again
    assert {stage for stage, done, total in said if done == total} >= {"tapping rest", "bim:4@12/255-targeted"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_makes_the_bytes_of_one_process(ray, fit, one_process, content, tmp_path):
    fit(tmp_path / "study", cluster=Cluster(workers=2))
    assert results(content(tmp_path / "study")) == results(one_process)
