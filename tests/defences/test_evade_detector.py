"""The adaptive attack: one forward pass gives goal and detector, and the loss goes through both."""

import math

import pytest
import torch
from torch import nn
from watched import HALF, LAYERS, faces, make_detector, make_model

import fastadv as fa
from fastadv.attacks import ClassifyAs, Evade, Impersonate, Misclassify, Rows, SignGradient, bim, by_name
from fastadv.attacks.budget import Linf
from fastadv.attacks.carlini_wagner import CarliniWagner
from fastadv.attacks.feature_goals import MatchFeatures
from fastadv.defences.evade_detector import EvadeDetector, WatchedModel, check_adapts
from fastadv.detection import Architecture, Detector, LayerTap, Network, Trajectory, centroids
from fastadv.models import FaceModel, prepare

# a few of the random faces are of the wanted class already, which the engine says
pytestmark = pytest.mark.filterwarnings("ignore:.*reached the goal before:fastadv.engine.AttackWarning")


@pytest.fixture(scope="module", params=["mlp", "lstm"])
def pair(request):
    model = make_model()
    detector = make_detector(model, request.param)
    return model, detector, WatchedModel(model, detector)


def test_the_last_column_is_the_detectors_logit_and_the_others_are_the_models(pair):
    model, detector, watched = pair
    x = faces(5, 1)
    with torch.no_grad():
        expected = detector.score(LayerTap(model=model, layers=LAYERS)(x).values)
        torch.testing.assert_close(watched(x), torch.cat([model(x), expected[:, None]], 1))
        torch.testing.assert_close(watched.logits(x), torch.cat([model.logits(x), expected[:, None]], 1))
        prepared = prepare(watched)
        torch.testing.assert_close(prepared.logits(x), watched.logits(x), rtol=1e-4, atol=1e-5)
    assert watched.embedding_size == model.embedding_size
    assert not any(module._forward_hooks for module in model.modules())


def test_the_loss_and_its_gradient_are_those_of_the_sum(pair):
    _, detector, watched = pair
    labels = torch.tensor([0, 1, 2])
    goal = EvadeDetector(goal=ClassifyAs(labels), weight=0.7)
    x = faces(3, 2).requires_grad_()
    rows = Rows(label=labels)
    outputs = watched.logits(x)
    parts = ClassifyAs(labels).loss(outputs[:, :-1], rows) - 0.7 * detector.score(
        LayerTap(model=watched, layers=LAYERS)(x).values
    )
    torch.testing.assert_close(goal.loss(outputs, rows), parts)
    (gradient,) = torch.autograd.grad(goal.loss(outputs, rows).sum(), x)
    with torch.no_grad():
        along = gradient / gradient.norm()
        up, down = (goal.loss(watched.logits(x + s * 1e-2 * along), rows).sum() for s in (1, -1))
    assert float((up - down) / 2e-2) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_without_weight_it_is_the_attack_that_does_not_know(pair):
    model, _, watched = pair
    labels = torch.tensor([0, 1, 2, 3, 0])
    x = faces(5, 3)
    plain = fa.run(bim(steps=4), ClassifyAs(labels), model, x, engine=fa.Engine(batch=2))
    goal = EvadeDetector(goal=ClassifyAs(labels), weight=0.0)
    blind = fa.run(bim(steps=4), goal, watched, x, engine=fa.Engine(batch=2))
    assert torch.equal(plain.images, blind.images)
    assert torch.equal(plain.success, blind.success)
    assert torch.equal(plain.score_after, blind.score_after)


def test_with_weight_the_detector_is_lower(pair):
    _, detector, watched = pair
    x, labels = faces(12, 5), torch.arange(12) % 4
    attack = SignGradient(budget=Linf(0.1), steps=12, step_size=0.02, name="bim")
    means = []
    for weight in (0.0, 5.0):
        goal = EvadeDetector(goal=ClassifyAs(labels), weight=weight)
        made = fa.run(fa.Recipe(attack), goal, watched, x, engine=fa.Engine(batch=4))
        with torch.no_grad():
            means.append(float(detector.score(LayerTap(model=watched, layers=LAYERS)(made.images).values).mean()))
    assert means[1] < means[0] - 0.05


def test_an_image_counts_only_below_the_threshold(pair):
    _, _, watched = pair
    x = faces(4, 6)
    with torch.no_grad():
        outputs = watched.logits(x)
    labels = outputs[:, :-1].argmax(1)
    rows = Rows(label=labels)
    line = float(outputs[:, -1].sort().values[1:3].mean())
    goal = EvadeDetector(goal=ClassifyAs(labels), threshold=line)
    assert goal.achieved(outputs, rows).tolist() == (outputs[:, -1] < line).tolist()
    assert sum(goal.achieved(outputs, rows).tolist()) == 2
    assert ((goal.shortfall(outputs, rows) < 0) == goal.achieved(outputs, rows)).all()
    assert not EvadeDetector(goal=Misclassify(labels), threshold=line).achieved(outputs, rows).any()
    assert goal.rivals(outputs, rows, 3)[:, 1:].isinf().all()
    unbounded = EvadeDetector(goal=ClassifyAs(labels))
    assert torch.equal(unbounded.shortfall(outputs, rows), ClassifyAs(labels).shortfall(outputs[:, :-1], rows))


def test_the_smallest_perturbation_is_the_smallest_that_is_hidden(pair):
    """C&W goes by the shortfall: with a threshold it has to get below it too, and pays for that."""
    model, _, watched = pair
    x = faces(8, 10)
    with torch.no_grad():
        outputs = watched.logits(x)
    labels = outputs[:, :-1].argmax(1)
    line = float(outputs[:, -1].median())
    attack, engine = fa.Recipe(CarliniWagner(search_steps=3, inner_steps=30)), fa.Engine(batch=8, success_float=True)
    bare = fa.run(attack, Misclassify(labels), model, x, engine=engine)
    goal = EvadeDetector(goal=Misclassify(labels), threshold=line)
    made = fa.run(attack, goal, watched, x, engine=engine)
    with torch.no_grad():
        ours, theirs = watched.logits(made.images), watched.logits(bare.images)
    assert made.success.tolist() == ((ours[:, :-1].argmax(1) != labels) & (ours[:, -1] < line)).tolist()
    assert int(made.success_float.sum()) > int((theirs[:, -1] < line).sum())
    both = made.success_float & bare.success_float
    assert float(made.l2[both].mean()) > float(bare.l2[both].mean())


def test_a_margin_is_one_on_the_weighted_logit_too(pair):
    _, _, watched = pair
    x = faces(6, 11)
    with torch.no_grad():
        outputs = watched.logits(x)
    labels = outputs[:, :-1].argmax(1)
    rows = Rows(label=labels)
    goal = EvadeDetector(goal=ClassifyAs(labels), weight=2.0, threshold=float(outputs[:, -1].median()))
    for margin in (0.0, 0.01, 0.05):
        short = goal.shortfall(outputs, rows)
        assert goal.achieved(outputs, rows, margin).tolist() == (short < -margin).tolist()


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (bim(), None),
        (by_name("cw-l2"), None),
        (by_name("deepfool"), None),
        (by_name("knn-df"), None),
        (by_name("di-m-fim"), None),
        (by_name("apgd"), None),
        (by_name("apgd-dlr"), "whose objective is not that of the goal"),
        (by_name("noise-uniform"), "which follows no gradient"),
        (by_name("dfanet-fim"), "which moves on other networks than the watched one"),
        (by_name("s-fim"), "which moves on other networks than the watched one"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_only_attacks_that_see_the_detector_adapt(attack, reason):
    if reason is None:
        check_adapts(attack)
        return
    with pytest.raises(
        ValueError, match=f"attack: expected one that can adapt to a detector, got {attack.name}, {reason}"
    ):
        check_adapts(attack)


def test_a_result_does_not_depend_on_its_neighbours(pair):
    _, _, watched = pair
    x, labels = faces(6, 7), torch.arange(6) % 4
    goal = EvadeDetector(goal=ClassifyAs(labels), weight=1.0)
    engine = fa.Engine(batch=2)
    whole = fa.run(bim(steps=3), goal, watched, x, engine=engine)
    alone = fa.run(bim(steps=3), goal.row(4), watched, x[4:5], ids=[4], engine=engine)
    assert torch.equal(whole.images[4:5], alone.images)
    assert goal.row(4).row(0).labels.tolist() == [0]


def test_goals_on_embeddings_compare_with_images(pair):
    model, _, watched = pair
    x, targets = faces(3, 8), faces(3, 9)
    goal = EvadeDetector(goal=Impersonate(targets, threshold=0.5), weight=0.0)
    made = fa.run(bim(steps=2), goal, watched, x, engine=fa.Engine(batch=2))
    plain = fa.run(bim(steps=2), Impersonate(targets, threshold=0.5), model, x, engine=fa.Engine(batch=2))
    torch.testing.assert_close(made.score_after, plain.score_after, rtol=1e-4, atol=1e-5)
    own = EvadeDetector(goal=Evade(threshold=0.5), weight=1.0)
    assert own.own_reference
    assert own.row(2).references is None


def test_several_goals_at_once(pair):
    _, _, watched = pair
    x, first, second = faces(3, 8), faces(3, 9), faces(3, 10)
    both = Impersonate(first, threshold=0.5) & Impersonate(second, threshold=0.5)
    engine = fa.Engine(batch=2)
    goal = EvadeDetector(goal=both, weight=1.0, threshold=-0.1)
    whole = fa.run(bim(steps=2), goal, watched, x, engine=engine)
    alone = fa.run(bim(steps=2), goal.row(1), watched, x[1:2], ids=[1], engine=engine)
    assert torch.equal(whole.images[1:2], alone.images)
    with torch.no_grad():
        after, logit = watched(whole.images)[:, :-1], watched(whole.images)[:, -1]
        near = [(after * watched(y)[:, :-1]).sum(1) >= 0.5 for y in (first, second)]
    assert torch.equal(whole.success, near[0] & near[1] & (logit < -0.1))


def test_the_margin_loss_is_the_larger_shortfall(pair):
    _, _, watched = pair
    labels = torch.tensor([0, 1, 2, 3])
    goal = EvadeDetector(goal=ClassifyAs(labels), weight=0.7, threshold=-0.1, by_shortfall=True)
    rows = Rows(label=labels)
    with torch.no_grad():
        outputs = watched.logits(faces(4, 12))
    logits, logit = outputs[:, :-1], outputs[:, -1]
    best_other = torch.where(torch.eye(4, dtype=torch.bool), -torch.inf, logits).amax(1)
    lacking = torch.maximum(best_other - logits.diagonal(), 0.7 * (logit + 0.1))
    torch.testing.assert_close(goal.loss(outputs, rows), -lacking)
    assert ((goal.loss(outputs, rows) > 0) == goal.achieved(outputs, rows)).all()


RADIUS, BORDER = 0.33, 0.3  # of the detector and of the class, below


def linear_pair() -> tuple[FaceModel, WatchedModel]:
    """Class 1 wins where the mean red p_r is above .3; flagged is what is .33 or farther from grey in mean colour.

    Colours p are in [-1, 1] with grey at 0.
    """
    identity = nn.Conv2d(3, 3, 1, bias=False)
    identity.weight.data = torch.eye(3)[:, :, None, None]
    head = nn.Linear(3, 2)
    head.weight.data, head.bias.data = torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([0.0, -BORDER])
    net = nn.Sequential(identity, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = FaceModel(net, input_size=(16, 16), mean=HALF, std=HALF, name="tiny", layers=("0",), head=head).eval()
    known = ([torch.tensor([[0.0, 0, 0], [1, 1, 1]])], torch.tensor([0, 1]))
    representatives = centroids([known], layers=("0",), classes=("grey", "white"), model="tiny")
    network = Network(Architecture(kind="linear", layers=1, width=2))
    network.logit.weight.data, network.logit.bias.data = torch.tensor([[1.0, 0]]), torch.tensor([-RADIUS])
    detector = Detector(
        trajectory=Trajectory(representatives=representatives), network=network.eval().requires_grad_(False)
    )
    return model, WatchedModel(model, detector)


def colours(*green: float) -> torch.Tensor:
    """Images of one colour each: no red and no blue, and so much green."""
    p = torch.tensor([[0.0, g, 0.0] for g in green])
    return (0.5 + p / 2)[:, :, None, None].expand(-1, -1, 16, 16).contiguous()


def approach(eps: float) -> fa.Recipe:
    return fa.Recipe(
        SignGradient(budget=Linf(eps), steps=150, step_size=0.004, stop_at_success=True, margin=0.002, name="approach")
    )


@pytest.mark.parametrize("weight", [0.3, 1.0, 3.0])
def test_it_succeeds_exactly_where_an_image_exists_that_evades_both(weight):
    """Within 2 eps of p the smallest colour with red .3 has the length sqrt(.3^2 + max(0, green - 2 eps)^2)."""
    model, watched = linear_pair()
    green = (0.2, 0.3, 0.4, 0.7)
    x, labels = colours(*green), torch.ones(4, dtype=torch.int64)
    goal = EvadeDetector(goal=ClassifyAs(labels), weight=weight, threshold=0.0, by_shortfall=True)
    for eps in (0.12, 0.16, 0.24):
        made = fa.run(approach(eps), goal, watched, x, engine=fa.Engine(batch=4))
        lengths = [math.hypot(BORDER, max(0.0, g - 2 * eps)) for g in green]
        assert made.success.tolist() == [2 * eps > BORDER and length < RADIUS for length in lengths]
        with torch.no_grad():
            outputs = watched.logits(made.images)
        assert made.success.tolist() == ((outputs[:, 1] > outputs[:, 0]) & (outputs[:, 2] < 0)).tolist()
    # who does not know the detector goes on to the border of the ball in red alone, and is flagged
    blind = fa.run(bim(eps=0.16, steps=20), ClassifyAs(labels), model, x, engine=fa.Engine(batch=4))
    assert blind.success.all()
    with torch.no_grad():
        assert (watched.logits(blind.images)[:, 2] >= 0).all()


def test_the_margin_loss_gives_the_same_image_in_any_order_and_alone():
    _, watched = linear_pair()
    x = colours(0.2, 0.3, 0.4, 0.7, 0.25)
    labels, engine = torch.ones(5, dtype=torch.int64), fa.Engine(batch=2)
    goal = EvadeDetector(goal=ClassifyAs(labels), threshold=0.0, by_shortfall=True)
    whole = fa.run(approach(0.16), goal, watched, x, engine=engine)
    order = torch.tensor([3, 0, 4, 2, 1])
    mixed = fa.run(approach(0.16), goal, watched, x[order], ids=order.tolist(), engine=engine)
    assert torch.equal(mixed.images, whole.images[order])
    assert torch.equal(mixed.ticks, whole.ticks[order])
    alone = fa.run(approach(0.16), goal.row(2), watched, x[2:3], ids=[2], engine=engine)
    assert torch.equal(alone.images, whole.images[2:3])


def test_a_verifier_and_a_detector_are_evaded_at_once(pair):
    _, _, watched = pair
    x, targets = faces(8, 13), faces(8, 14)
    with torch.no_grad():
        line = float(watched(x)[:, -1].quantile(0.75))
        near = float((watched(x)[:, :-1] * watched(targets)[:, :-1]).sum(1).quantile(0.75))
    goal = EvadeDetector(goal=Impersonate(targets, threshold=min(1.0, near)), threshold=line, by_shortfall=True)
    attack = fa.Recipe(
        SignGradient(budget=Linf(0.2), steps=60, step_size=0.01, stop_at_success=True, margin=0.002, name="bim")
    )
    made = fa.run(attack, goal, watched, x, engine=fa.Engine(batch=4))
    with torch.no_grad():
        after, wanted = watched(made.images), watched(targets)[:, :-1]
    both = ((after[:, :-1] * wanted).sum(1) >= near) & (after[:, -1] < line)
    assert torch.equal(made.success, both)
    assert int(both.sum()) >= 6


def test_errors_name_what_is_wrong(pair):
    model, detector, _ = pair
    labels = torch.tensor([1])
    with pytest.raises(
        ValueError, match="got EvadeDetector on 'logits' and 1 further column and ClassifyAs on 'logits'"
    ):
        EvadeDetector(goal=ClassifyAs(labels)) & ClassifyAs(labels)
    with pytest.raises(TypeError, match="goal: expected a goal such as .*, got int"):
        EvadeDetector(goal=3)
    with pytest.raises(ValueError, match="weight: expected a number of at least 0, got -1"):
        EvadeDetector(goal=ClassifyAs(labels), weight=-1)
    with pytest.raises(ValueError, match="threshold: expected a logit, got nan"):
        EvadeDetector(goal=ClassifyAs(labels), threshold=math.nan)
    for more in ({"weight": 0.0, "threshold": 1.0}, {"weight": 1.0}):
        with pytest.raises(ValueError, match="by_shortfall: expected a positive weight and a finite threshold, got"):
            EvadeDetector(goal=ClassifyAs(labels), by_shortfall=True, **more)
    with pytest.raises(ValueError, match="goal: expected one on embedding or logits, got one on 'layer:0'"):
        EvadeDetector(goal=MatchFeatures(faces(1), layer="0"))
    with pytest.raises(TypeError, match="detector: expected a Detector, got NoneType"):
        WatchedModel(model, None)
    other = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    bare = FaceModel(other, input_size=(16, 16), mean=HALF, std=HALF, name="other").eval()
    with pytest.raises(ValueError, match="layers: expected submodules of the backbone of 'other', got '2'"):
        WatchedModel(bare, detector)
    with pytest.raises(ValueError, match="head: expected a class head for logits, got 'tiny' without one"):
        WatchedModel(make_model(head=False), detector).logits(faces(1))


def test_its_iterates_are_the_results_of_so_many_steps(pair):
    _, _, watched = pair
    goal = EvadeDetector(goal=ClassifyAs(torch.tensor([0, 1, 2])), weight=0.7, threshold=-0.1)
    x, attack = faces(3, 5), bim(steps=2)
    found = dict(fa.engine.trace(attack, goal, watched, x, at=[1, 2]))
    assert torch.equal(found[2], fa.run(attack, goal, watched, x).images)
    assert not torch.equal(found[1], found[2])
