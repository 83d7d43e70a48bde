"""``goal_a & goal_b``: reached where both are, image by image, in any slot; sentences where two goals do not fit."""

from dataclasses import dataclass, replace

import pytest
import torch
from small import curved_model, grey_images, linear_model, predicted
from torch import Tensor

import fastadv as fa
from fastadv.attacks import Conjunction, Evade, MatchFeatures, Rows
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.runs.identity import goal_hash
from fastadv.surrogates import Ensemble, FeatureDropout, Surrogate

pytestmark = pytest.mark.filterwarnings("ignore:.*:fastadv.AttackWarning")
MODEL, X = curved_model(), grey_images(5)
OTHER = (predicted(MODEL, X) + 1) % 6
FIRST, SECOND = grey_images(5, seed=7), grey_images(5, seed=8)
SURROGATES = {
    "bare": Surrogate(),
    "dropout": Surrogate(dropout=FeatureDropout(rate=0.1)),
    "ensemble": Surrogate(ensemble=Ensemble(others=(curved_model(seed=1), curved_model(seed=2)))),
}


def calm(logits: Tensor) -> Tensor:
    return 0.3 - logits.std(1)


def moves(surrogate: str, steps: int = 3) -> fa.Recipe:
    return replace(fa.attacks.pgd(eps=16 / 255, steps=steps), surrogate=SURROGATES[surrogate])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd", {"steps": 4}),
        ("bim", {"steps": 60, "eps": 0.3, "stop_at_success": True}),
        ("cw-l2", {"search_steps": 2, "inner_steps": 40}),
        ("deepfool", {}),
        ("apgd-dlr", {"steps": 4}),
        ("lbfgs", {"searches": 1, "steps_each": 3}),
    ],
)
def test_it_is_reached_exactly_where_both_goals_are(name, options):
    made = fa.attack(name, MODEL, X, goal=fa.ClassifyAs(OTHER) & calm, engine=fa.Engine(success_float=True), **options)
    with torch.no_grad():
        z = MODEL.logits(made.images)
    lead = z.gather(1, OTHER[:, None])[:, 0] - z.scatter(1, OTHER[:, None], -torch.inf).amax(1)
    assert torch.equal(made.success, (lead > 0) & (calm(z) > 0))
    torch.testing.assert_close(made.score_after, torch.minimum(lead, calm(z)))
    if name in ("cw-l2", "deepfool", "bim"):
        assert made.success_float.all()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_each_goal_keeps_its_own_references(surrogate):
    goal = Evade(threshold=0.9) & fa.Impersonate(FIRST, threshold=0.2) & fa.Impersonate(SECOND, threshold=0.1)
    made = fa.run(moves(surrogate), goal, MODEL, X)
    with torch.no_grad():
        own, first, second, after = (MODEL(x) for x in (X, FIRST, SECOND, made.images))
    spare = [0.9 - (after * own).sum(1), (after * first).sum(1) - 0.2, (after * second).sum(1) - 0.1]
    torch.testing.assert_close(made.score_after, torch.stack(spare).amin(0))
    assert torch.equal(made.success, (spare[0] > 0) & (spare[1] >= 0) & (spare[2] >= 0))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_goal_and_itself_is_the_goal(surrogate):
    """The doubled gradient has the signs of the single one, bit by bit."""
    goal = fa.Impersonate(FIRST, threshold=0.4)
    twice, once = (fa.run(moves(surrogate), g, MODEL, X) for g in (goal & goal, goal))
    assert torch.equal(twice.images, once.images)
    assert torch.equal(twice.success, once.success)
    torch.testing.assert_close(twice.score_after, once.score_after - 0.4)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_an_image_has_the_same_bytes_in_any_slot_order_and_company(surrogate):
    goal = fa.Impersonate(FIRST, threshold=0.9) & fa.Impersonate(SECOND, threshold=0.9)

    def found(order, slots):
        jobs = [Job(name=str(i), id=i, image=X[i], goal=goal.row(i)) for i in order]
        results = stream_jobs(moves(surrogate), jobs, MODEL, engine=Engine(batch=2, slots=slots))
        return {r.name: (fa.data.to_uint8(r.image).tobytes(), r.success, r.score_after) for r in results}

    whole = found(range(5), 6)
    assert found([4, 2, 0, 1, 3], 2) == whole
    assert found([3], 4) == {"3": whole["3"]}


def test_the_gradient_is_that_of_the_sum():
    model = linear_model(3, lead=0.8)
    a, b = (lambda z: z[:, 1] - z[:, 0]), (lambda z: 3 * z[:, 2] - z[:, 0])
    both = fa.Objective(a) & fa.Objective(b)
    weight = model.head.weight.detach()
    expected = ((weight[1] - weight[0]) + (3 * weight[2] - weight[0])).sign().view(3, 6, 5)
    moved = fa.attack("fgsm", model, grey_images(4, low=0.2, high=0.8), goal=both, eps=8 / 255)
    change = moved.images - grey_images(4, low=0.2, high=0.8)
    torch.testing.assert_close(change, (8 / 255 * expected).expand_as(change), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["deepfool", "cw-l2"])
def test_a_goal_that_is_always_reached_changes_no_smallest_perturbation(name):
    alone = fa.Objective(lambda z: z[:, 1] - z[:, 0], border=0.1)
    options = {"search_steps": 2, "inner_steps": 20} if name == "cw-l2" else {}
    made = [
        fa.attack(name, linear_model(2, lead=0.4), X, goal=goal, **options)
        for goal in (alone, alone & fa.Objective(lambda z: 1000 + 0 * z[:, 0]))
    ]
    assert torch.equal(made[0].images, made[1].images)
    assert made[0].success.all()


def test_the_values_are_those_of_the_parts():
    z = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0], [0.0, 0.5, 4.0]])
    labels = torch.tensor([0, 1, 2])
    a, b, c = fa.ClassifyAs(labels), fa.Objective(lambda z: z[:, 0], border=-0.5), fa.Misclassify((labels + 1) % 3)
    goal, rows = a & b & c, Rows(parts=(Rows(label=labels), Rows(), Rows(label=(labels + 1) % 3)))
    each = list(zip((a, b, c), rows.parts, strict=True))
    torch.testing.assert_close(goal.loss(z, rows), sum(g.loss(z, r) for g, r in each))
    short = torch.stack([g.shortfall(z, r) for g, r in each]).amax(0)
    assert torch.equal(goal.shortfall(z, rows), short)
    assert torch.equal(goal.score(z, rows), -short)
    assert goal.rivals(z, rows, 3).tolist() == [[s, torch.inf, torch.inf] for s in short.tolist()]
    for margin, expected in ((0.0, [True, True, True]), (0.75, [True, False, False]), (1.0, [False, False, False])):
        assert goal.achieved(z, rows, margin).tolist() == expected
    assert (goal.metric, goal.output, goal.border) == ("least_margin", "logits", 0.0)
    assert (goal.wants_label, goal.avoids_label) == (True, True)


def test_three_goals_are_one_conjunction_of_three():
    a, b, c = (fa.Impersonate(x, threshold=0.5) for x in (X, FIRST, SECOND))
    for goal in (a & b & c, a & (b & c)):
        assert [g.targets.data_ptr() for g in goal.goals] == [x.data_ptr() for x in (X, FIRST, SECOND)]
    assert goal.row_count == 5
    assert torch.equal(goal.row(3).goals[2].targets, SECOND[3:4])
    assert (calm & fa.ClassifyAs(OTHER)).goals[0].function is calm
    text = repr(a & Evade(threshold=0.25))
    assert text == (
        "Impersonate(targets=a Tensor of torch.float32 of shape (5, 3, 6, 5), threshold=0.5, metric='cosine') & "
        "Evade(references=None, threshold=0.25, metric='cosine')"
    )


def test_a_run_is_known_by_all_of_its_goals():
    a, b = fa.Impersonate(FIRST, threshold=0.5), fa.Impersonate(SECOND, threshold=0.5)
    assert goal_hash(a & b) == goal_hash(a & b)
    assert len({goal_hash(goal) for goal in (a & b, b & a, a & a, a & b & b, a)}) == 5


def test_templates_of_a_gallery_are_one_part():
    with torch.no_grad():
        gallery = fa.Gallery(templates=MODEL(torch.cat([FIRST[:2], X[:2]])), classes=torch.tensor([0, 1, 2, 2]))
    labels = torch.tensor([0, 1, 0, 1, 0])
    goal = fa.GalleryClass(gallery=gallery, labels=labels) & Evade(threshold=0.8)
    made = fa.run(fa.attacks.pgd(eps=0.2, steps=5), goal, MODEL, X)
    with torch.no_grad():
        after, own = MODEL(made.images), MODEL(X)
    said = gallery.vote(gallery.distances(after), 1) == labels
    assert torch.equal(made.success, said & ((after * own).sum(1) < 0.8))
    with pytest.raises(ValueError, match="guides: expected images .* with an ensemble"):
        fa.run(moves("ensemble"), goal, MODEL, X)


@dataclass(frozen=True, kw_only=True)
class Uneven(fa.Goal):
    references: Tensor
    labels: Tensor

    def loss(self, outputs, rows):
        return rows.distance(outputs)


def run_kinds(*goals):
    jobs = [Job(name=str(i), id=i, image=X[i], goal=goal) for i, goal in enumerate(goals)]
    return list(stream_jobs(fa.attacks.fgsm(), jobs, MODEL))


ROW = fa.Impersonate(FIRST[:1], threshold=0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ROW & fa.ClassifyAs(OTHER[:1]),
            ValueError,
            "goals: expected goals on the same output of the model, got Impersonate on 'embedding' and ClassifyAs on "
            "'logits'",
        ),
        (
            lambda: ROW & MatchFeatures(X[:1], layer="0"),
            ValueError,
            "Impersonate on 'embedding' and MatchFeatures on 'la",
        ),
        (
            lambda: ROW & fa.Impersonate(SECOND, threshold=0.5),
            ValueError,
            "goals: expected goals for the same images, got 1 rows in Impersonate and 5 in Impersonate",
        ),
        (lambda: Conjunction((ROW,)), ValueError, "goals: expected two goals or more, got "),
        (lambda: ROW & fa.Impersonate, TypeError, "goal: expected a goal such as .*, got Impersonate; call it"),
        (lambda: ROW & 3, TypeError, "goal: expected a goal such as .*, got int"),
        (
            lambda: fa.run(fa.attacks.fgsm(), fa.ClassifyAs(OTHER) & fa.ClassifyAs(OTHER + 5), MODEL, X),
            ValueError,
            "labels: expected numbers below the model's 6 classes, got ",
        ),
        (
            lambda: fa.run(fa.attacks.fgsm(), ROW & ROW, MODEL, X),
            ValueError,
            "goal: expected one row for each of the 5",
        ),
        (
            lambda: run_kinds(ROW & ROW, ROW & Evade(threshold=0.5)),
            ValueError,
            "goal of '1': expected one like the first",
        ),
        (lambda: run_kinds(ROW & ROW, ROW & ROW & ROW), ValueError, "goal of '1': expected one like the first"),
        (
            lambda: Uneven(references=FIRST, labels=OTHER[:2]) & Evade(threshold=0.5),
            ValueError,
            "goal: expected as many references as labels in Uneven, got 2 and 5",
        ),
    ],
)
def test_goals_that_do_not_fit_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
