"""Noise2Clean: a defence that runs a network, in every place where defences go."""

from __future__ import annotations

import copy
import json
from dataclasses import FrozenInstanceError, replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from given_data import data_folder
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import fastadv as fa
from fastadv.attacks import Impersonate
from fastadv.cli import app
from fastadv.data import LFW, SyntheticFaces, write_pairs_csv
from fastadv.data.synthetic import write_faces
from fastadv.defences import (
    BitDepth,
    Chain,
    DefendedModel,
    MeanFilter,
    Noise2Clean,
    OneOf,
    PerfectKnowledge,
    WatchedDefendedModel,
    ZeroKnowledge,
    content_key,
    gradient_ratio,
    networks_of,
)
from fastadv.defences.evade_detector import WatchedModel
from fastadv.detection import Architecture, Detector, LayerTap, Network, Trajectory, centroids
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.models import CheckpointError, FaceModel, fixed_batches, load, prepare
from fastadv.models.red import REDNet, load_denoiser
from fastadv.studies.defences.plan import files_of, parse_defence
from fastadv.training.noisy_batches import HeldImages, measure


def make_red(seed: int = 0, *, width: int = 6, layers: int = 10, stride: int = 1) -> REDNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = REDNet(width=width, layers=layers, stride=stride)
        nn.init.normal_(network.decoder[-1].weight, std=0.05)
    return network


@pytest.fixture(params=[1, 2], ids=["stride1", "stride2"])
def defence(request) -> Noise2Clean:
    return Noise2Clean(network=make_red(stride=request.param))


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_file({k: v.contiguous() for k, v in make_red(3).state_dict().items()}, path)
    return path


def seen(defence, images, seed=0):
    return defence(images, content_key(images, seed))


def test_it_is_a_frozen_value(defence):
    assert (defence.name, defence.random) == ("noise2clean", False)
    with pytest.raises(FrozenInstanceError):
        defence.label = "other"
    assert replace(defence, label="mine").name == "mine"
    with pytest.raises(TypeError):
        Noise2Clean(make_red())
    # what is trained on afterwards is another network
    trained = make_red()
    kept = Noise2Clean(network=trained)
    with torch.no_grad():
        trained.encoder[0].weight.zero_()
    assert bool(kept.network.encoder[0].weight.any())
    assert not kept.network.training
    assert not any(p.requires_grad for p in kept.network.parameters())


def test_it_is_the_network_clipped(defence, faces):
    x = faces(5)
    y = seen(defence, x)
    assert torch.equal(y, defence.network(x).clamp(0, 1))
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    assert not torch.equal(y, x)
    assert torch.equal(seen(defence, x, 9), y)


@pytest.mark.parametrize("size", [(16, 16), (17, 9), (1, 2)])
def test_shape_type_and_memory_order_are_kept(defence, size):
    x = torch.rand(4, 3, *size)
    y = seen(defence, x)
    last = x.contiguous(memory_format=torch.channels_last)
    made = seen(defence, last)
    assert y.shape == x.shape
    assert torch.equal(made, y)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous()
    for dtype in (torch.float64, torch.bfloat16):
        assert seen(defence, x.to(dtype)).dtype == dtype
    assert seen(defence, x[:0]).shape == (0, 3, *size)


def test_an_image_s_result_does_not_hang_on_its_neighbours(defence, faces):
    x = faces(6)
    order = [4, 0, 5, 1, 1, 2]
    assert torch.equal(seen(defence, x[order]), seen(defence, x)[order])


def test_gradients_agree_with_float64(defence, faces):
    x = 0.3 + 0.4 * faces(3)  # nothing is clipped
    double = Noise2Clean(network=copy.deepcopy(defence.network).double())
    found = []
    for value, images in ((defence, x), (double, x.double())):
        leaf = images.clone().requires_grad_()
        weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(leaf.dtype)
        found.append(torch.autograd.grad((seen(value, leaf) * weights).sum(), leaf)[0].double())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-5
    assert float((found[1] - torch.ones_like(found[1])).norm()) > 0
    small = x[:1, :, :5, :6].double().clone().requires_grad_()
    key = content_key(small, 0)
    assert torch.autograd.gradcheck(lambda t: double(t, key), (small,), eps=1e-6)


def test_a_defended_model_sees_what_it_makes(defence, model, faces):
    x = faces(4)
    defended = defence.wrap(model, seed=3)
    assert isinstance(defended, DefendedModel)
    assert defended.name == "tiny0+noise2clean"
    assert torch.equal(defended(x), model(seen(defence, x)))
    assert torch.equal(defended.logits(x), model.logits(seen(defence, x)))
    assert not any(module.training for module in defended.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_prepared_copy_computes_the_defence_in_float32(defence, precision, channels_last, model, faces):
    x = faces(4).contiguous(memory_format=torch.channels_last)
    ready = prepare(defence.wrap(model), precision=precision, channels_last=channels_last)
    expected = prepare(model, precision=precision, channels_last=channels_last)(seen(defence, x))
    torch.testing.assert_close(ready(x), expected)
    assert {p.dtype for p in ready.defence.network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in ready.parameters())


def test_the_network_follows_the_model(defence, model, faces):
    """A device without memory stands for any: the model's own copy goes there, the defence and other models stay."""
    first, second = defence.wrap(model), defence.wrap(copy.deepcopy(model))
    copied = copy.deepcopy(first)
    assert copied.defence.network is copied.defence_networks[0]
    assert copied.defence.network is not first.defence.network
    moved = second.to("meta")
    assert moved.defence.network.device.type == "meta"
    assert moved(torch.empty(2, 3, 16, 16, device="meta")).device.type == "meta"
    assert defence.network.device.type == first.defence.network.device.type == "cpu"
    again = defence.wrap(FaceModel(model.backbone, input_size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1), name="m"))
    assert torch.isfinite(again(faces(2))).all()
    with pytest.raises(ValueError, match="images: expected ones on the network's device cpu, got meta"):
        defence(torch.empty(1, 3, 16, 16, device="meta"), content_key(faces(1), 0))


def test_it_goes_into_compositions(defence, model, faces):
    x = faces(6)
    chain = Chain(parts=(BitDepth(bits=3), defence, MeanFilter()))
    key = content_key(x, 1)
    expected = MeanFilter()(defence(BitDepth(bits=3)(x, key), key), key)
    assert torch.equal(chain(x, key), expected)
    either = OneOf(parts=(defence, Chain(parts=(MeanFilter(), defence))))
    assert networks_of(chain) == (defence.network,)
    assert networks_of(either) == (defence.network,) * 2
    assert networks_of(MeanFilter()) == networks_of(None) == ()
    for value in (chain, either):
        defended = value.wrap(model, seed=1)
        assert torch.equal(defended(x), model(seen(value, x, 1)))
        assert len(defended.defence_networks) == len(networks_of(value))
        assert all(network.device.type == "meta" for network in networks_of(copy.deepcopy(defended).to("meta").defence))
    assert not hasattr(MeanFilter().wrap(model), "defence_networks")


def make_detector(model):
    tapped = LayerTap(model=model)(torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(8)))
    found = [([value.detach() for value in tapped.values], torch.arange(8) % 2)]
    representatives = centroids(found, layers=model.layers, classes=("a", "b"), model=model.name)
    network = Network(Architecture(kind="mlp", layers=2, width=2, hidden=4, dropout=0.0))
    network.scale.fill_(0.05)
    trajectory = Trajectory(representatives=representatives, metric="l2")
    return Detector(trajectory=trajectory, network=network.eval().requires_grad_(False))


@torch.no_grad()
def test_it_goes_in_front_of_a_defended_and_of_a_watched_model(defence, model, faces):
    x = faces(3)
    both = defence.wrap(MeanFilter().wrap(model))
    assert torch.equal(both(x), model(seen(MeanFilter(), seen(defence, x))))
    other = MeanFilter().wrap(defence.wrap(model))
    assert torch.equal(other(x), model(seen(defence, seen(MeanFilter(), x))))
    watched = WatchedModel(model, make_detector(model))
    defended = defence.wrap(watched)
    assert isinstance(defended, WatchedDefendedModel)
    assert torch.equal(defended(x), watched(seen(defence, x)))
    assert defended.defence.network is defended.defence_networks[0]
    assert defended.defence.network is not defence.network


def attack(model, x, targets, *, order=None, slots=None, engine=None):
    goal = Impersonate(targets, threshold=0.99)
    jobs = [Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in (range(len(x)) if order is None else order)]
    chosen = engine or Engine(batch=4, slots=slots)
    found = stream_jobs(fa.attacks.fim(eps=16 / 255, steps=4), jobs, model, seed=2, engine=chosen)
    return {r.name: r for r in found}


def test_the_engine_goes_through_it(defence, model, faces):
    x, t = faces(6), faces(6, 2)
    defended = defence.wrap(model)
    first = attack(defended, x, t)
    other = attack(defended, x, t, order=[5, 2, 0, 1, 4, 3], slots=8)
    bare = attack(model, x, t)
    for name, result in first.items():
        assert torch.equal(result.image, other[name].image)
        score = (defended(result.image[None]) * defended(t[int(name)][None])).sum().detach()
        assert result.score_after == pytest.approx(float(score), abs=1e-5)
        assert result.nonfinite == 0
    assert any(not torch.equal(first[k].image, bare[k].image) for k in first)
    attack(defended, x, t, engine=Engine(batch=4, precision="bf16"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_captured_tick_goes_through_it(defence, precision, model, faces):
    x, t = faces(6), faces(6, 2)
    defended = defence.wrap(model.to("cuda"))
    made = [
        attack(defended, x, t, engine=Engine(batch=4, slots=4, precision=precision, capture=capture))
        for capture in (False, True)
    ]
    assert all(torch.equal(made[0][k].image, made[1][k].image) for k in made[0])


def test_a_user_s_file(file, faces):
    mine = Noise2Clean.from_file(file)
    assert mine.name == f"noise2clean:{file.parent.name}/mine"
    assert torch.equal(seen(mine, faces(2)), seen(Noise2Clean(network=make_red(3)), faces(2)))


def test_user_errors(file, tmp_path):
    with pytest.raises(TypeError, match="network: expected a REDNet, got str"):
        Noise2Clean(network="red")
    with pytest.raises(TypeError, match="label: expected a non-empty str, got ''"):
        Noise2Clean(network=make_red(), label="")
    with pytest.raises(CheckpointError, match=r"weights: expected .*, got .*none\.safetensors, which does not exist"):
        Noise2Clean.from_file(tmp_path / "none.safetensors")
    assert Noise2Clean.from_file(file.rename(tmp_path / "mine.pth")).name.endswith("/mine")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"weights: expected a denoiser with the tensors .*, got a.* in .*other\.safetensors"
    ):
        Noise2Clean.from_file(tmp_path / "other.safetensors")


def test_from_text(file):
    shipped = parse_defence("noise2clean")
    assert isinstance(shipped.defence, Noise2Clean)
    assert shipped.defence.name == "noise2clean"
    own = parse_defence(f"noise2clean:{file}")
    assert own.label == own.defence.name == f"noise2clean:{file.parent.name}/mine"
    chain = parse_defence(f"one(bits:3+noise2clean:{file}|noise2clean)")
    assert len(networks_of(chain.defence)) == 2
    assert chain.label == f"one(bits:3+{own.label}|noise2clean)"
    assert not chain.defence.on_host
    hashes = files_of([shipped, own, chain, parse_defence("mean")])
    assert list(hashes) == [shipped.label, own.label, chain.label]
    assert hashes[chain.label] == f"{hashes[own.label]},{hashes[shipped.label]}"
    for text in ("noise2clean:", "noise2clean:none.safetensors"):
        with pytest.raises(CheckpointError, match="weights: expected a safetensors file or a torch checkpoint, got "):
            parse_defence(text)


def test_a_missing_shipped_file_is_said(monkeypatch, tmp_path):
    from fastadv.models import shipped

    monkeypatch.setattr(shipped, "files", lambda package: tmp_path)
    with pytest.raises(
        CheckpointError, match=r"weights: expected the package's file .*red30\.safetensors, got no such file"
    ):
        Noise2Clean()


def test_the_shipped_network_is_small_and_has_thirty_layers():
    network = Noise2Clean().network
    assert network.layers == 30
    assert len(network.encoder) == len(network.decoder) == 15
    assert sum(p.numel() for p in network.parameters()) == 147_147
    assert network.dtype == torch.float32
    assert len((files("fastadv") / "weights" / "red30.safetensors").read_bytes()) < 400_000


# Decibels gained at sigma 0.025, 0.05 and 0.1, at least.
SYNTHETIC, PHOTOGRAPHS = (2.0, 7.0, 10.0), (1.5, 6.5, 10.0)


def check_gains(source, names, least):
    for gain, decibels in zip(
        measure(load_denoiser(), HeldImages(source=source, names=tuple(names))), least, strict=True
    ):
        assert gain.decibels > decibels, gain


def test_the_shipped_network_removes_noise_from_unseen_synthetic_faces():
    unseen = SyntheticFaces(identities=24, per_identity=1, seed=77)
    check_gains(unseen, unseen.names, SYNTHETIC)


@pytest.mark.faces
def test_the_shipped_network_removes_noise_from_photographs():
    faces = LFW(data_folder("lfw") / "lfw", size=112)
    check_gains(faces, faces.names[:: len(faces) // 24][:24], PHOTOGRAPHS)


@pytest.fixture(scope="module")
def people():
    unseen = SyntheticFaces(identities=12, per_identity=2, seed=78)
    return [torch.stack([unseen.load(f"s78-{k:06d}/{i:04d}").image for k in range(12)]) for i in (0, 1)]


def test_it_stops_part_of_what_does_not_know_it(people):
    """Ten steps of FIM on the bare network lose much of their way behind the defence; those made through it do not."""
    x, t = people[0], people[0].roll(1, 0)
    model, defence = load("synth-mobile"), Noise2Clean()
    moves = fa.attacks.fim(eps=8 / 255, steps=10)
    judges = {"bare": prepare(model), "defended": prepare(defence.wrap(model))}
    similar = {}
    for threat in (ZeroKnowledge(), PerfectKnowledge()):
        attacker = threat.attacker(moves, model, defence)
        made = fa.run(attacker.recipe, attacker.goal(Impersonate(t, threshold=0.999)), attacker.model, x).images
        for name, judge in judges.items():
            rows = fixed_batches(judge, torch.cat([made, t]), 12)
            similar[threat.name, name] = float((rows[:12] * rows[12:]).sum(1).mean())
    assert similar["zero", "defended"] < similar["zero", "bare"] - 0.15
    assert similar["perfect", "defended"] > similar["zero", "defended"] + 0.08


def test_its_gradient_is_not_masked(people):
    model = load("synth-mobile")
    ratio = gradient_ratio(prepare(Noise2Clean().wrap(model)), prepare(model), people[0][:8], people[0][4:12])
    assert 0.05 < ratio < 5


def test_the_command(file, tmp_path):
    source = SyntheticFaces(identities=12, per_identity=2, seed=78)
    write_faces(source, source.names, tmp_path / "faces")
    write_pairs_csv(tmp_path / "pairs.csv", (replace(p, fold=None) for p in source.pairs(8, folds=2)))
    given = ["defend", "--data", tmp_path / "faces", "--model", "synth-mobile", "--pairs", tmp_path / "pairs.csv"]
    given += ["--defence", f"noise2clean:{file}", "--attack", "ffm@8/255", "--out", tmp_path / "run"]
    done = CliRunner().invoke(app, [*map(str, given), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    labels = {d["defence"] for d in json.loads(done.stdout)["defences"]}
    assert labels == {"none", f"noise2clean:{file.parent.name}/mine"}
    save_file({k: v.contiguous() for k, v in make_red(4).state_dict().items()}, file)
    with pytest.raises(ValueError, match="files"):  # other weights under the same name
        CliRunner().invoke(app, [str(a) for a in given], catch_exceptions=False)
