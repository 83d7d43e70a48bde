"""What `fastadv train` calls: paths and plain values in, files and a summary out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastadv.core.lock import FolderLock
from fastadv.core.notices import Notice
from fastadv.data import SourceError, SyntheticFaces, deal_pairs, write_pairs_csv
from fastadv.data.synthetic import write_faces
from fastadv.models import CheckpointError, load
from fastadv.studies.train import train_class_head, train_network
from fastadv.training import HeadConfig, TrainConfig, TrainingError

pytestmark = pytest.mark.filterwarnings("ignore:validation")
QUICK = TrainConfig(loss="softmax", epochs=1, batch=18, lr=0.05, seed=1)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Forty people, three images each, as files."""
    root = tmp_path_factory.mktemp("people")
    source = SyntheticFaces(identities=40, per_identity=3, seed=4)
    write_faces(source, source.names, root)
    return root


def test_a_folder(people, tmp_path):
    stages = set()
    summary = train_network(
        data=people,
        model="synth-shuffle",
        out=tmp_path / "out",
        config=QUICK,
        cache=tmp_path / "cache",
        half=True,
        progress=lambda stage, done, total: stages.add(stage),
    )
    assert stages == {"caching", "epoch 1/1", "validating"}
    assert summary.identities == 36  # a tenth validates
    assert summary.pairs == 20
    assert summary.steps == 6
    assert 0 <= summary.best.accuracy <= 1
    assert load("synth-shuffle", summary.weights).layers
    assert load("synth-shuffle", tmp_path / "out" / "half.safetensors").layers
    again = train_network(
        data=people, model="synth-shuffle", out=tmp_path / "out", config=QUICK, cache=tmp_path / "cache"
    )
    assert again.resumed_at == 6
    assert again.history == summary.history


def test_given_pairs_and_first_weights(people, tmp_path):
    names = [n for n in SyntheticFaces(identities=40, per_identity=3, seed=4).names if n < "s4-000004"]

    write_pairs_csv(tmp_path / "pairs.csv", deal_pairs(names, 8, folds=2))
    one = train_network(
        data=people, model="synth-shuffle", out=tmp_path / "a", config=QUICK, pairs=tmp_path / "pairs.csv"
    )
    assert (one.identities, one.pairs) == (36, 8)
    with pytest.warns(Notice, match=r"validation: .* not measurable from 4 negative pairs of .* images; .* least 100"):
        train_network(
            data=people, model="synth-shuffle", out=tmp_path / "a", config=QUICK, pairs=tmp_path / "pairs.csv"
        )

    two = train_network(
        data=people,
        model="synth-shuffle",
        out=tmp_path / "b",
        config=QUICK,
        pairs=tmp_path / "pairs.csv",
        weights=Path(one.weights),
    )
    assert two.history[0].loss < one.history[0].loss


def test_a_class_head(people, tmp_path):
    summary = train_class_head(
        data=people, model="synth-vgg", out=tmp_path / "head", config=HeadConfig(epochs=2, held_out=1)
    )
    assert summary.classes == 40
    assert json.loads((tmp_path / "head" / "classes.json").read_text())[39] == "s4-000039"
    assert load("synth-vgg", summary.weights).head.out_features == 40


def test_a_class_head_has_one_writer(people, tmp_path):
    lock = FolderLock(tmp_path / ".lock")
    with pytest.raises(TrainingError, match="out: expected a folder that no other training writes to"):
        train_class_head(data=people, model="synth-vgg", out=tmp_path, config=HeadConfig(epochs=1))
    lock.release()


def test_user_errors_leave_nothing(people, folder, tmp_path):
    out = tmp_path / "out"
    common = {"model": "synth-vgg", "out": out, "config": QUICK}
    with pytest.raises(SourceError, match="missing: expected a folder, got no such folder"):
        train_network(data=tmp_path / "missing", **common)
    with pytest.raises(ValueError, match="name: expected one of .*did you mean 'synth-vgg'"):
        train_network(data=people, **{**common, "model": "synth-vg"})
    with pytest.raises(CheckpointError, match=r"weights: expected .*, got .*none\.safetensors, which does not exist"):
        train_network(data=people, weights=tmp_path / "none.safetensors", **common)
    with pytest.raises(TrainingError, match="batch: expected at most the 6 images there are, got 64"):
        train_network(data=folder, **{**common, "config": TrainConfig(batch=64)})
    with pytest.raises(ValueError, match="identities: expected at most 900000"):
        train_network(data="synthetic", identities=900_001, **common)
    with pytest.raises(ValueError, match=r"expected .*, got 0 from 0 on"):
        train_network(data="synthetic", identities=0, **common)
    (folder / "ada" / "0.png").write_bytes((folder / "ada" / "0.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"0.png: the image is damaged"):
        train_network(data=folder, **{**common, "config": TrainConfig(loss="softmax", batch=6)})
    assert not out.exists() or list(out.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="file is a file, expected a folder|expected a folder, got the file"):
        train_class_head(data=people, model="synth-vgg", out=tmp_path / "file", config=HeadConfig())
