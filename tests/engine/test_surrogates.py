"""Attacks on surrogates: what is differentiated, and that a result is the pair's and the seed's alone."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from small import ResidualBlock, grey_images
from torch import Tensor, nn

import fastadv as fa
from fastadv.attacks import Evade, Impersonate, Misclassify, Recipe
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.surrogates import (
    Ensemble,
    FeatureDropout,
    InputDiversity,
    SkipGradient,
    StepKey,
    Surrogate,
    TranslationInvariant,
)

SIZE = (16, 16)
BATCH = 8
PLAIN = fa.attacks.fim(eps=16 / 255, steps=5)
MOMENTUM = fa.attacks.m_fim(eps=16 / 255, steps=5)


faces = partial(grey_images, size=SIZE)


def model(seed: int = 0, width: int = 12, head: bool = False, size: tuple[int, int] = SIZE) -> fa.FaceModel:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        ResidualBlock(),
        nn.Flatten(),
        nn.Linear(8 * (size[0] // 2) * (size[1] // 2), width),
    )
    classes = nn.Linear(width, 5) if head else None
    half = (0.5, 0.5, 0.5)
    return fa.FaceModel(net, input_size=size, mean=half, std=half, name=f"small{seed}", head=classes).eval()


SURROGATES = {
    "dropout": Surrogate(dropout=FeatureDropout(rate=0.1)),
    "diversity": Surrogate(diversity=InputDiversity()),
    "skip": Surrogate(skip=SkipGradient(gamma=0.3)),
    "smoothing": Surrogate(smoothing=TranslationInvariant()),
    "ensemble": Surrogate(ensemble=Ensemble(others=(model(1, width=7), model(2)), weights=(1, 2, 1))),
    "all": Surrogate(
        diversity=InputDiversity(),
        dropout=FeatureDropout(rate=0.1),
        skip=SkipGradient(gamma=0.5),
        ensemble=Ensemble(others=(model(1, width=7),)),
        smoothing=TranslationInvariant(),
    ),
}


def results(recipe: Recipe, x: Tensor, targets: Tensor, order, engine: Engine, seed: int = 5) -> dict[str, fa.Result]:
    goal = Impersonate(targets, threshold=0.95)
    jobs = [Job(name=f"face{i}", id=1000 + i, image=x[i], goal=goal.row(i)) for i in order]
    return {r.name: r for r in stream_jobs(recipe, jobs, model(), seed=seed, engine=engine)}


@pytest.mark.parametrize("name", SURROGATES)
def test_a_result_does_not_depend_on_slots_order_or_neighbours(name):
    x, targets = faces(13), faces(13, seed=2)
    recipe = replace(MOMENTUM, surrogate=SURROGATES[name])
    reference = results(recipe, x, targets, range(13), Engine(batch=BATCH))
    assert len(reference) == 13
    assert any((r.image - x[i]).abs().max() > 0.01 for i, r in enumerate(reference.values()))
    variants = [
        (range(13), Engine(slots=2 * BATCH, batch=BATCH)),
        (reversed(range(13)), Engine(slots=3 * BATCH, batch=BATCH, poll=3)),
        ([3, 11, 4], Engine(slots=BATCH, batch=BATCH)),
    ]
    for order, engine in variants:
        for key, result in results(recipe, x, targets, order, engine).items():
            assert torch.equal(result.image, reference[key].image)
            assert result.score_after == reference[key].score_after


@pytest.mark.parametrize("name", ["dropout", "diversity", "all"])
def test_random_surrogates_depend_on_the_seed(name):
    x, targets = faces(4), faces(4, seed=2)
    recipe = replace(MOMENTUM, surrogate=SURROGATES[name])
    one, other = (results(recipe, x, targets, range(4), Engine(batch=BATCH), seed=s) for s in (5, 6))
    assert all(not torch.equal(one[k].image, other[k].image) for k in one)


def by_hand(surrogate: Surrogate, x: Tensor, targets: Tensor, steps: int, eps: float) -> Tensor:
    """FIM written out for one batch: every member's own loss, its references embedded with the step's key."""
    bound = surrogate.bind(model(), precision="fp32", channels_last=False)
    ids = torch.arange(len(x))
    trial = x.clone()
    for tick in range(steps):
        key = StepKey(seed=5, ids=ids, ticks=torch.full_like(ids, tick))
        leaf = trial.clone().requires_grad_(True)
        seen = leaf if surrogate.diversity is None else surrogate.diversity(leaf, key)
        loss = torch.zeros(())
        for share, member in zip(bound.shares, bound.members, strict=True):
            run = member.model if member.masked is None else partial(member.masked, key=key)
            with torch.no_grad():
                reference = run(targets)
            loss = loss - share * (run(seen) - reference).norm(dim=1).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        if surrogate.smoothing is not None:
            gradient = surrogate.smoothing(gradient)
        trial = (trial + gradient.sign() / 255).clamp(x - eps, x + eps).clamp(0, 1)
    return trial


@pytest.mark.parametrize("name", SURROGATES)
def test_fim_on_a_surrogate_is_the_loop_written_by_hand(name):
    x, targets = faces(BATCH), faces(BATCH, seed=2)
    recipe = replace(PLAIN, surrogate=SURROGATES[name])
    engine = Engine(batch=BATCH, channels_last=False)
    made = fa.run(recipe, Impersonate(targets, threshold=0.999), model(), x, seed=5, engine=engine)
    expected = by_hand(SURROGATES[name], x, targets, 5, 16 / 255)
    # a gradient near zero may have another sign when its parts are summed in another order
    same = (torch.round(made.images * 255) == torch.round(expected * 255)).float().mean()
    assert same > 0.99


def test_an_ensemble_weighed_on_its_first_model_alone_is_that_model():
    x, targets = faces(5), faces(5, seed=2)
    alone = Surrogate(ensemble=Ensemble(others=(model(3),), weights=(1, 0)))
    goal = Impersonate(targets, threshold=0.999)
    one = fa.run(PLAIN, goal, model(), x)
    other = fa.run(replace(PLAIN, surrogate=alone), goal, model(), x)
    assert torch.equal(one.images, other.images)


def test_dropout_at_rate_zero_is_the_bare_model():
    x, targets = faces(5), faces(5, seed=2)
    goal = Impersonate(targets, threshold=0.999)
    one = fa.run(PLAIN, goal, model(), x)
    other = fa.run(replace(PLAIN, surrogate=Surrogate(dropout=FeatureDropout(rate=0.0))), goal, model(), x)
    assert torch.equal(one.images, other.images)


@pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")
def test_the_verdict_is_the_bare_models():
    x, targets = faces(6), faces(6, seed=2)
    recipe = replace(PLAIN, surrogate=SURROGATES["all"])
    threshold = 0.6
    made = fa.run(recipe, Impersonate(targets, threshold=threshold), model(), x)
    with torch.no_grad():
        scores = (model()(made.images) * model()(targets)).sum(1)
    assert torch.allclose(made.score_after, scores, atol=1e-5)
    assert torch.equal(made.success, scores >= threshold)


def test_evasion_of_ones_own_embedding_moves_under_dropout():
    x = faces(6)
    recipe = replace(fa.attacks.pgd(eps=16 / 255, steps=5), surrogate=Surrogate(dropout=FeatureDropout(rate=0.1)))
    made = fa.run(recipe, Evade(threshold=0.9), model(), x)
    assert (made.score_after < made.score_before - 0.01).all()


def test_goals_on_logits_take_dropout_too():
    net, x = model(head=True), faces(6)
    with torch.no_grad():
        labels = net.logits(x).argmax(1)
    recipe = replace(PLAIN, surrogate=Surrogate(dropout=FeatureDropout(rate=0.05)))
    made = fa.run(recipe, Misclassify(labels), net, x)
    assert (made.score_after < made.score_before).all()


def test_embeddings_do_not_do_where_other_networks_must_embed():
    x, goal = faces(2), Impersonate(torch.randn(2, 12), threshold=0.9)
    for name in ("dropout", "ensemble"):
        with pytest.raises(
            ValueError,
            match=r"goal: expected images \(N, 3, H, W\) to compare with, since the surrogate embeds them by i",
        ):
            fa.run(replace(PLAIN, surrogate=SURROGATES[name]), goal, model(), x)


def test_wrong_compositions_are_refused():
    with pytest.raises(ValueError, match="others: expected at least one FaceModel"):
        Ensemble(others=())
    with pytest.raises(ValueError, match=r"weights: expected 2 numbers .* got \(1, -1\)"):
        Ensemble(others=(model(1),), weights=(1, -1))
    with pytest.raises(ValueError, match=r"weights: expected 2 numbers .* got \(1,\)"):
        Ensemble(others=(model(1),), weights=(1,))
    other = Surrogate(ensemble=Ensemble(others=(model(1, size=(24, 24)),)))
    goal = Impersonate(faces(2), threshold=0.9)
    with pytest.raises(
        ValueError,
        match=r"others: expected models for images \(3, 16, 16\) on cpu like 'small0', got 'small1' for \(3, 24, 24\)",
    ):
        fa.run(replace(PLAIN, surrogate=other), goal, model(), faces(2))
