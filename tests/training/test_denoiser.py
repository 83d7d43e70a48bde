"""The training of a denoiser: what it is shown, deterministic, resumable to the bit, and clear about user errors."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from killed import Killed, kill_at, same
from typer.testing import CliRunner

from fastadv.cli import app
from fastadv.core.lock import FolderLock
from fastadv.data import SourceError, SyntheticFaces
from fastadv.models.red import REDNet, load_denoiser
from fastadv.studies.train_denoiser import train_noise2clean
from fastadv.training import TrainingError
from fastadv.training.batches import shuffled
from fastadv.training.denoiser import save_denoiser, train_denoiser
from fastadv.training.denoiser_config import DenoiserConfig
from fastadv.training.noisy_batches import HeldImages, draw, measure, noisy, psnr

QUICK = DenoiserConfig(sigma_min=0.0, sigma_max=0.12, width=4, layers=6, patch=16, epochs=3, batch=8, lr=3e-3, seed=2)
FILES = ["best.safetensors", "checkpoint.pt", "last.safetensors", "training.json"]

# small pictures without landmarks: the note about them is not what is tested
UNALIGNED = pytest.mark.filterwarnings("ignore::fastadv.core.notices.Notice")


def weights(result):
    return result.network.state_dict()


@pytest.fixture(scope="module")
def held():
    unseen = SyntheticFaces(identities=5, per_identity=1, seed=1, size=32, first=100)
    return HeldImages(source=unseen, names=unseen.names)


def test_it_learns_to_remove_noise(faces, held):
    result = train_denoiser(replace(QUICK, width=8, lr=1e-2, epochs=40), faces, held=held)
    first, last = result.history[0], result.history[-1]
    assert last.loss < 0.8 * first.loss
    assert result.steps == 160
    assert result.images == 36
    for gain in result.best.gains[1:]:
        assert gain.decibels > 2.0
    assert not result.network.training
    assert not any(p.requires_grad for p in result.network.parameters())


def test_the_seed_decides_and_nothing_else_is_random(faces):
    random = torch.get_rng_state()
    made = [weights(train_denoiser(replace(QUICK, seed=seed), faces)) for seed in (2, 2, 3)]
    assert torch.equal(torch.get_rng_state(), random)
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


@pytest.mark.parametrize(("at", "saved"), [(4, 3), (6, 6), (9, 8)])
def test_killed_and_started_again_is_as_never_interrupted(at, saved, faces, held, tmp_path):
    config = replace(QUICK, checkpoint_steps=3 if at != 6 else 2)
    calm = train_denoiser(config, faces, held=held)
    with pytest.raises(Killed):
        train_denoiser(config, faces, held=held, out=tmp_path, progress=kill_at(at))
    again = train_denoiser(replace(config, checkpoint_steps=1), faces, held=held, out=tmp_path)
    assert again.resumed_at == saved
    assert again.history == calm.history
    assert same(weights(again), weights(calm))
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


def test_killed_while_it_measures(faces, held, tmp_path):
    calm = train_denoiser(QUICK, faces, held=held)

    def kill(stage, done, total):
        if stage == "validating":
            raise Killed

    with pytest.raises(Killed):
        train_denoiser(QUICK, faces, held=held, out=tmp_path, progress=kill)
    again = train_denoiser(QUICK, faces, held=held, out=tmp_path)
    assert again.resumed_at == 4
    assert again.history == calm.history
    assert same(weights(again), weights(calm))


def test_a_finished_training_is_only_read(faces, held, tmp_path):
    first = train_denoiser(QUICK, faces, held=held, out=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    second = train_denoiser(QUICK, faces, held=held, out=tmp_path, progress=lambda *_: pytest.fail("a step was made"))
    assert second.history == first.history
    assert second.resumed_at == 12
    assert same(weights(second), weights(first))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_is_written(faces, held, tmp_path):
    result = train_denoiser(QUICK, faces, held=held, out=tmp_path)
    record = json.loads((tmp_path / "training.json").read_text())
    assert [e["epoch"] for e in record["history"]] == [1, 2, 3]
    assert record["best"]["epoch"] == result.best.epoch
    assert (record["images"], record["steps"]) == (36, 12)
    assert same(load_denoiser(tmp_path / "best.safetensors").state_dict(), weights(result))
    means = [sum(g.denoised for g in e.gains) for e in result.history]
    assert result.best is result.history[means.index(max(means))]
    save_denoiser(result.network, tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.75 * (tmp_path / "best.safetensors").stat().st_size
    assert load_denoiser(tmp_path / "half.safetensors").dtype == torch.float32


def test_patches_are_parts_of_the_image_and_noise_is_as_large_as_said(faces):
    images = torch.stack([faces.load(name).image for name in faces.names[:8]])
    ids = torch.tensor([faces.load(name).id for name in faces.names[:8]])
    config = replace(QUICK, sigma_min=0.05, sigma_max=0.05, patch=20)
    clean, given = draw(images, ids, config, 0)
    assert clean.shape == given.shape == (8, 3, 20, 20)
    mirrored = 0
    for k in range(8):
        found = []
        for patch in (clean[k], clean[k].flip(2)):
            windows = images[k].unfold(1, 20, 1).unfold(2, 20, 1).permute(1, 2, 0, 3, 4)
            found.append(bool((windows == patch).flatten(2).all(2).any()))
        assert any(found)
        mirrored += found[1]
    assert 0 < mirrored < 8
    inside = (clean > 0.25) & (clean < 0.75)
    assert float((given - clean)[inside].std()) == pytest.approx(0.05, rel=0.05)
    assert float(given.min()) >= 0
    assert float(given.max()) <= 1
    # of seed, epoch and image alone
    order = [3, 1, 7]
    again, noise = draw(images[order], ids[order], config, 0)
    assert torch.equal(again, clean[order])
    assert torch.equal(noise, given[order])
    assert not torch.equal(draw(images, ids, config, 1)[1], given)
    assert not torch.equal(draw(images, ids, replace(config, seed=3), 0)[1], given)


def test_sizes_of_the_noise_are_spread_over_the_range():
    images = torch.full((400, 3, 16, 16), 0.5)
    config = replace(QUICK, sigma_min=0.02, sigma_max=0.1, patch=16)
    clean, given = draw(images, torch.arange(400), config, 0)
    sizes = (given - clean).flatten(1).std(1)
    assert float(sizes.mean()) == pytest.approx(0.06, abs=0.005)
    assert 0.017 < float(sizes.min()) < 0.03
    assert 0.09 < float(sizes.max()) < 0.11


def test_an_epoch_shows_every_image_once():
    names = [f"a/{k}" for k in range(19)]
    first, second = (shuffled(names, QUICK.batch, seed=QUICK.seed, epoch=epoch) for epoch in (0, 1))
    assert len(first) == len(set(first)) == 16
    assert first != second


def test_decibels():
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert psnr(x + 0.1, x).tolist() == pytest.approx([20.0, 20.0])
    noise = noisy(torch.full((4, 3, 32, 32), 0.5), torch.arange(4), 0.05, seed=0)
    assert psnr(noise, torch.full_like(noise, 0.5)).tolist() == pytest.approx([26.02] * 4, abs=0.3)


def test_the_identity_gains_nothing(held):
    for gain in measure(REDNet(width=2, layers=4), held):
        assert gain.noisy == gain.denoised
    five, one = (measure(REDNet(width=2, layers=4), h)[0].noisy for h in (held, replace(held, names=held.names[:1])))
    assert five != one


def test_rates():
    config = replace(QUICK, lr=1.0)
    rates = [config.rate(k, 100) for k in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.001


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0}, "width: expected an integer in .1, 512., got 0"),
        ({"layers": 7}, "layers: expected an even number"),
        ({"stride": 4}, "stride: expected an integer in .1, 2., got 4"),
        ({"sigma_max": 0}, r"sigma_max: expected a number in \(0, 1\], got 0"),
        ({"sigma_max": float("nan")}, "sigma_max"),
        ({"sigma_min": 0.2}, r"sigma_min: expected a number in \[0, sigma_max=0.1\], got 0.2"),
        ({"sigma_min": -0.1}, "sigma_min"),
        ({"patch": 7}, "patch: expected 8 or more, got 7"),
        ({"epochs": 0}, "epochs: expected 1 or more, got 0"),
        ({"batch": 0}, "batch: expected 1 or more, got 0"),
        ({"checkpoint_steps": 0}, "checkpoint_steps: expected 1 or more, got 0"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"seed": -1}, r"seed: expected a number in \[0, 2\^63\), got -1"),
    ],
)
def test_wrong_fields(fields, words):
    with pytest.raises(ValueError, match=words):
        replace(DenoiserConfig(), **fields)


def test_images_that_cannot_be_trained_on(faces, held):
    with pytest.raises(TrainingError, match="source: expected images of one size, at least 33 as the patches, got 32"):
        train_denoiser(replace(QUICK, patch=33), faces)
    with pytest.raises(TrainingError, match="batch: expected at most the 36 images there are, got 64"):
        train_denoiser(replace(QUICK, batch=64), faces)
    with pytest.raises(TrainingError, match="batch: expected at most the 6 images there are, got 8"):
        train_denoiser(QUICK, faces, held=HeldImages(source=faces, names=faces.names[6:]))
    with pytest.raises(TrainingError, match="held: expected one image or more, got none"):
        train_denoiser(QUICK, faces, held=replace(held, names=()))


def test_a_loss_that_is_not_finite_stops(faces, tmp_path):
    with pytest.raises(TrainingError, match=r"loss: .* at step \d+ of 12; .* try a lower lr \(now 1e\+30\)"):
        train_denoiser(replace(QUICK, lr=1e30), faces, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint ran",))


def test_folders_that_cannot_be_used(faces, tmp_path, capsys):
    train_denoiser(QUICK, faces, out=tmp_path / "a")
    with pytest.raises(
        TrainingError, match=r"another training; sigma_max: expected 0\.12 \(as in checkpoint\.pt\), got 0\.13"
    ):
        train_denoiser(replace(QUICK, sigma_max=0.13), faces, out=tmp_path / "a")
    other = SyntheticFaces(identities=6, per_identity=6, seed=2, size=32)
    with pytest.raises(TrainingError, match="holds another training; images: expected"):
        train_denoiser(QUICK, other, out=tmp_path / "a")
    whole = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "a" / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(TrainingError, match="checkpoint.pt: expected a whole checkpoint of a training, got "):
            train_denoiser(QUICK, faces, out=tmp_path / "a")
    (tmp_path / "a" / "checkpoint.pt").unlink()
    with pytest.raises(
        TrainingError, match="out: expected a folder with a checkpoint or without weights, got .* with weights alone"
    ):
        train_denoiser(QUICK, faces, out=tmp_path / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="file is a file, expected a folder|expected a folder, got the file"):
        train_denoiser(QUICK, faces, out=tmp_path / "file")
    (tmp_path / "b").mkdir()
    lock = FolderLock(tmp_path / "b" / ".lock")
    try:
        with pytest.raises(TrainingError, match="out: expected a folder that no other training writes to, got "):
            train_denoiser(QUICK, faces, out=tmp_path / "b")
    finally:
        lock.release()
    torch.save({"about": Evil()}, tmp_path / "b" / "checkpoint.pt")
    with pytest.raises(TrainingError, match="expected a whole checkpoint of a training, got "):
        train_denoiser(QUICK, faces, out=tmp_path / "b")
    assert "ran" not in capsys.readouterr().out


def test_a_checkpoint_of_another_network_is_refused(faces, tmp_path):
    train_denoiser(QUICK, faces, out=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["network"]["stride"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="expected a checkpoint that fits this training, got another"):
        train_denoiser(QUICK, faces, out=tmp_path)


SMALL = replace(QUICK, batch=2, epochs=1)


@UNALIGNED
def test_a_folder(folder, tmp_path):
    stages = set()
    summary = train_noise2clean(
        data=folder,
        out=tmp_path / "out",
        config=SMALL,
        size=32,
        cache=tmp_path / "cache",
        half=True,
        progress=lambda stage, done, total: stages.add(stage),
    )
    assert stages == {"caching", "epoch 1/1", "validating"}
    assert (summary.images, summary.held, summary.steps) == (3, 3, 1)  # of one of two people
    assert (summary.layers, summary.width, summary.stride) == (6, 4, 1)
    assert load_denoiser(summary.weights).width == 4
    assert load_denoiser(tmp_path / "out" / "half.safetensors").width == 4
    again = train_noise2clean(data=folder, out=tmp_path / "out", config=SMALL, size=32, cache=tmp_path / "cache")
    assert again.resumed_at == 1
    assert again.history == summary.history


@UNALIGNED
def test_one_folder_of_images(folder, tmp_path):
    for file in (folder / "bob").iterdir():
        file.rename(folder / "ada" / f"b{file.name}")
    (folder / "bob").rmdir()
    summary = train_noise2clean(data=folder, out=tmp_path / "out", config=SMALL, size=32)
    assert (summary.images, summary.held) == (5, 1)


def test_synthetic_faces(tmp_path):
    summary = train_noise2clean(
        data="synthetic", out=tmp_path / "out", config=SMALL, size=32, identities=2, per_identity=2
    )
    assert (summary.images, summary.held, summary.steps) == (4, 100, 2)


def test_user_errors_of_the_workflow(folder, tmp_path):
    common = {"out": tmp_path / "out", "config": SMALL}
    with pytest.raises(SourceError, match="missing: expected a folder, got no such folder"):
        train_noise2clean(data=tmp_path / "missing", **common)
    with pytest.raises(ValueError, match="identities: expected at most 900000"):
        train_noise2clean(data="synthetic", identities=900_001, **common)
    with pytest.raises(ValueError, match="device: expected cpu.*, got 'cuda:99'"):
        train_noise2clean(data=folder, device="cuda:99", **common)
    with pytest.raises(ValueError, match="device: expected cpu.*, got 'somewhere'"):
        train_noise2clean(data=folder, device="somewhere", **common)
    (folder / "ada" / "0.png").write_bytes((folder / "ada" / "0.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"0.png: the image is damaged"):
        train_noise2clean(data=folder, out=tmp_path / "b", config=replace(SMALL, batch=3))
    for name in ("1", "2"):
        (folder / "ada" / f"{name}.png").unlink()
    for file in (folder / "bob").iterdir():
        file.unlink()
    (folder / "bob").rmdir()
    with pytest.raises(TrainingError, match="data: expected at least two images, one of them to measure on, got 1"):
        train_noise2clean(data=folder, **common)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def fastadv(monkeypatch):
    """Run the command line; returns the exit code, what was printed, and what went wrong."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments):
        done = CliRunner().invoke(app, [str(a) for a in arguments], env={"NO_COLOR": "1"})
        crash = isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit)
        return done.exit_code, done.stdout, str(done.exception) if crash else done.stderr

    return call


@UNALIGNED
def test_the_command(fastadv, folder, tmp_path):
    out = tmp_path / "out"
    given = ["--data", folder, "--out", out, "--width", 4, "--layers", 6, "--batch", 2, "--epochs", 1, "--size", 32]
    given += ["--patch", 16, "--sigma-max", 0.05]
    code, shown, wrong = fastadv("train", "denoiser", *given)
    assert code == 0, wrong
    for text in ("fastadv train denoiser", "PSNR on 3 held-out images, epoch 1", "noisy", "denoised", "gain"):
        assert text in shown
    assert sorted(p.name for p in out.iterdir()) == [".hashes.json", *FILES]
    about = json.loads((out / "training.json").read_text())["about"]
    assert (about["sigma_min"], about["sigma_max"], about["width"], about["stride"]) == (0.05, 0.05, 4, 1)
    assert json.loads(fastadv("train", "denoiser", *given, "--json")[1])["resumed_at"] == 1
    code, _, wrong = fastadv("train", "denoiser", *given, "--lr", 0.5)
    assert code == 1
    assert "holds another training; lr: expected 0.001 (as in checkpoint.pt), got 0.5; use --fresh" in wrong


def test_train_is_still_a_command_of_its_own(fastadv, folder, tmp_path):
    given = ["--model", "synth-shuffle", "--loss", "softmax", "--epochs", 1, "--batch", 3, "--out", tmp_path / "out"]
    code, shown, wrong = fastadv("train", "--data", folder, *given, "--json")
    assert code == 0, wrong
    assert json.loads(shown)["steps"] == 2
    shown = fastadv("train", "--help")[1]
    for text in ("--loss", "Commands", "denoiser"):
        assert text in shown
    assert "--loss" not in fastadv("train", "denoiser", "--help")[1]


def test_options_that_do_not_go_together(fastadv, folder, tmp_path):
    given = ["--data", folder, "--model", "synth-shuffle", "--out", tmp_path / "out"]
    for arguments, words in (
        (("train",), "Missing option '--data'"),
        (("train", "denoiser"), "Missing option '--data'"),
        (("train", "denoiser", "--data", folder), "Missing option '--out'"),
        (
            ("train", *given, "denoiser"),
            "denoiser: expected it before all options, got it after; fastadv train denoiser --data",
        ),
        (("train", *given, "denoise"), "No such command 'denoise'"),
        (("train", "denoiser", *given), "No such option: --model"),
    ):
        code, _, wrong = fastadv(*arguments)
        assert code != 0
        assert words in wrong
    assert not (tmp_path / "out").exists()
