"""The losses against their formulas, written out."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from torch.nn import functional as F

from fastadv.training import TrainConfig, make_loss

N, D, K = 7, 5, 4


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(N, D, generator=generator), torch.arange(N) % K


def cosines(loss, features):
    weight = loss.W.detach().double()
    return F.normalize(features.double(), dim=1) @ F.normalize(weight, dim=0)


def cross_entropy(logits, labels):
    return -(logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(1)).mean()


def test_softmax(batch):
    features, labels = batch
    loss = make_loss(TrainConfig(loss="softmax"), features=D, classes=K)
    logits = features.double() @ loss.linear.weight.detach().double().T + loss.linear.bias.detach().double()
    torch.testing.assert_close(loss(features, labels).double(), cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("margin", "scale"), [(None, 32.0), (0.1, 8.0), (0.0, 1.0)])
def test_cosface(batch, margin, scale):
    features, labels = batch
    config = TrainConfig(loss="cosface", margin=margin, scale=scale)
    loss = make_loss(config, features=D, classes=K)
    m = 0.35 if margin is None else margin
    logits = scale * (cosines(loss, features) - m * F.one_hot(labels, K))
    torch.testing.assert_close(loss(features, labels).double(), cross_entropy(logits, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("margin", "scale"), [(None, 32.0), (0.2, 8.0)])
def test_arcface(batch, margin, scale):
    features, labels = batch
    config = TrainConfig(loss="arcface", margin=margin, scale=scale)
    loss = make_loss(config, features=D, classes=K)
    m = 0.5 if margin is None else margin
    cosine = cosines(loss, features)
    angle = cosine.acos()
    # Beyond pi - m the cosine would rise again, and the library goes on with a straight line.
    assert bool((angle[torch.arange(N), labels] < math.pi - m).all())
    chosen = F.one_hot(labels, K).bool()
    logits = scale * torch.where(chosen, (angle + m).cos(), cosine)
    torch.testing.assert_close(loss(features, labels).double(), cross_entropy(logits, labels), rtol=1e-4, atol=1e-5)


def test_triplet_is_the_mean_over_semihard_triplets(batch):
    features, _ = batch
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    margin = 0.4
    loss = make_loss(TrainConfig(loss="triplet", margin=margin), features=D, classes=3)
    distance = torch.cdist(*[F.normalize(features.double(), dim=1)] * 2)
    terms = []
    for a in range(N):
        for p in range(N):
            for n in range(N):
                if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
                    gap = float(distance[a, n] - distance[a, p])
                    if 0 < gap <= margin:  # semi-hard: farther than the positive, by less than the margin
                        terms.append(margin - gap)
    assert len(terms) > 3
    expected = sum(terms) / len(terms)
    assert float(loss(features, labels)) == pytest.approx(expected, rel=1e-4)


def test_a_batch_without_triplets_costs_nothing():
    loss = make_loss(TrainConfig(loss="triplet", margin=0.1), features=2, classes=2)
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert float(loss(apart, torch.tensor([0, 0, 1, 1]))) == 0


@pytest.mark.parametrize("name", ["softmax", "cosface", "arcface"])
def test_weights_follow_the_seed_and_leave_the_random_state(name):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first, again, other = (make_loss(TrainConfig(loss=name, seed=s), features=D, classes=K) for s in (4, 4, 5))
    assert torch.equal(torch.rand(2), expected)
    a, b, c = (next(iter(loss.parameters())) for loss in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(
        ImportError,
        match=r"expected the package pytorch-metric-learning, got no such package .* pip install 'fastadv\[train\]'",
    ):
        make_loss(TrainConfig(loss="cosface"), features=D, classes=K)
    make_loss(TrainConfig(loss="softmax"), features=D, classes=K)


def test_the_rate_rises_and_falls_to_zero():
    config = TrainConfig(lr=0.2, warmup=0.1)
    rates = [config.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (k + 1) for k in range(10)])
    assert rates[10] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-4
    assert TrainConfig(lr=0.2, warmup=0.0).rate(0, 10) == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "center"}, "loss: expected one of softmax, cosface, arcface, triplet, keep, got 'center'"),
        ({"optimizer": "adam"}, "optimizer: expected one of sgd, adamw, got 'adam'"),
        ({"precision": "fp16"}, "precision: expected one of fp32, bf16, got 'fp16'"),
        ({"epochs": 0}, "epochs: expected 1 or more, got 0"),
        ({"batch": 1}, "batch: expected 2 or more, got 1"),
        ({"lr": float("nan")}, "lr: expected a positive number, got nan"),
        ({"scale": 0.0}, "scale: expected a positive number"),
        ({"weight_decay": -1.0}, "weight_decay: expected a number >= 0"),
        ({"warmup": 1.0}, r"warmup: expected a share in \[0, 1\), got 1.0"),
        ({"margin": -0.1}, "margin: expected a number >= 0 or None, got -0.1"),
        ({"shift": -1}, "shift: expected 0 or more"),
        ({"checkpoint_steps": 0}, "checkpoint_steps: expected 1 or more, got 0"),
        ({"seed": -1}, "seed: expected a number in"),
        (
            {"loss": "triplet", "batch": 6},
            "batch: expected 8 or more with the triplet loss, two identities of 4 images, got 6",
        ),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**arguments)
