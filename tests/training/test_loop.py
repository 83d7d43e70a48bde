"""The loop: deterministic, resumable to the bit, and clear about what cannot be trained on."""

from __future__ import annotations

import io
import json
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from killed import Killed, kill_at, same, weights

from fastadv.core.lock import FolderLock
from fastadv.data import IdentityFolder, SyntheticFaces, to_uint8
from fastadv.models import load, read_state_dict
from fastadv.training import CachedFaces, Held, TrainConfig, TrainingError, train

QUICK = TrainConfig(loss="softmax", epochs=3, batch=8, lr=0.05, shift=1, seed=2)


@pytest.fixture
def held():
    unseen = SyntheticFaces(identities=8, per_identity=3, seed=1, size=32, first=100)
    return Held(source=unseen, pairs=unseen.pairs(16, folds=2))


@pytest.mark.parametrize("loss", ["softmax", "cosface", "arcface", "triplet"])
def test_the_loss_falls(loss, faces, tiny):
    config = TrainConfig(loss=loss, epochs=12, batch=12, lr=0.02, flip=False, shift=0, scale=8.0, per_identity=3)
    result = train(config, tiny(), faces)
    assert len(result.history) == 12
    assert result.steps == 36
    assert result.history[-1].loss < result.history[0].loss
    assert result.best is result.history[-1]  # without pairs
    assert result.classes == tuple(sorted({n.split("/")[0] for n in faces.names}))
    assert not result.model.training


def test_the_seed_decides(faces, tiny):
    made = [weights(train(replace(QUICK, seed=seed), tiny(), faces).model) for seed in (2, 2, 3)]
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("at", "saved"), [(4, 3), (9, 8)])
def test_killed_and_started_again_is_as_never_interrupted(optimizer, at, saved, faces, held, tiny, tmp_path):
    config = replace(QUICK, optimizer=optimizer, lr=0.01, checkpoint_steps=3)
    calm = train(config, tiny(dropout=0.2), faces, held=held, out=tmp_path / "calm")
    with pytest.raises(Killed):
        train(config, tiny(dropout=0.2), faces, held=held, out=tmp_path / "killed", progress=kill_at(at))
    # Another cadence decides about nothing.
    again = train(replace(config, checkpoint_steps=1), tiny(dropout=0.2), faces, held=held, out=tmp_path / "killed")
    assert again.resumed_at == saved
    assert again.history == calm.history
    assert same(weights(again.model), weights(calm.model))
    files = {p.name: p.read_bytes() for p in (tmp_path / "calm").iterdir()}
    assert sorted(files) == ["best.safetensors", "checkpoint.pt", "last.safetensors", "training.json"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "killed").iterdir()} == files


class Unlucky(SyntheticFaces):
    """Kills whoever reads it the second time."""

    reads = 0

    def stream(self, *arguments, **options):
        self.reads += 1
        if self.reads == 2:
            raise Killed
        return super().stream(*arguments, **options)


def test_killed_while_it_validates(faces, held, tiny, tmp_path):
    calm = train(QUICK, tiny(), faces, held=held)
    unlucky = Unlucky(identities=8, per_identity=3, seed=1, size=32, first=100)
    with pytest.raises(Killed):
        train(QUICK, tiny(), faces, held=Held(source=unlucky, pairs=held.pairs), out=tmp_path)
    again = train(QUICK, tiny(), faces, held=held, out=tmp_path)
    assert again.resumed_at == 8
    assert again.history == calm.history
    assert same(weights(again.model), weights(calm.model))


def test_a_finished_training_is_only_read(faces, held, tiny, tmp_path):
    first = train(QUICK, tiny(), faces, held=held, out=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def never(*_):
        raise AssertionError("a step was made")

    second = train(QUICK, tiny(), faces, held=held, out=tmp_path, progress=never)
    assert second.history == first.history
    assert same(weights(second.model), weights(first.model))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_is_written(faces, held, tiny, tmp_path):
    result = train(QUICK, tiny(), faces, held=held, out=tmp_path)
    record = json.loads((tmp_path / "training.json").read_text())
    assert [e["epoch"] for e in record["history"]] == [1, 2, 3]
    assert record["best"]["epoch"] == result.best.epoch
    assert record["classes"] == 6
    assert record["steps"] == result.steps == 12
    assert result.best.accuracy == max(r.accuracy for r in result.history)
    best = read_state_dict(tmp_path / "best.safetensors")
    kept = weights(result.model)
    assert all(torch.equal(kept[k], v) for k, v in best.items())
    assert {k for k in kept if not k.endswith("num_batches_tracked")} == set(best)


def test_the_weights_are_loaded_by_the_zoo(folder, tmp_path):
    source = IdentityFolder(folder)
    model = load("synth-shuffle", random_weights_seed=0)
    result = train(TrainConfig(loss="softmax", epochs=1, batch=3, lr=0.01), model, source, out=tmp_path / "out")
    again = load("synth-shuffle", tmp_path / "out" / "best.safetensors")
    image = source.load(source.names[0]).image[None]
    assert torch.equal(again(image), result.model(image).detach())


def test_bf16_trains_float32_weights(faces, tiny):
    result = train(replace(QUICK, precision="bf16"), tiny(), faces)
    assert {p.dtype for p in result.model.backbone.parameters()} == {torch.float32}
    assert result.history[-1].loss < result.history[0].loss * 1.5
    assert not same(weights(result.model), weights(train(QUICK, tiny(), faces).model))


def test_a_cache_changes_nothing(faces, tiny, tmp_path):
    cached = CachedFaces(faces, tmp_path / "cache")
    for name in faces.names[::7]:
        a, b = faces.load(name), cached.load(name)
        assert torch.equal(a.image, b.image)
        assert (a.id, a.name, a.identity) == (b.id, b.name, b.identity)
    assert same(weights(train(QUICK, tiny(), faces).model), weights(train(QUICK, tiny(), cached).model))
    again = CachedFaces(faces, tmp_path / "cache", progress=lambda *_: pytest.fail("it was filled again"))
    assert torch.equal(again.load(faces.names[3]).image, faces.load(faces.names[3]).image)
    other = SyntheticFaces(identities=6, per_identity=6, seed=2, size=32)
    with pytest.raises(TrainingError, match="cache: holds other faces; faces.images: expected"):
        CachedFaces(other, tmp_path / "cache")
    (tmp_path / "cache" / "faces.npy").write_bytes(b"no array")
    with pytest.raises(TrainingError, match=r"faces.npy: expected the pixels of .*, got .*; remove"):
        CachedFaces(faces, tmp_path / "cache")
    with pytest.raises(KeyError, match="nobody/0"):
        cached.load("nobody/0")


def test_a_cache_is_whole_or_absent(faces, tmp_path):
    def stop(stage, done, total):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        CachedFaces(faces, tmp_path / "cache", progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_under_a_cache_is_an_error_that_names_it(faces, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # the first face fits
    try:
        with pytest.raises(OSError, match=r"File too large: '.*faces\.npy'"):
            CachedFaces(faces, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []
    CachedFaces(faces, tmp_path / "cache")
    pixels = np.stack([to_uint8(face.image) for face in faces.stream()])
    np.save(tmp_path / "pixels.npy", pixels)
    assert (tmp_path / "cache" / "faces.npy").read_bytes() == (tmp_path / "pixels.npy").read_bytes()


def test_nobody_in_the_pairs_is_trained_on(faces, tiny):
    held = Held(source=faces, pairs=SyntheticFaces(identities=2, per_identity=6, seed=1, size=32).pairs(4, folds=1))
    out = {name.split("/")[0] for pair in held.pairs for name in (pair.first, pair.second)}
    result = train(QUICK, tiny(), faces, held=held)
    assert out == set(sorted({n.split("/")[0] for n in faces.names})[:2])
    assert set(result.classes) == {n.split("/")[0] for n in faces.names} - out


def test_a_loss_that_is_not_finite_stops(faces, tiny, tmp_path):
    model = tiny()
    with torch.no_grad():
        model.backbone[0].weight.fill_(float("nan"))
    with pytest.raises(
        TrainingError, match=r"loss: expected a finite number, got nan at step 1 of 12; .*try a lower lr \(now 0.05\)"
    ):
        train(QUICK, model, faces, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_faces_that_cannot_be_trained_on(faces, tiny):
    one = SyntheticFaces(identities=1, per_identity=20, size=32)
    with pytest.raises(TrainingError, match="source: expected at least two identities, got 1"):
        train(QUICK, tiny(), one)
    with pytest.raises(TrainingError, match="batch: expected at most the 36 images there are, got 64"):
        train(replace(QUICK, batch=64), tiny(), faces)
    single = SyntheticFaces(identities=12, per_identity=1, size=32)
    with pytest.raises(
        TrainingError, match="source: expected two images of every identity .*, got one of 12 of 12, first 's0-000000'"
    ):
        train(replace(QUICK, loss="triplet"), tiny(), single)
    with pytest.raises(
        TrainingError, match="batch: expected at most 6 identities with 4 images of each, got 9 in 36 images"
    ):
        train(replace(QUICK, loss="triplet", batch=36), tiny(), faces)
    with pytest.raises(TrainingError, match=r"source: expected images of \(32, 32\) for 'tiny', got size=112"):
        train(QUICK, tiny(), SyntheticFaces(identities=2, per_identity=8))


def test_folders_that_cannot_be_used(faces, tiny, tmp_path):
    train(QUICK, tiny(), faces, out=tmp_path / "a")
    with pytest.raises(
        TrainingError, match=r"holds another training; lr: expected 0\.05 \(as in checkpoint\.pt\), got 0\.06"
    ):
        train(replace(QUICK, lr=0.06), tiny(), faces, out=tmp_path / "a")
    other = SyntheticFaces(identities=6, per_identity=6, seed=2, size=32)
    with pytest.raises(TrainingError, match="holds another training; images: expected"):
        train(QUICK, tiny(), other, out=tmp_path / "a")
    whole = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "a" / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"checkpoint.pt: expected a whole checkpoint of a training, got "):
            train(QUICK, tiny(), faces, out=tmp_path / "a")
    (tmp_path / "a" / "checkpoint.pt").unlink()
    with pytest.raises(
        TrainingError, match="out: expected a folder with a checkpoint or without weights, got .* with weights alone"
    ):
        train(QUICK, tiny(), faces, out=tmp_path / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="file is a file, expected a folder|expected a folder, got the file"):
        train(QUICK, tiny(), faces, out=tmp_path / "file")
    (tmp_path / "b").mkdir()
    lock = FolderLock(tmp_path / "b" / ".lock")
    try:
        with pytest.raises(TrainingError, match="out: expected a folder that no other training writes to, got "):
            train(QUICK, tiny(), faces, out=tmp_path / "b")
    finally:
        lock.release()


CHANGES = {
    "done": 10**6,
    "sum": "x",
    "history": [{"epoch": "one", "loss": 1.0, "accuracy": None, "auc": None, "eer": None}],
    "random": {"cpu": torch.zeros(3)},
    "optimizer": {"state": 3, "param_groups": []},
    "backbone": [1],
    "loss": None,
}


@pytest.mark.parametrize("part", CHANGES)
@pytest.mark.parametrize("there", [True, False])
def test_a_checkpoint_with_a_part_that_cannot_be(part, there, faces, tiny, tmp_path):
    train(replace(QUICK, epochs=1), tiny(), faces, out=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    if there:
        state[part] = CHANGES[part]
    else:
        del state[part]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(
        TrainingError,
        match="expected a checkpoint that fits this training, got another: .*; use --fresh or another --out",
    ):
        train(replace(QUICK, epochs=1), tiny(), faces, out=tmp_path)


def test_an_optimizer_of_other_sizes_and_damaged_weights(faces, tiny, tmp_path):
    train(replace(QUICK, epochs=1), tiny(), faces, out=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    remembered = state["optimizer"]["state"]
    remembered[0] = {k: torch.zeros(7) for k in remembered[0]}
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(
        TrainingError,
        match=r"expected a checkpoint that fits this training, got another: optimizer: \w+: expected .*, got \(7,\)",
    ):
        train(replace(QUICK, epochs=1), tiny(), faces, out=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(whole)
    best = tmp_path / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-8])
    with pytest.raises(
        TrainingError, match=r"best\.safetensors: expected the weights that the training wrote, got others; use --fresh"
    ):
        train(replace(QUICK, epochs=1), tiny(), faces, out=tmp_path)


def test_a_cache_that_is_something_else(faces, tmp_path):
    CachedFaces(faces, tmp_path)
    whole = (tmp_path / "faces.npy").read_bytes()
    stream = io.BytesIO()
    np.savez(stream, np.zeros(3))
    for damaged in (
        b"",
        whole[:50],
        stream.getvalue(),
        whole.replace(b"|u1", b"|V1"),
        whole.replace(b"False", b"F(((e"),
    ):
        (tmp_path / "faces.npy").write_bytes(damaged)
        with pytest.raises(TrainingError, match="expected the pixels of .*, got .*; remove"):
            CachedFaces(faces, tmp_path)
    (tmp_path / "faces.json").write_text("[" * 100_000)
    with pytest.raises(TrainingError, match="expected the description of a cache, got .*; remove"):
        CachedFaces(faces, tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint ran",))


def test_a_checkpoint_with_code_is_not_run(faces, tiny, tmp_path, capsys):
    torch.save({"about": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="expected a whole checkpoint of a training, got "):
        train(QUICK, tiny(), faces, out=tmp_path)
    assert "ran" not in capsys.readouterr().out


def test_other_initial_weights_or_faces_are_another_training(faces, tiny, tmp_path):
    train(QUICK, tiny(), faces, out=tmp_path)
    with pytest.raises(
        TrainingError, match=r"first network\.weights: expected sha256 .* \(as in checkpoint\.pt\), got"
    ):
        train(QUICK, tiny(7), faces, out=tmp_path)
    assert train(QUICK, tiny(7), faces, out=tmp_path, fresh=True).resumed_at == 0


@pytest.mark.parametrize("lost", ["best.safetensors", "last.safetensors"])
def test_a_finished_training_is_checked_when_it_is_used(faces, tiny, tmp_path, lost):
    train(QUICK, tiny(), faces, out=tmp_path)
    before = (tmp_path / lost).read_bytes()
    (tmp_path / lost).unlink()
    if lost == "best.safetensors":
        with pytest.raises(
            TrainingError,
            match=r"best\.safetensors: expected the best weights, got a file that .*; use --fresh to train again",
        ):
            train(QUICK, tiny(), faces, out=tmp_path)
        (tmp_path / lost).write_bytes(bytes(len(before)))
        with pytest.raises(
            TrainingError,
            match=r"best\.safetensors: expected the weights that the training wrote, got others; use --fresh",
        ):
            train(QUICK, tiny(), faces, out=tmp_path)
        return
    train(QUICK, tiny(), faces, out=tmp_path)
    assert (tmp_path / lost).read_bytes() == before


def test_temporary_files_of_a_killed_training_are_removed(faces, tiny, tmp_path):
    (tmp_path / ".0123456789abcdef.fastadv-tmp").write_bytes(b"half")
    train(QUICK, tiny(), faces, out=tmp_path)
    assert not list(tmp_path.glob(".*.fastadv-tmp"))


def test_a_training_that_is_refused_leaves_no_folder(faces, tiny, tmp_path):
    with pytest.raises(TrainingError, match="loss"):
        train(replace(QUICK, lr=1e30), tiny(), faces, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
