"""A class head on a frozen backbone."""

from __future__ import annotations

import pytest
import torch

from fastadv.data import SyntheticFaces
from fastadv.models import load
from fastadv.training import HeadConfig, TrainingError, save_weights, train_head

QUICK = HeadConfig(epochs=30, batch=24, lr=1.0, patience=8, held_out=2)


def test_the_backbone_stays_and_the_head_learns(faces, tiny):
    model = tiny().eval()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    result = train_head(QUICK, model, faces)
    assert result.model is model
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert result.classes == tuple(sorted({n.split("/")[0] for n in faces.names}))
    assert result.train_accuracy > 2 / 6  # a random backbone, six people
    assert not any(p.requires_grad for p in model.head.parameters())


def test_accuracy_is_that_of_the_logits(faces, tiny):
    result = train_head(QUICK, tiny().eval(), faces)
    right = {True: [], False: []}
    for name in faces.names:
        logits = result.model.logits(faces.load(name).image[None])
        held = name.endswith(("/0004", "/0005"))
        right[held].append(result.classes[int(logits.argmax())] == name.split("/")[0])
    assert result.accuracy == pytest.approx(sum(right[True]) / len(right[True]))
    assert result.train_accuracy == pytest.approx(sum(right[False]) / len(right[False]))


def test_a_start_at_the_class_means(faces, tiny):
    """With no step taken it is the nearest class mean by cosine, of the images that do not validate."""
    model = tiny().eval()
    head = train_head(HeadConfig(epochs=1, lr=1e-12, start="means"), model, faces).model.head
    people = sorted({n.split("/")[0] for n in faces.names})
    sums = {}
    for name in faces.names:
        if not name.endswith(("/0004", "/0005")):
            unit = model(faces.load(name).image[None])[0].detach()
            sums[name.split("/")[0]] = sums.get(name.split("/")[0], 0) + unit
    means = torch.nn.functional.normalize(torch.stack([sums[k] for k in people]), dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(head.weight, dim=1), means, rtol=1e-4, atol=1e-5)
    assert float(head.bias.abs().max()) < 1e-9
    images = torch.stack([faces.load(n).image for n in faces.names])
    assert torch.equal(model.logits(images).argmax(1), (model(images) @ means.T).argmax(1))
    with pytest.raises(ValueError, match="start: expected one of random, means, got 'zeros'"):
        HeadConfig(start="zeros")


def test_the_seed_decides(faces, tiny):
    made = [train_head(HeadConfig(epochs=3, seed=s), tiny().eval(), faces).model.head.weight for s in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_zoo_loads_backbone_and_head(tmp_path):
    source = SyntheticFaces(identities=3, per_identity=4)
    result = train_head(HeadConfig(epochs=2), load("synth-vgg", random_weights_seed=0), source)
    images = torch.stack([source.load(name).image for name in source.names[:3]])
    save_weights(result.model, tmp_path / "full.safetensors")
    again = load("synth-vgg", tmp_path / "full.safetensors")
    assert torch.equal(again.logits(images), result.model.logits(images))
    save_weights(result.model, tmp_path / "half.safetensors", half=True)
    rounded = load("synth-vgg", tmp_path / "half.safetensors")
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    torch.testing.assert_close(rounded(images), again(images), rtol=0, atol=5e-3)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size


def test_faces_that_cannot_be_used(faces, tiny):
    with pytest.raises(TrainingError, match="source: expected at least two identities for a class head, got 1"):
        train_head(QUICK, tiny().eval(), SyntheticFaces(identities=1, per_identity=9, size=32))
    single = SyntheticFaces(identities=4, per_identity=2, size=32)
    with pytest.raises(
        TrainingError, match="source: expected more than the 2 held-out images of every identity, got too few of 4 of 4"
    ):
        train_head(QUICK, tiny().eval(), single)


def test_a_loss_that_is_not_finite_stops(faces, tiny):
    model = tiny().eval()
    with torch.no_grad():
        model.backbone[8].bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"loss: expected a finite number, got nan in epoch 1; .*lower lr"):
        train_head(QUICK, model, faces)
    assert model.head is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: expected 1 or more, got 0"),
        ({"held_out": 0}, "held_out: expected 1 or more, got 0"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**arguments)
