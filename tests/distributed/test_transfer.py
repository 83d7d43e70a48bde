"""`fastadv transfer` by workers: the bytes of one process, whatever dies."""

from contextlib import closing

import pytest

from fastadv.core.notices import notify
from fastadv.data import SyntheticFaces, write_pairs_csv
from fastadv.distributed import Cluster
from fastadv.engine import Engine
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.studies.transfer.folder import TransferPlan, transfer_folder

pytest.importorskip("ray", reason="ray is not installed: the extra `ray`")


@pytest.fixture(scope="module")
def study(faces, tmp_path_factory):
    """A study on these faces, into a folder."""
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    write_pairs_csv(pairs, SyntheticFaces(identities=6, per_identity=3, seed=5).pairs(20, folds=2, seed=1))

    def made(out, *, untargeted=False):
        return TransferPlan(
            inputs=RunInputs(data=faces, seed=7, engine=Engine(batch=4), out=out),
            networks=("synth-mobile", "synth-vgg"),
            methods=("fim", "dfanet-fim:2"),
            surrogates=("synth-vgg",) if untargeted else None,
            untargeted=untargeted,
            eps=10 / 255,
            steps=3,
            at=None if untargeted else (1,),
            pairs=3,
            images=3,
            far=(0.2,),
            verification=PairChoice(file=pairs),
        )

    return made


@pytest.mark.parametrize("untargeted", [False, True])
def test_workers_make_the_bytes_of_one_process_and_a_driver_that_is_killed_goes_on(
    untargeted, study, here, killed, content, tmp_path
):
    transfer_folder(study(tmp_path / "single", untargeted=untargeted))
    expected, said = content(tmp_path / "single"), []
    wanted = study(tmp_path / "run", untargeted=untargeted)
    with pytest.raises(killed):
        transfer_folder(wanted, cluster=here(workers=2, until=1))
    kept = {name for name in content(tmp_path / "run") if name.startswith("images/")}
    assert 0 < len(kept) < len([name for name in expected if name.startswith("images/")])
    times = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept}
    cluster = here(workers=3) if untargeted else None  # one process goes on with it too
    transfer_folder(wanted, cluster=cluster, progress=lambda *told: said.append(told))
    assert content(tmp_path / "run") == expected
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept} == times  # not made again
    for stage in {stage for stage, _, _ in said if "fim" in stage}:
        counts = [done for name, done, _ in said if name == stage]
        assert counts == sorted(counts)
        assert counts[-1] == max(total for name, _, total in said if name == stage)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_makes_the_bytes_of_one_process(ray, study, content, tmp_path):
    transfer_folder(study(tmp_path / "single"))
    transfer_folder(study(tmp_path / "run"), cluster=Cluster(workers=2))
    assert content(tmp_path / "run") == content(tmp_path / "single")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_call_whose_worker_dies_is_repeated_and_its_notices_are_told_once(ray, tmp_path):
    def work(k):
        import os
        from pathlib import Path

        with (Path(place) / str(k)).open("a") as file:
            file.write("x")
        if k in (2, 5) and (Path(place) / str(k)).stat().st_size == 1:
            os._exit(1)
        notify("said by all")
        return k * k

    place, cluster = str(tmp_path), Cluster(workers=2)
    with pytest.warns(UserWarning, match="said by all") as said, closing(cluster.each(work, range(8))) as found:
        assert sorted(found) == [(k, k * k) for k in range(8)]
    assert len(said) == 1
    assert {k: (tmp_path / str(k)).read_text() for k in range(8)} == {k: "xx" if k in (2, 5) else "x" for k in range(8)}
    with pytest.raises(ZeroDivisionError), closing(cluster.each(lambda k: 1 // k, [0])) as found:
        list(found)
