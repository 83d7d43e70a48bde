"""Adversarial training: what a batch becomes, what it does to a network, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from killed import Killed, kill_at, same, weights
from torch import nn

from fastadv.attacks import Evade, Rows, pgd
from fastadv.data import SyntheticFaces
from fastadv.engine import Engine, run
from fastadv.models import FaceModel
from fastadv.training import (
    Adversarial,
    Adversary,
    AwayOrTowards,
    CachedFaces,
    Held,
    TrainConfig,
    TrainingError,
    loop,
    train,
)
from fastadv.training.adversarial import evaluating
from fastadv.training.losses import logits_of, make_loss, start_from_means

EPS = 8 / 255
QUICK = TrainConfig(loss="softmax", epochs=2, batch=12, lr=0.05, shift=1, seed=2, adversarial=Adversarial(steps=2))
ALL = ("fim", "pgd", "ffm", "fgsm")


@pytest.fixture
def batch(faces):
    """Twelve images of six people, their classes and their ids."""
    held = [faces.load(name) for name in faces.names[::3]]
    people = sorted({f.identity for f in held})
    return (
        torch.stack([f.image for f in held]).contiguous(memory_format=torch.channels_last),
        torch.tensor([people.index(f.identity) for f in held]),
        torch.tensor([f.id for f in held]),
    )


def make_adversary(model, config, *, loss="softmax", classes=6, **more):
    settings = TrainConfig(loss=loss)
    head = logits_of(make_loss(settings, features=model.embedding_size, classes=classes), settings)
    return Adversary(config, model, head, seed=4, **more), head


def changed(before, after):
    return (before != after).flatten(1).any(1)


@pytest.mark.parametrize("attack", ALL)
@pytest.mark.parametrize(("share", "count"), [(0.5, 6), (0.01, 1), (1.0, 12)])
def test_a_share_of_the_batch_is_attacked_within_the_ball(attack, share, count, tiny, batch):
    images, labels, ids = batch
    adversary, _ = make_adversary(tiny(), Adversarial(attack=attack, eps=EPS, share=share))
    before = images.clone()
    made = adversary.mixed(images, labels, ids, 0)
    assert torch.equal(images, before)
    assert int(changed(images, made).sum()) == count == adversary.count(12)
    assert float((made - images).abs().max()) <= EPS + 1e-6
    assert float((made - images).abs().max()) > EPS / 2
    assert torch.equal((made * 255).round() / 255, made)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("loss", ["softmax", "cosface", "arcface"])
@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_attacks_on_logits_raise_the_loss_of_every_image(attack, loss, tiny, batch):
    images, labels, ids = batch
    model = tiny()
    adversary, head = make_adversary(model, Adversarial(attack=attack, eps=EPS, share=1.0), loss=loss)
    made = adversary.mixed(images, labels, ids, 0)
    model.eval()
    with torch.no_grad():
        clean, attacked = (
            nn.functional.cross_entropy(head(model.features(x)), labels, reduction="none") for x in (images, made)
        )
    assert bool((attacked > clean).all())


@pytest.mark.parametrize("attack", ["fim", "ffm"])
def test_attacks_on_embeddings_go_away_from_oneself_or_towards_another_person(attack, tiny, batch):
    images, labels, ids = batch
    model = tiny()
    goals = []

    class Seen(Adversary):
        def _goal(self, *given):
            goals.append(super()._goal(*given))
            return goals[-1]

    adversary = Seen(Adversarial(attack=attack, eps=EPS, share=1.0), model, None, seed=4)
    made = adversary.mixed(images, labels, ids, 0)
    (goal,) = goals
    towards = goal.towards.bool()
    assert 0 < int(towards.sum()) < 12
    model.eval()
    with torch.no_grad():
        own, target, attacked = model(images), model(goal.references), model(made)
    assert torch.equal(own[~towards], target[~towards])
    for k in towards.nonzero().flatten().tolist():
        (which,) = (images == goal.references[k]).flatten(1).all(1).nonzero().flatten().tolist()
        assert labels[which] != labels[k]
    before, after = (torch.linalg.vector_norm(x - target, dim=1) for x in (own, attacked))
    assert bool((after[~towards] > before[~towards]).all())
    assert float(after[towards].mean()) < float(before[towards].mean()) / 1.5
    assert attack == "ffm" or bool((after[towards] < before[towards]).all())  # one long step can go too far


def test_a_batch_of_one_person_is_attacked_away_only(tiny, batch):
    images, _, ids = batch
    adversary, _ = make_adversary(tiny(), Adversarial(steps=1, share=1.0))
    made = adversary.mixed(images, torch.zeros(12, dtype=torch.int64), ids, 0)
    assert bool(changed(images, made).all())


def test_draws_hang_on_seed_epoch_and_image(tiny, batch):
    images, labels, ids = batch
    config = Adversarial(attack="fgsm", eps=EPS)
    adversary, head = make_adversary(tiny(), config)
    made = adversary.mixed(images, labels, ids, 0)
    assert torch.equal(made, adversary.mixed(images, labels, ids, 0))
    # in another order each image is treated in the same way
    order = torch.arange(11, -1, -1)
    again = adversary.mixed(images[order].contiguous(memory_format=torch.channels_last), labels[order], ids[order], 0)
    assert torch.equal(again[order], made)
    assert not torch.equal(made, adversary.mixed(images, labels, ids, 1))
    other = Adversary(config, tiny(), head, seed=5)
    assert not torch.equal(made, other.mixed(images, labels, ids, 0))


@pytest.mark.parametrize("attack", ["fim", "pgd"])
def test_the_network_is_left_as_it_was(attack, tiny, batch):
    model = tiny(dropout=0.2)
    model.train()
    model.backbone[1].eval()
    adversary, head = make_adversary(model, Adversarial(attack=attack, steps=2))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes = [m.training for m in model.modules()]
    before, state = weights(model), torch.get_rng_state()
    adversary.mixed(*batch, 0)
    assert [m.training for m in model.modules()] == modes
    assert same(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and bool((p.grad == 1).all()) for p in model.parameters())
    assert all(p.requires_grad and p.grad is None for p in head.parameters())
    assert model.head is None


def test_modes_come_back_after_an_error(tiny):
    model = tiny().train()

    def attacked():
        with evaluating(model):
            assert not any(m.training for m in model.modules())
            raise Killed

    with pytest.raises(Killed):
        attacked()
    assert all(m.training for m in model.modules())


def test_steps_and_sizes():
    fim, pgd_, ffm, fgsm = (Adversarial(attack=name, eps=EPS).moves.attack for name in ALL)
    assert (fim.steps, fim.step_size) == (10, 1 / 255)
    assert (pgd_.steps, pgd_.step_size) == (10, 2.5 * EPS / 10)
    assert {(m.steps, m.step_size) for m in (ffm, fgsm)} == {(1, 1.25 * EPS)}
    assert all(m.random_start and m.budget.eps == EPS for m in (fim, pgd_, ffm, fgsm))
    assert Adversarial(eps=EPS, steps=10).moves.attack == fim
    assert Adversarial(eps=EPS, steps=4).moves.attack.step_size == pytest.approx(2.5 / 255)
    assert Adversarial(eps=EPS, steps=40).moves.attack.step_size == 1 / 255


def test_both_ways_in_one_goal():
    outputs = nn.functional.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    references = outputs.roll(1, 0)
    goal = AwayOrTowards(references=references, towards=torch.tensor([0, 1, 1, 0]))
    rows = Rows(reference=references, label=goal.towards)
    d = (outputs - references).norm(dim=1)
    torch.testing.assert_close(goal.loss(outputs, rows), d * torch.tensor([1.0, -1.0, -1.0, 1.0]))
    assert not bool(goal.achieved(outputs, rows).any())
    assert torch.equal(goal.row(2).references, references[2:3])
    with pytest.raises(ValueError, match="references: expected float images"):
        AwayOrTowards(references=torch.zeros(3), towards=torch.zeros(3, dtype=torch.int64))


def robust_accuracy(model, source, names, held, classes):
    """Shares of images whose nearest class mean is right, clean and under PGD on the embedding (20 steps)."""
    load = lambda listed: torch.stack([source.load(n).image for n in listed])  # noqa: E731
    labels = torch.tensor([classes.index(n.split("/")[0]) for n in held])
    with torch.no_grad():
        rows = model(load(names))
        own = torch.tensor([classes.index(n.split("/")[0]) for n in names])
        means = nn.functional.normalize(torch.stack([rows[own == k].mean(0) for k in range(len(classes))]))
    images = load(held)
    made = run(pgd(eps=EPS, steps=20), Evade(threshold=-1.0), model, images, engine=Engine(batch=24))
    with torch.no_grad():
        return [float(((model(x) @ means.T).argmax(1) == labels).float().mean()) for x in (images, made.images)]


LONG = TrainConfig(loss="softmax", epochs=30, batch=40, lr=0.2, shift=0, seed=1)


@pytest.fixture(scope="module")
def people(tmp_path_factory, tiny):
    """Ten people, names to train on and names to test on, and what clean training reaches."""
    source = CachedFaces(
        SyntheticFaces(identities=10, per_identity=16, seed=3, size=32), tmp_path_factory.mktemp("people")
    )
    classes = sorted({n.split("/")[0] for n in source.names})
    held = [n for n in source.names if int(n.split("/")[1]) % 4 == 0]
    names = [n for n in source.names if n not in held]

    def measured(config):
        return robust_accuracy(train(config, tiny(), source).model, source, names, held, classes)

    return measured, measured(LONG)


@pytest.mark.parametrize("attack", ["fim", "fgsm"])
def test_it_makes_a_network_more_robust(attack, people):
    measured, (clean_before, robust_before) = people
    adversarial = Adversarial(attack=attack, eps=EPS, steps=3 if attack == "fim" else None)
    clean, robust = measured(replace(LONG, adversarial=adversarial))
    assert robust >= robust_before + 0.2  # 0.25 to 0.62 and 0.55 as measured
    assert clean >= clean_before - 0.1


@pytest.mark.parametrize("attack", ["fim", "fgsm"])
@pytest.mark.parametrize("fine_tune", [False, True])
def test_killed_and_started_again_is_as_never_interrupted(attack, fine_tune, faces, tiny, tmp_path):
    adversarial = Adversarial(attack=attack, steps=2 if attack == "fim" else None)
    config = replace(
        QUICK, adversarial=adversarial, fine_tune=fine_tune, checkpoint_steps=2, batch=6, scale=4.0, lr=0.01
    )
    calm = train(config, tiny(dropout=0.2), faces)
    with pytest.raises(Killed):
        train(config, tiny(dropout=0.2), faces, out=tmp_path, progress=kill_at(9))
    again = train(config, tiny(dropout=0.2), faces, out=tmp_path)
    assert again.resumed_at == 8
    assert again.history == calm.history
    assert same(weights(again.model), weights(calm.model))
    with pytest.raises(TrainingError, match="holds another training; adversarial"):
        train(replace(config, adversarial=None), tiny(), faces, out=tmp_path)


def test_bf16_and_triplets(faces, tiny):
    train(replace(QUICK, epochs=1, precision="bf16"), tiny(), faces)
    train(replace(QUICK, epochs=1, loss="triplet", per_identity=3), tiny(), faces)


def test_fine_tuning_keeps_statistics_and_begins_with_class_means(faces, tiny):
    model = tiny()
    model.backbone[1].running_mean += 0.1
    before = weights(model)
    after = weights(train(replace(QUICK, fine_tune=True, adversarial=None), model, faces).model)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["1.weight"], after["1.weight"])


def test_a_clipped_gradient_makes_a_short_step(faces, tiny):
    model = tiny()
    before = {k: v.detach().clone() for k, v in model.backbone.named_parameters()}
    config = replace(
        QUICK, adversarial=None, fine_tune=True, epochs=1, batch=36, lr=0.1, weight_decay=0.0, warmup=0.0, clip=1e-3
    )
    train(config, model, faces)
    moved = sum(float((v.detach() - before[k]).square().sum()) for k, v in model.backbone.named_parameters()) ** 0.5
    assert 0 < moved <= 1.9 * 0.1 * 1e-3 * 1.001  # one step, Nesterov's momentum of 0.9
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="clip: expected a number > 0 or None"):
            TrainConfig(clip=wrong)


def test_keeping_the_embeddings(faces, tiny, tmp_path):
    """Attacked images come to be embedded as the clean ones were before."""
    config = replace(QUICK, loss="keep", fine_tune=True, epochs=8, lr=5e-4)
    images = torch.stack([faces.load(n).image for n in faces.names])
    first = tiny().eval()
    with torch.no_grad():
        kept = first(images)
    model = train(config, tiny(), faces, out=tmp_path).model
    moved = []
    for network in (first, model):
        made = run(pgd(eps=EPS, steps=5), Evade(references=images, threshold=-1.0), network, images)
        with torch.no_grad():
            moved.append([float((network(x) - kept).norm(dim=1).mean()) for x in (images, made.images)])
    assert moved[1][1] < moved[0][1] * 0.6  # 0.42 and 0.21 as measured
    assert moved[1][0] < moved[0][1] * 0.25  # 0.07
    with pytest.raises(TrainingError, match="holds another training; first network.weights"):
        train(config, tiny(7), faces, out=tmp_path)
    with pytest.raises(ValueError, match=r"fine_tune: expected True \(--fine-tune\) with the loss 'keep'"):
        TrainConfig(loss="keep")


@pytest.mark.parametrize("loss", ["softmax", "cosface", "arcface", "triplet"])
def test_class_means(loss):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat(4)
    features = 3 * torch.randn(5, 7, generator=generator)[labels] + 0.1 * torch.randn(20, 7, generator=generator)
    config = TrainConfig(loss=loss, scale=16)
    made = make_loss(config, features=7, classes=5)
    start_from_means(made, config, features, labels)
    head = logits_of(made, config)
    if loss == "triplet":
        assert head is None
        return
    logits = head(features).detach()
    assert torch.equal(logits.argmax(1), labels)
    assert float(logits.max()) == pytest.approx(16, rel=0.5)
    if loss != "softmax":
        vectors = torch.stack([nn.functional.normalize(features[labels == k], dim=1).mean(0) for k in range(5)])
        cosines = nn.functional.normalize(features, dim=1) @ nn.functional.normalize(vectors, dim=1).T
        torch.testing.assert_close(logits, 16 * cosines)


def test_the_best_epoch_is_the_last_that_keeps_clean_accuracy(tiny, faces, monkeypatch):
    values = iter([(0.90, 0.95), (0.98, 0.99), (0.975, 0.98), (0.96, 0.99)])

    class Report:
        def __init__(self):
            self.accuracy, self.auc = next(values)
            self.eer = 0.1

    monkeypatch.setattr(loop, "verify_pairs", lambda *a, **k: Report())
    unseen = SyntheticFaces(identities=8, per_identity=3, seed=1, size=32, first=100)
    held = Held(source=unseen, pairs=unseen.pairs(16, folds=2))
    assert train(replace(QUICK, epochs=4), tiny(), faces, held=held).best.epoch == 3


def test_it_is_the_same_on_a_linear_network_as_by_hand(batch):
    """One step on logits: x + 1.25 eps sign(grad) from the random start, clipped."""
    images, labels, ids = batch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6))
    model = FaceModel(net, input_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, name="linear")
    config = Adversarial(attack="fgsm", eps=EPS, share=1.0)
    made = Adversary(config, model, nn.Identity(), seed=4).mixed(images, labels, ids, 2)
    start = config.moves.budget.random_start(images, seed=4 * 1_000_003 + 2, ids=ids).requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(model.features(start), labels, reduction="sum"), start
    )
    wanted = config.moves.budget.clip(start.detach() + 1.25 * EPS * gradient.sign(), images)
    assert float((made - wanted).abs().max()) <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attack": "cw-l2"}, "adversarial: expected one of fim, pgd, ffm, fgsm, got 'cw-l2'"),
        ({"eps": 0.0}, r"eps: expected a number in \(0, 1\), such as 8/255, got 0.0"),
        ({"eps": float("nan")}, "eps: expected a number"),
        ({"share": 0.0}, r"share: expected a share of the batch in \(0, 1\], got 0.0"),
        ({"share": 1.5}, "share: expected a share"),
        ({"steps": 0}, "steps: expected 1 or more, got 0"),
        ({"attack": "ffm", "steps": 3}, "steps: expected none with ffm, which makes one step, got 3"),
    ],
)
def test_fields_out_of_range(fields, words):
    with pytest.raises(ValueError, match=words):
        Adversarial(**fields)


def test_errors(tiny):
    with pytest.raises(
        ValueError, match="adversarial: expected fim or ffm with the loss 'triplet', which has no classes, got pgd"
    ):
        TrainConfig(loss="triplet", adversarial=Adversarial(attack="pgd"))
    with pytest.raises(ValueError, match="adversarial: expected fim or ffm with a loss without classes, got fgsm"):
        Adversary(Adversarial(attack="fgsm"), tiny(), None, seed=0)
    with pytest.raises(ValueError, match="adversarial: expected an Adversarial or None, got 'fim'"):
        TrainConfig(adversarial="fim")
