"""Defended models are face models for every caller, and what attackers who know them do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastadv as fa
from fastadv.attacks import Evade, Impersonate
from fastadv.defences import (
    Adaptive,
    AttackAsDefence,
    AttackedModel,
    BitDepth,
    Chain,
    DefendedModel,
    GaussianBlur,
    Jpeg,
    MeanFilter,
    OneOf,
    PerfectKnowledge,
    RandomResizePad,
    WatchedDefendedModel,
    ZeroKnowledge,
    content_key,
)
from fastadv.defences.evade_detector import EvadeDetector, WatchedModel
from fastadv.detection import Architecture, Detector, LayerTap, Network, Trajectory, centroids
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.models import FaceModel, prepare
from fastadv.models.outputs import at_layer, output_of
from fastadv.surrogates import Ensemble, FeatureDropout, InputDiversity, Surrogate


@pytest.fixture(autouse=True)
def quiet():
    """Nothing here trains, and attacks switch on what they differentiate."""
    with torch.no_grad():
        yield


DEFENCES = (MeanFilter(), BitDepth(), Jpeg(quality=60), RandomResizePad(), OneOf(parts=(MeanFilter(), BitDepth())))


def seen(defence, images, seed=0):
    return defence(images, content_key(images, seed))


def make_detector(model):
    tapped = LayerTap(model=model)(torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(8)))
    found = [([value.detach() for value in tapped.values], torch.arange(24) % 4)]
    representatives = centroids(found, layers=model.layers, classes=tuple("abcd"), model=model.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = Network(Architecture(kind="mlp", layers=2, width=4, hidden=8, dropout=0.0))
    network.scale.fill_(0.05)
    trajectory = Trajectory(representatives=representatives, metric="l2")
    return Detector(trajectory=trajectory, network=network.eval().requires_grad_(False))


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda d: d.name)
def test_every_output_is_that_of_the_defended_images(defence, model, faces):
    x = faces(5)
    defended, inside = defence.wrap(model, seed=3), seen(defence, x, 3)
    assert isinstance(defended, FaceModel)
    assert (defended.input_size, defended.layers, defended.device) == (model.input_size, model.layers, model.device)
    assert defended.name == f"tiny0+{defence.name}"
    assert defended.embedding_size == model.embedding_size
    assert torch.equal(defended(x), model(inside))
    assert torch.equal(defended.features(x), model.features(inside))
    assert torch.equal(defended.logits(x), model.logits(inside))
    assert torch.equal(output_of(defended, at_layer("2"), x), output_of(model, at_layer("2"), inside))
    tapped, expected = LayerTap(model=defended)(x), LayerTap(model=model)(inside)
    assert all(torch.equal(a, b) for a, b in zip(tapped.values, expected.values, strict=True))
    assert not defended.training


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda d: d.name)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prepared_copy_keeps_the_defence(defence, precision, model, faces):
    x = faces(5).contiguous(memory_format=torch.channels_last)
    ready = prepare(defence.wrap(model, seed=3), precision=precision)
    assert isinstance(ready, DefendedModel)
    expected = prepare(model, precision=precision)(seen(defence, x, 3))
    torch.testing.assert_close(ready(x), expected)
    # the model is not touched
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_weights_are_the_model_s_own(model):
    defended = MeanFilter().wrap(model)
    assert defended.backbone is model.backbone
    assert defended.head is model.head


def test_a_defence_in_front_of_a_defended_model_comes_first(model, faces):
    x = faces(4)
    both = BitDepth(bits=2).wrap(MeanFilter().wrap(model), seed=7)
    assert isinstance(both, DefendedModel)
    assert both.defence == Chain(parts=(BitDepth(bits=2), MeanFilter()))
    assert torch.equal(both(x), model(seen(MeanFilter(), seen(BitDepth(bits=2), x))))
    assert both.name == "tiny0+bits2+mean3"
    assert both.seed == 7


def test_a_watched_model_keeps_its_detector(model, faces):
    x = faces(4)
    watched = WatchedModel(model, make_detector(model))
    both = MeanFilter().wrap(watched)
    assert isinstance(both, WatchedDefendedModel)
    assert torch.equal(both(x), watched(seen(MeanFilter(), x)))
    assert both(x).shape == (4, 11)
    with pytest.raises(
        TypeError,
        match="model: expected a watched model without a defence, got one that is defended; chain the defences",
    ):
        BitDepth().wrap(both)


def test_errors_of_wrapping(model, make_model):
    with pytest.raises(TypeError, match="model: expected a FaceModel, got Linear"):
        MeanFilter().wrap(nn.Linear(2, 2))
    for seed in (-1, 2**64, 1.5, True):
        with pytest.raises(ValueError, match="seed: expected an integer in"):
            MeanFilter().wrap(model, seed=seed)

    class Odd(FaceModel):
        pass

    odd = Odd(model.backbone, input_size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1), name="odd")
    with pytest.raises(TypeError, match="a plain FaceModel, got Odd"):
        MeanFilter().wrap(odd)
    with pytest.raises(TypeError, match="a plain FaceModel, got AttackedModel"):
        AttackAsDefence(attack=fa.attacks.pgd()).wrap(AttackAsDefence(attack=fa.attacks.pgd()).wrap(model))


def attack(model, x, targets, *, order=None, slots=None, recipe=None):
    goal = Impersonate(targets, threshold=0.99)
    order = range(len(x)) if order is None else order
    jobs = [Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in order]
    moves = recipe or fa.attacks.fim(eps=16 / 255, steps=4)
    found = stream_jobs(moves, jobs, model, seed=2, engine=Engine(batch=4, slots=slots))
    return {r.name: r for r in found}


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda d: d.name)
def test_the_engine_goes_through_the_defence(defence, model, faces):
    """Its result is a function of the image alone, in any order and any number of slots."""
    x, t = faces(6), faces(6, 2)
    defended = defence.wrap(model, seed=5)
    first = attack(defended, x, t)
    other = attack(defended, x, t, order=[5, 2, 0, 1, 4, 3], slots=8)
    for name, result in first.items():
        assert torch.equal(result.image, other[name].image)
        assert result.score_after == other[name].score_after
        assert result.nonfinite == 0
    bare = attack(model, x, t)
    assert any(not torch.equal(first[k].image, bare[k].image) for k in first)
    # the verdict is the defended model's
    for k, result in first.items():
        score = (defended(result.image[None]) * defended(t[int(k)][None])).sum()
        assert result.score_after == pytest.approx(float(score), abs=1e-5)


def test_surrogates_take_a_defended_model(model, faces):
    x, t = faces(4), faces(4, 2)
    defended = RandomResizePad(smallest=0.7).wrap(model)
    surrogate = Surrogate(
        dropout=FeatureDropout(rate=0.1),
        diversity=InputDiversity(),
        ensemble=Ensemble(others=(MeanFilter().wrap(model),)),
    )
    recipe = replace(fa.attacks.fim(eps=16 / 255, steps=3), surrogate=surrogate)
    first = attack(defended, x, t, recipe=recipe)
    second = attack(defended, x, t, order=[3, 1, 0, 2], recipe=recipe)
    assert all(torch.equal(first[k].image, second[k].image) for k in first)


def test_zero_knowledge_is_the_bare_model(model):
    moves = fa.attacks.fim()
    found = ZeroKnowledge().attacker(moves, model, MeanFilter())
    assert found.model is model
    assert found.recipe is moves
    goal = Evade(threshold=0.5)
    assert found.goal(goal) is goal
    assert not ZeroKnowledge().knows_defence


def test_perfect_knowledge_is_the_defended_model(model):
    found = PerfectKnowledge().attacker(fa.attacks.fim(), model, MeanFilter())
    assert isinstance(found.model, DefendedModel)
    assert found.model.defence == MeanFilter()
    assert PerfectKnowledge(samples=8).name == "perfect:8"
    # what does not draw needs one sample
    assert PerfectKnowledge(samples=8).attacker(fa.attacks.fim(), model, Jpeg()).recipe.surrogate.ensemble is None
    assert PerfectKnowledge().attacker(fa.attacks.fim(), model, None).model is model


@torch.enable_grad()
def test_expectation_is_the_mean_gradient_over_the_samples(model, faces):
    """One step of the L2 attack goes along the mean of the samples' gradients."""
    x, t = faces(4), faces(4, 2)
    defence = RandomResizePad(smallest=0.6)
    step = fa.attacks.pgd_l2(eps=4.0, steps=1, step_size=0.5, random_start=False)
    found = PerfectKnowledge(samples=5, seed=40).attacker(step, model, defence)
    x = 0.3 + 0.4 * x  # no pixel meets the range
    (_, made), *_ = fa.engine.trace(found.recipe, Impersonate(t, threshold=0.99), found.model, x, at=[1])
    total = torch.zeros_like(x)
    for k in range(5):
        sample = defence.wrap(model, seed=40 + k)
        leaf = x.clone().requires_grad_()
        distance = torch.linalg.vector_norm(sample(leaf) - sample(t).detach(), dim=1).sum()
        total -= torch.autograd.grad(distance, leaf)[0] / 5
    moved = (made - x).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(moved, total.flatten(1))
    assert float(cosine.min()) > 0.98  # what the rounding to 8 bits leaves


def test_more_samples_beat_one(model, faces):
    """Against draws that the attacker does not know, the expectation finds more."""
    x, t = faces(12), faces(12, 2)
    defence = RandomResizePad(smallest=0.9)
    judges = [defence.wrap(model, seed=(1 << 63) + k) for k in range(4)]

    def similar(images):
        return sum(float((judge(images) * judge(t)).sum(1).mean()) for judge in judges) / len(judges)

    gained = {}
    for samples in (1, 8):
        moves = fa.attacks.m_fim(eps=24 / 255, steps=12)
        found = PerfectKnowledge(samples=samples).attacker(moves, model, defence)
        made = fa.run(found.recipe, found.goal(Impersonate(t, threshold=0.9999)), found.model, x).images
        gained[samples] = similar(made)
    assert similar(x) < gained[1] < gained[8]


def test_adaptive_passes_defence_and_detector(model, faces):
    x, t = faces(8), faces(8, 2)
    detector, defence = make_detector(model), GaussianBlur(size=3, sigma=0.7)
    moves = fa.attacks.bim(eps=24 / 255, steps=15)
    scores = {}
    for weight in (0.0, 20.0):
        found = Adaptive(detector=detector, weight=weight).attacker(moves, model, defence)
        assert isinstance(found.model, WatchedDefendedModel)
        goal = found.goal(Impersonate(t, threshold=0.9999))
        assert isinstance(goal, EvadeDetector)
        made = fa.run(found.recipe, goal, found.model, x).images
        scores[weight] = float(found.model(made)[:, -1].mean())
    assert scores[20.0] < scores[0.0] - 0.01
    alone = Adaptive(detector=detector).attacker(moves, model, None)
    assert type(alone.model) is WatchedModel
    more = Adaptive(detector=detector, samples=3).attacker(moves, model, RandomResizePad())
    assert more.recipe.surrogate.ensemble is not None
    assert len(more.recipe.surrogate.ensemble.others) == 2
    fa.run(more.recipe, more.goal(Impersonate(t, threshold=0.9999)), more.model, x)


def test_adaptive_goals_of_one_image_each_share_the_slots(model, faces):
    """As a study makes them: every image brings the goal with its own target."""
    x, t = faces(6), faces(6, 2)
    found = Adaptive(detector=make_detector(model), weight=3.0).attacker(fa.attacks.bim(steps=4), model, MeanFilter())
    together = found.goal(Impersonate(t, threshold=0.9999))
    alone = [found.goal(Impersonate(t[i : i + 1], threshold=0.9999)) for i in range(6)]
    jobs = [Job(name=str(i), id=i, image=x[i], goal=alone[i]) for i in range(6)]
    made = {r.name: r.image for r in stream_jobs(found.recipe, jobs, found.model, seed=2, engine=Engine(batch=4))}
    expected = fa.run(found.recipe, together, found.model, x, seed=2, engine=Engine(batch=4)).images
    assert all(torch.equal(made[str(i)], expected[i]) for i in range(6))
    other = Job(name="6", id=6, image=x[0], goal=found.goal(Evade(references=t[:1], threshold=0.5)))
    with pytest.raises(
        ValueError, match=r"goal of '6': expected one like the first, EvadeDetector\(goal=Impersonate\(targets=a Tenso"
    ):
        list(stream_jobs(found.recipe, [*jobs, other], found.model, engine=Engine(batch=4)))


def test_errors_of_threat_models(model):
    with pytest.raises(ValueError, match="samples: expected an integer in .1, 1024., got 0"):
        PerfectKnowledge(samples=0)
    with pytest.raises(ValueError, match="seed: expected an integer"):
        PerfectKnowledge(seed=-1)
    with pytest.raises(TypeError, match="detector: expected a Detector, got str"):
        Adaptive(detector="it")
    detector = make_detector(model)
    with pytest.raises(ValueError, match="weight: expected a number"):
        Adaptive(detector=detector, weight=-1)
    with pytest.raises(ValueError, match="threshold: expected a logit, got nan"):
        Adaptive(detector=detector, threshold=float("nan"))
    with pytest.raises(ValueError, match="follows no gradient"):
        Adaptive(detector=detector).attacker(fa.attacks.by_name("noise-uniform"), model, None)
    ensemble = fa.attacks.e_fim(others=(model,))
    with pytest.raises(ValueError, match="samples: expected 1 for .*, which is on an ensemble already, got 2"):
        PerfectKnowledge(samples=2).attacker(ensemble, model, RandomResizePad())


PGD = fa.attacks.pgd(eps=16 / 255, steps=5)


def test_attack_as_defence_moves_every_image_away_from_itself(model, faces):
    x = faces(6)
    made = AttackAsDefence(attack=PGD).attacked(model, x, seed=4)
    assert float((made - x).abs().amax()) <= 16 / 255 + 1e-6
    one_step = AttackAsDefence(attack=fa.attacks.fgsm(eps=16 / 255), start=2 / 255).attacked(model, x)
    similar = [float((model(y) * model(x)).sum(1).mean()) for y in (made, one_step)]
    noise = (x + (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 16 / 255).clamp(0, 1)
    assert max(similar) < float((model(noise) * model(x)).sum(1).mean())


def test_one_step_without_a_start_cannot_move(model, faces):
    """The gradient of the distance to itself is zero: one reason why FGSM fails as the defence."""
    x = faces(3)
    assert torch.equal(AttackAsDefence(attack=fa.attacks.fgsm()).attacked(model, x), x)


def test_smallest_perturbations_stop_at_the_threshold(model, faces):
    x = faces(4)
    moves = fa.attacks.by_name("cw-l2", steps=60)
    made = AttackAsDefence(attack=moves, start=4 / 255, threshold=0.9).attacked(model, x)
    similar = (model(made) * model(x)).sum(1)
    assert float(similar.max()) < 0.9
    assert float(similar.min()) > 0.8


@torch.enable_grad()
def test_the_attacked_model_is_a_face_model(model, faces):
    x = faces(5)
    defence = AttackAsDefence(attack=PGD)
    defended = defence.wrap(model, seed=9)
    assert isinstance(defended, AttackedModel)
    assert defended.name == "tiny0+attack(pgd)"
    made = defence.attacked(model, x, seed=9)
    assert torch.equal(defended(x), model(made))
    assert torch.equal(defended.logits(x), model.logits(made))
    # of the image and the seed alone
    assert torch.equal(defence.attacked(model, x[[4, 1]], seed=9), made[[4, 1]])
    assert not torch.equal(defence.attacked(model, x, seed=8), made)
    assert defence.attacked(model, x[:0]).shape == (0, 3, 16, 16)
    torch.testing.assert_close(prepare(defended)(x), defended(x))
    prepare(defended, precision="bf16")(x)
    leaf, at = x.clone().requires_grad_(), made.clone().requires_grad_()
    g = torch.randn(5, 10)
    (through,) = torch.autograd.grad(defended(leaf), leaf, g)
    assert torch.equal(through, torch.autograd.grad(model(at), at, g)[0])


def test_errors_of_attack_as_defence(model):
    with pytest.raises(TypeError, match="attack: expected a Recipe, got 'pgd'; use attacks.by_name"):
        AttackAsDefence(attack="pgd")
    with pytest.raises(ValueError, match="start: expected a number"):
        AttackAsDefence(attack=PGD, start=-0.1)
    with pytest.raises(ValueError, match="threshold: expected a number"):
        AttackAsDefence(attack=PGD, threshold=2)
    with pytest.raises(ValueError, match="seed: expected an integer"):
        AttackAsDefence(attack=PGD).wrap(model, seed=-2)
