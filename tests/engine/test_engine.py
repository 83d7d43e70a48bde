"""The engine: the same result in any slot, order and number of slots; loud about what is wrong."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from small import LAYERED_SIZE as SIZE
from small import grey_images, strided_net
from small import strided_model as model
from torch import nn

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import APGD, Evade, Impersonate, Linf, Misclassify, SignGradient
from fastadv.engine import Engine, Job, stream_jobs, trace

faces = partial(grey_images, size=SIZE)


def jobs(x: torch.Tensor, targets: torch.Tensor, order) -> list[Job]:
    goal = Impersonate(targets, threshold=0.95)
    return [Job(name=f"face{i}", id=1000 + i, image=x[i], goal=goal.row(i)) for i in order]


ATTACKS = {
    "fim": attacks.fim(eps=16 / 255, steps=12),
    "pgd": attacks.pgd(eps=16 / 255, steps=6),
    "m-fim": attacks.m_fim(eps=16 / 255, steps=6),
    "pgd-l2": attacks.pgd_l2(eps=1.0, steps=6),
    "stop": attacks.pgd(eps=40 / 255, steps=40, step_size=1 / 255, stop_at_success=True),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_result_does_not_depend_on_slots_order_or_neighbours(name):
    net, x, targets = model(), faces(21), faces(21, seed=2)
    attack = ATTACKS[name]
    made = stream_jobs(attack, jobs(x, targets, range(21)), net, seed=5, engine=Engine(slots=8, batch=8))
    reference = {r.name: r for r in made}
    assert len(reference) == 21
    for result in stream_jobs(attack, jobs(x, targets, range(21)), net, seed=5):  # in batches of 16
        expected = reference[result.name]
        assert torch.equal(result.image, expected.image)
        assert (result.ticks, result.success) == (expected.ticks, expected.success)
        # some processors round otherwise in a batch of another size
        assert result.score_after == pytest.approx(expected.score_after, abs=1e-6)
    variants = [
        (range(21), Engine(slots=24, batch=8)),
        (reversed(range(21)), Engine(slots=16, batch=8, poll=3)),
        ([3, 17, 4], Engine(slots=8, batch=8)),
    ]
    for order, engine in variants:
        for result in stream_jobs(attack, jobs(x, targets, order), net, seed=5, engine=engine):
            expected = reference[result.name]
            assert torch.equal(result.image, expected.image)
            assert (result.ticks, result.success) == (expected.ticks, expected.success)
            assert result.score_after == expected.score_after


@pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")
def test_slots_are_refilled_so_the_cost_is_the_sum_of_the_images_own_ticks():
    seen: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = strided_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.requires_grad:
                seen.append(len(x))
            return self.net(x)

    net = fa.FaceModel(Counting(), input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="counting").eval()
    x, targets = faces(64), faces(64, seed=2)
    with torch.no_grad():
        similar = (net(x) * net(targets)).sum(1)
    goal = Impersonate(targets, threshold=float(similar.median()) + 0.05)
    attack = SignGradient(budget=Linf(32 / 255), steps=32, step_size=1 / 255, stop_at_success=True)
    made = fa.run(fa.Recipe(attack), goal, net, x, engine=Engine(slots=8, batch=8))
    slowest_of_each_batch = int(made.ticks.view(8, 8).amax(1).sum()) * 8
    # the slots can only idle while the last images finish
    assert sum(seen) <= int(made.ticks.sum()) + 8 * int(made.ticks.max())
    assert sum(seen) < 0.8 * slowest_of_each_batch


def test_the_users_model_is_left_as_it_was():
    net = model()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
    state = torch.get_rng_state()
    fa.run(attacks.pgd(steps=2), Evade(threshold=0.5), net, faces(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_bf16_gradients_are_judged_in_float32():
    net, x, targets = model(), faces(6), faces(6, seed=2)
    goal = Impersonate(targets, threshold=0.9)
    made = fa.run(attacks.fim(eps=32 / 255), goal, net, x, engine=Engine(precision="bf16"))
    with torch.no_grad():
        score = (net(made.images) * net(targets)).sum(1)
    torch.testing.assert_close(made.score_after, score, rtol=0, atol=1e-5)
    assert torch.equal(made.success, made.score_after >= 0.9)


def test_auto_precision_and_measured_batch_resolve_to_what_can_run():
    engine = Engine(precision="auto", batch=0).resolve(model())
    assert engine.precision in ("fp32", "bf16")
    assert engine.batch in (8, 16, 32)
    assert engine.slots == engine.batch


def test_embeddings_serve_as_targets_as_well_as_images():
    net, x, targets = model(), faces(4), faces(4, seed=2)
    with torch.no_grad():
        embedded = net(targets)
    a = fa.run(attacks.fim(), Impersonate(targets, threshold=0.9), net, x)
    b = fa.run(attacks.fim(), Impersonate(embedded, threshold=0.9), net, x)
    torch.testing.assert_close(a.score_after, b.score_after, rtol=0, atol=1e-5)


def test_a_zero_gradient_is_reported_by_name_and_count():
    with pytest.warns(fa.AttackWarning, match="2 images had an all-zero gradient at every step.*: 0, 1"):
        made = fa.run(attacks.fim(), Evade(threshold=0.5), model(), faces(2))
    assert all("zero_gradient" in f for f in made.flags)
    assert float(made.linf.max()) == 0.0


def test_a_random_start_gives_an_evasion_of_itself_a_gradient():
    made = fa.run(attacks.pgd(steps=5, eps=32 / 255), Evade(threshold=0.5), model(), faces(2))
    assert not any("zero_gradient" in f for f in made.flags)
    assert bool((made.score_after < made.score_before).all())


def test_a_goal_met_before_the_start_is_reported():
    net, x, targets = model(), faces(2), faces(2, seed=2)
    with torch.no_grad():
        near = float((net(x) * net(targets)).sum(1).min()) - 0.01
    with pytest.warns(fa.AttackWarning, match="2 images had reached the goal before the attack began: 0, 1"):
        made = fa.run(attacks.fim(), Impersonate(targets, threshold=near), net, x)
    assert all("met_at_start" in f for f in made.flags)


def test_nonfinite_gradients_are_counted_and_leave_their_pixels():
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
        def __init__(self) -> None:
            super().__init__()
            self.net = strided_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(Half.apply(x))

    net = fa.FaceModel(Poisoned(), input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="poisoned").eval()
    x = faces(2)
    with pytest.warns(fa.AttackWarning, match="2 images met gradients that are not finite"):
        made = fa.run(attacks.fim(steps=3), Impersonate(faces(2, seed=2), threshold=0.99), net, x)
    assert torch.equal(made.images[..., :8], x[..., :8])
    assert not torch.equal(made.images[..., 8:], x[..., 8:])


def test_out_of_memory_means_fewer_slots_and_going_on():
    class Limited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = strided_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 4:
                raise torch.OutOfMemoryError("no more")
            return self.net(x)

    net = fa.FaceModel(Limited(), input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="limited").eval()
    x, targets = faces(11), faces(11, seed=2)
    goal = Impersonate(targets, threshold=0.9)
    with pytest.warns(fa.AttackWarning) as said:
        made = fa.run(attacks.fim(), goal, net, x, engine=Engine(slots=16, batch=16))
        small = fa.run(attacks.fim(), goal, net, x, engine=Engine(slots=4, batch=4))
    assert [str(w.message) for w in said if "memory" in str(w.message)] == [
        "out of memory with 16 slots in batches of 16; going on with 8 in batches of 8",
        "out of memory with 8 slots in batches of 8; going on with 4 in batches of 4",
    ]
    assert torch.equal(made.images, small.images)
    jobs = [fa.Job(name=str(k), id=k, image=x[k], goal=goal.row(k)) for k in range(len(x))]
    with pytest.warns(fa.AttackWarning, match="out of memory"):
        results = list(fa.stream_jobs(attacks.fim(), jobs, net, engine=Engine(slots=16, batch=16)))
    assert {r.batch for r in results} == {4}  # a row says with which batch its bits were made


def test_no_memory_at_all_is_an_error_that_says_so():
    class Never(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.requires_grad:
                raise torch.OutOfMemoryError("no more")
            return x.flatten(1)

    net = fa.FaceModel(Never(), input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="never").eval()
    with (
        pytest.warns(fa.AttackWarning),
        pytest.raises(torch.OutOfMemoryError, match="not enough memory for a single"),
    ):
        fa.run(attacks.fim(), Impersonate(faces(2), threshold=0.9), net, faces(2))


def test_an_empty_batch_gives_an_empty_result():
    made = fa.run(attacks.fim(), Misclassify(torch.zeros(0, dtype=torch.int64)), model(head=nn.Linear(12, 3)), faces(0))
    assert len(made.images) == len(made.success) == len(made.flags) == 0


@pytest.mark.parametrize("name", ["fim", "pgd", "m-fim"])
def test_the_iterate_after_k_steps_is_the_result_of_k_steps(name):
    net, x, targets = model(), faces(11), faces(11, seed=2)
    goal, engine = Impersonate(targets, threshold=0.999), Engine(batch=8)
    found = dict(trace(ATTACKS[name], goal, net, x, at=(5, 1, 3), seed=5, engine=engine))
    assert list(found) == [1, 3, 5]
    for steps, images in found.items():
        shorter = replace(ATTACKS[name], attack=replace(ATTACKS[name].attack, steps=steps))
        assert torch.equal(images, fa.run(shorter, goal, net, x, seed=5, engine=engine).images)


def test_iterates_are_refused_where_the_attack_has_none():
    goal = Impersonate(faces(2), threshold=0.9)
    for at in ([], [0], [13]):
        with pytest.raises(ValueError, match=r"at: expected numbers of steps from 1 to 12, got \["):
            next(trace(ATTACKS["fim"], goal, model(), faces(2), at=at))
    restarts = fa.Recipe(APGD(budget=Linf(0.1), steps=6, restarts=2, stop_at_success=False))
    assert next(trace(restarts, goal, model(), faces(2), at=[12]))[0] == 12
    with pytest.raises(ValueError, match="at: expected numbers of steps from 1 to 12, got"):
        next(trace(restarts, goal, model(), faces(2), at=[13]))
    with pytest.raises(ValueError, match="goal: expected one row for each of the 3 images, got 2"):
        next(trace(ATTACKS["fim"], goal, model(), faces(3), at=[1]))


@pytest.mark.parametrize("eps", [8 / 255, 4 / 255, 0.03])
def test_the_largest_change_is_never_reported_above_the_radius(eps):
    x = faces(12)
    made = list(stream_jobs(attacks.fim(eps=eps, steps=12), jobs(x, faces(12, seed=2), range(12)), model(), seed=1))
    levels = {round(255 * r.linf) for r in made}
    assert levels == {int(255 * eps + 1e-9)}
    assert all(r.linf <= eps for r in made)
    assert all(r.linf == next(iter(levels)) / 255 for r in made)


def test_a_radius_below_one_grey_level_is_said_once():
    x = faces(3)
    with pytest.warns(fa.engine.AttackWarning, match="3 images were left as they were: eps is below one grey level"):
        made = fa.engine.run(attacks.fim(eps=1e-4, steps=2), Impersonate(faces(3, seed=2), threshold=0.999), model(), x)
    assert torch.equal(made.images, x)
    assert not made.success.any()
    assert made.flags == (("eps_below_a_level",),) * 3


def test_what_was_met_before_is_told_apart():
    x = faces(4)
    with pytest.warns(fa.engine.AttackWarning, match="4 images had reached the goal before"):
        made = fa.engine.run(attacks.pgd(steps=1), Impersonate(x, threshold=0.5), model(), x)
    assert made.met_before.tolist() == [True] * 4
    other = fa.engine.run(attacks.fim(steps=1), Impersonate(faces(4, seed=2), threshold=0.9999), model(), x)
    assert other.met_before.tolist() == [False] * 4


def test_images_that_require_a_gradient_are_taken_as_they_are():
    net, x, targets = strided_net(), faces(2), faces(2, seed=2)
    model = fa.FaceModel(net, input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="n").eval()
    goal = Impersonate(targets, threshold=0.9999)
    made = [fa.run(attacks.fim(), goal, model, y).images for y in (x, x.clone().requires_grad_())]
    assert torch.equal(*made)
    assert not made[1].requires_grad


@pytest.mark.parametrize("targets", ["images", "embeddings"])
def test_what_requires_a_gradient_is_read_and_left_alone(targets):
    """Images, targets and embeddings from the middle of the caller's own graph, in a run, a stream and a trace."""
    net, attack = model(), attacks.pgd(steps=2)
    leaf, other = faces(2).requires_grad_(), faces(2, seed=2).requires_grad_()
    x, t = leaf * 1.0, other * 1.0
    plain = Impersonate(faces(2, seed=2), threshold=0.9999)
    goal = Impersonate(t, threshold=0.9999)
    if targets == "embeddings":
        with torch.no_grad():
            plain = Impersonate(net(faces(2, seed=2)), threshold=0.9999)
        goal = Impersonate(net(t), threshold=0.9999)
    expected = fa.run(attack, plain, net, faces(2))
    made = fa.run(attack, goal, net, x)
    streamed = {
        r.name: r.image
        for r in stream_jobs(attack, [Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in range(2)], net)
    }
    ((_, traced),) = trace(attack, goal, net, x, at=[2])
    for images in (made.images, traced, torch.stack([streamed["0"], streamed["1"]])):
        assert torch.equal(images, expected.images)
        assert not images.requires_grad
    assert torch.equal(made.score_before, expected.score_before)
    (x.sum() + (goal.targets * 2).sum()).backward()  # the caller's graph is whole
    assert torch.equal(leaf.grad, torch.ones_like(leaf))
    assert other.grad is not None
    assert all(p.grad is None for p in net.parameters()) or targets == "embeddings"
