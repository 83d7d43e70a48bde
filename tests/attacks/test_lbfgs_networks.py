"""L-BFGS-B and Szegedy's L-BFGS on networks, through the engine: closed forms, other slots, limits, users' errors."""

import numpy as np
import pytest
import torch
from neighbours import assert_alone
from scipy.optimize import minimize
from small import SIZE, linear_model
from small import grey_images as faces
from torch import nn

import fastadv as fa
from fastadv.attacks import ClassifyAs, Impersonate, Linf, Misclassify
from fastadv.attacks.attack import Evaluation
from fastadv.attacks.budget import L2, Box
from fastadv.attacks.feature_goals import MatchFeatures
from fastadv.attacks.lbfgs_penalty import LBFGS
from fastadv.attacks.lbfgsb import LBFGSB
from fastadv.attacks.optimisation_catalog import df, knn_df, lbfgs
from fastadv.data.synthetic import SyntheticFaces

# random labels and noise: some goals are met at once, and that is said
pytestmark = pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")


@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_it_reaches_the_corner_of_the_box(targeted):
    model, x, eps = linear_model(), faces(5), 8 / 255
    label = torch.tensor([0, 1, 0, 1, 1])
    direction = (model.head.weight[1] - model.head.weight[0]).detach().view(1, 3, *SIZE)
    sign = torch.where(label == (1 if targeted else 0), 1.0, -1.0).view(-1, 1, 1, 1)
    best = torch.minimum(torch.maximum(x + eps * sign * direction.sign(), x - eps), x + eps).clamp(0, 1)
    goal = (ClassifyAs if targeted else Misclassify)(label)
    made = fa.run(fa.Recipe(LBFGSB(budget=Linf(eps))), goal, model, x)
    torch.testing.assert_close(made.images, torch.round(best * 255) / 255, rtol=0, atol=1e-6)
    assert int(made.ticks.max()) <= 25  # a gradual optimiser does not jump to the corner


@pytest.mark.parametrize("goal", [ClassifyAs, Misclassify])
@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_the_smallest_perturbation_of_a_linear_model(goal, shift):
    """``|Z_0 - Z_1| / ||w_0 - w_1||`` away from the bounds and before rounding, whatever the offset of the logits."""
    model, x = linear_model(shift=shift), faces(8, low=0.4, high=0.6)
    with torch.no_grad():
        z = model.logits(x)
        w = model.head.weight[1] - model.head.weight[0]
    now = z.argmax(1)
    exact = (z[:, 1] - z[:, 0]).abs() / w.norm()
    attack = LBFGS(searches=10)
    state_l2 = float_lengths(attack, goal(1 - now if goal is ClassifyAs else now), model, x)
    assert bool((state_l2 >= exact * (1 - 1e-3)).all())
    assert bool((state_l2 <= exact * 1.05).all())


def float_lengths(attack, goal, model, x):
    """The lengths before rounding to 8 bits, which is coarse against the smallest perturbation of so few pixels."""
    n = len(x)
    state = attack.allocate(x)
    attack.start(state, torch.arange(n), x, ids=torch.arange(n), seed=0)
    rows = fa.attacks.Rows(label=goal.labels)
    while state.active.any():
        leaf = state.trial.clone().requires_grad_(True)
        outputs = model.logits(leaf)
        loss = attack.objective(goal, outputs, rows, None)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        achieved = goal.achieved(outputs, rows, attack.margin)
        attack.tick(state, Evaluation(loss=loss.detach(), achieved=achieved, gradient=gradient, outputs=outputs))
    assert bool(goal.achieved(model.logits(state.trial), rows).all())
    return (state.trial - x).flatten(1).norm(dim=1)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.PReLU(8),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.PReLU(16),
        nn.Flatten(),
        nn.Linear(256, 12),
    )


def model(**kwargs):
    return fa.FaceModel(
        small_net(), input_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, name="small", **kwargs
    ).eval()


ATTACKS = {
    "df": (fa.Recipe(LBFGSB(budget=Linf(16 / 255), steps=12)), "features"),
    "until it succeeds": (
        fa.Recipe(LBFGSB(budget=Linf(40 / 255), stop_at_success=True, random_start=True)),
        "embedding",
    ),
    "l-bfgs": (fa.Recipe(LBFGS(searches=3, steps_each=5)), "logits"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_result_does_not_depend_on_slots_order_or_neighbours(name):
    attack, kind = ATTACKS[name]
    net = model(head=nn.Linear(12, 5)) if kind == "logits" else model()
    x, targets = faces(13, size=(16, 16)), faces(13, size=(16, 16), seed=2)
    goal = {
        "features": lambda: MatchFeatures(targets),
        "embedding": lambda: Impersonate(targets, threshold=0.95),
        "logits": lambda: Misclassify(torch.arange(13) % 5),
    }[kind]()
    assert_alone(attack, goal, net, x, seed=5, varied=name != "df", scores=True)


def test_it_needs_fewer_evaluations_than_signed_steps_for_the_same_success():
    net, x, targets = model(), faces(8, size=(16, 16)), faces(8, size=(16, 16), seed=2)
    goal = Impersonate(targets, threshold=0.9)
    quasi = fa.run(
        fa.Recipe(LBFGSB(budget=Linf(0.3), stop_at_success=True)), goal, net, x, engine=fa.Engine(success_float=True)
    )
    signed = fa.attacks.SignGradient(budget=Linf(0.3), steps=300, step_size=1 / 255, stop_at_success=True)
    steps = fa.run(fa.Recipe(signed), goal, net, x)
    assert quasi.success_float.all()
    assert int(quasi.ticks.sum()) < 0.6 * int(steps.ticks.sum())


def test_on_a_face_network_it_moves_as_gradually_as_scipy():
    """synth-mobile, the guided attack: as far from the image as SciPy's solver, most pixels far inside the box."""
    net, eps = fa.load("synth-mobile"), 10 / 255
    people = SyntheticFaces(identities=4, per_identity=1, seed=3)
    x = torch.stack([people.load(name).image for name in people.names])
    guides = x.roll(1, 0)
    made = fa.run(fa.Recipe(LBFGSB(budget=Linf(eps), evaluations=8, tolerance=0.0)), MatchFeatures(guides), net, x)
    with torch.no_grad():
        wanted = net(guides)
    ours, theirs = made.l2, []
    for image, features in zip(x, wanted, strict=True):
        start = image.flatten().double().numpy()
        trials = []

        def f(flat, image=image, features=features, trials=trials):
            leaf = torch.tensor(flat, dtype=torch.float32).view(1, *image.shape).requires_grad_(True)
            loss = (net(leaf) - features).square().sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            trials.append((float(loss.detach()), flat.copy()))
            return trials[-1][0], gradient.flatten().double().numpy()

        box = np.stack([np.clip(start - eps, 0, 1), np.clip(start + eps, 0, 1)], 1)
        minimize(f, start, jac=True, method="L-BFGS-B", bounds=box, options={"maxfun": 8, "ftol": 0, "gtol": 0})
        theirs.append(np.linalg.norm(min(trials, key=lambda t: t[0])[1] - start))
    assert 0.9 <= float(np.median(ours.numpy() / np.array(theirs))) <= 1.1
    assert float(((made.images - x).abs() <= 5.01 / 255).float().mean()) >= 0.5


def test_the_limits_are_kept():
    net, x, targets = model(), faces(3, size=(16, 16)), faces(3, size=(16, 16), seed=2)
    few = fa.run(fa.Recipe(LBFGSB(budget=Linf(0.1), evaluations=7)), MatchFeatures(targets), net, x)
    assert few.ticks.tolist() == [7, 7, 7]
    none = fa.run(fa.Recipe(LBFGSB(budget=Linf(0.1), steps=1)), MatchFeatures(targets), net, x)
    assert int(none.ticks.max()) <= 13
    assert float(none.linf.min()) > 0
    szegedy = fa.run(fa.Recipe(LBFGS(searches=2, steps_each=3)), Misclassify(torch.zeros(3, dtype=torch.int64)),
                     model(head=nn.Linear(12, 4)), x)  # fmt: skip
    assert int(szegedy.ticks.max()) <= 2 * (1 + 3 * 12)


def test_a_goal_that_is_out_of_reach_is_no_success_and_stays_in_the_budget():
    net, x = model(head=nn.Linear(12, 4)), faces(3, size=(16, 16))
    attack = LBFGS(searches=2, steps_each=2, budget=Linf(1 / 255))
    made = fa.run(fa.Recipe(attack), ClassifyAs(net_far_class(net, x)), net, x)
    assert not made.success.any()
    assert bool(Linf(1 / 255).inside(made.images, x).all())


def net_far_class(net, x):
    with torch.no_grad():
        return net.logits(x).argmin(1)


def test_a_zero_gradient_ends_at_once_and_is_reported():
    net, x = model(), faces(2, size=(16, 16))
    with pytest.warns(fa.AttackWarning, match="2 images had an all-zero gradient at every step"):
        made = fa.run(fa.Recipe(LBFGSB(budget=Linf(0.1))), MatchFeatures(x), net, x)
    assert made.ticks.tolist() == [1, 1]
    assert torch.equal(made.images, x)


def test_gradients_that_are_not_finite_are_counted_and_leave_their_pixels():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            g = g.clone()
            g[..., :8] = float("nan")
            return g

    class Poisoned(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            return self.net(Half.apply(x))

    net = fa.FaceModel(Poisoned(), input_size=(16, 16), mean=(0,) * 3, std=(1,) * 3, name="poisoned").eval()
    x = faces(2, size=(16, 16))
    with pytest.warns(fa.AttackWarning, match="2 images met gradients that are not finite"):
        made = fa.run(
            fa.Recipe(LBFGSB(budget=Linf(0.1), steps=4)), MatchFeatures(faces(2, size=(16, 16), seed=2)), net, x
        )
    assert torch.equal(made.images[..., :8], x[..., :8])
    assert not torch.equal(made.images[..., 8:], x[..., 8:])


def test_the_named_attacks_are_the_papers():
    assert (df().steps, df().budget, df().attack.stop_at_success) == (700, Linf(10 / 255), False)
    assert (knn_df().steps, knn_df().budget, knn_df().attack.stop_at_success) == (700, Linf(5 / 255), True)
    assert isinstance(lbfgs().budget, Box)
    assert lbfgs(eps=0.1, steps=4).budget == Linf(0.1)
    assert [a().name for a in (df, knn_df, lbfgs)] == ["df", "knn-df", "lbfgs"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LBFGSB(budget=L2(1.0)), r"budget: expected Linf\(eps\) or Box\(\), got L2"),
        (lambda: LBFGS(budget=L2(1.0)), r"budget: expected Linf\(eps\) or Box\(\), got L2"),
        (lambda: LBFGSB(budget=Linf(0.1), steps=0), "steps: expected an integer of at least 1, got 0"),
        (lambda: LBFGSB(budget=Linf(0.1), evaluations=0), "evaluations: expected an integer of at least 1, got 0"),
        (lambda: LBFGSB(budget=Linf(0.1), history=0), "history: expected an integer of at least 1, got 0"),
        (lambda: LBFGSB(budget=Linf(0.1), first_step=0.0), "first_step: expected None or a positive number, got 0.0"),
        (lambda: LBFGSB(budget=Linf(0.1), tolerance=-1.0), "tolerance: expected a number of at least 0, got -1.0"),
        (lambda: LBFGSB(budget=Linf(0.1), margin=float("nan")), "margin: expected a number of at least 0, got nan"),
        (lambda: LBFGS(searches=0), "searches: expected an integer of at least 1, got 0"),
        (lambda: LBFGS(steps_each=1.5), "steps_each: expected an integer of at least 1, got 1.5"),
        (lambda: LBFGS(history=0), "history: expected an integer of at least 1, got 0"),
        (lambda: LBFGS(initial_weight=-1.0), "initial_weight: expected None or a positive number, got -1.0"),
        (lambda: LBFGS(first_step=0.0), "first_step: expected a positive number, got 0.0"),
        (lambda: LBFGS(tolerance=-1.0), "tolerance: expected a number of at least 0, got -1.0"),
        (lambda: LBFGS(margin=-0.5), "margin: expected a number of at least 0, got -0.5"),
    ],
)
def test_a_users_error_names_the_field(make, text):
    with pytest.raises(ValueError, match=text):
        make()
