"""Facts that hold for every named attack that looks for the smallest perturbation, and for APGD."""

from functools import partial
from typing import Any

import pytest
import torch
from small import SIZE, curved_model, grey_images, predicted
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastadv as fa
from fastadv.attacks import (
    APGD,
    CATALOG,
    Box,
    CarliniWagner,
    CarliniWagnerL0,
    CarliniWagnerLinf,
    Evaluation,
    Misclassify,
    Rows,
    by_name,
    seeks_smallest,
)
from fastadv.engine import Engine, Job, stream_jobs

SINGLE = {n: by_name(n).attack for n, entry in CATALOG.items() if not entry.ensemble}
SMALLEST = [n for n, attack in SINGLE.items() if seeks_smallest(attack) or isinstance(attack, APGD)]
STEPS = 12


faces = partial(grey_images, low=0.3, high=0.7)


def short(name: str) -> Any:
    return (by_name(name, steps=STEPS) if CATALOG[name].steps else by_name(name)).attack


def test_the_names_of_the_papers_are_there():
    papers = {"cw-l2", "cw-linf", "cw-l0", "deepfool", "noise-uniform", "noise-gaussian", "minimal-fgsm", "apgd"}
    assert papers <= set(SMALLEST)
    assert by_name("cw-l2") != by_name("cw-linf")
    massoli = by_name("cw-l2").attack
    assert (massoli.search_steps, massoli.inner_steps) == (5, 1000)
    moosavi = by_name("deepfool").attack
    assert (moosavi.steps, moosavi.overshoot, moosavi.returns) == (50, 0.02, 0)


@pytest.mark.parametrize("name", SMALLEST)
def test_every_result_is_judged_again_on_the_8_bit_image(name):
    model, x = curved_model(), faces(5)
    label = predicted(model, x)
    attack = short(name)
    made = fa.run(fa.Recipe(attack), Misclassify(label), model, x, seed=2, engine=fa.Engine(success_float=True))
    assert torch.equal(torch.round(made.images * 255) / 255, made.images)
    clear = made.score_after.abs() > 1e-5  # at the border itself the engine's own network may see the other side
    assert torch.equal(made.success[clear], (predicted(model, made.images) != label)[clear])
    delta = (made.images - x).flatten(1)
    torch.testing.assert_close(made.linf, delta.abs().amax(1))
    torch.testing.assert_close(made.l2, delta.norm(dim=1))
    assert bool(attack.budget.inside(made.images, x).all())
    if attack.budget == Box() and attack.needs_gradient:
        # some are short of steps, and on 90 numbers rounding may cost what was reached: then one of the two says so
        assert float(made.success_float.double().mean()) >= 0.8
        assert float(made.success.double().mean()) >= 0.6


@pytest.mark.parametrize("make", [CarliniWagner, CarliniWagnerLinf, CarliniWagnerL0])
def test_a_constant_that_is_raised_for_ever_stays_a_number(make):
    """A gradient that is not finite would be a warning, and so an error here."""
    model, x = curved_model(), faces(2)
    with torch.no_grad():
        model.head.bias[0] += 1000
    made = fa.run(
        fa.Recipe(make(search_steps=140, inner_steps=2)),
        Misclassify(torch.zeros(2, dtype=torch.int64)),
        model,
        x,
        engine=fa.Engine(success_float=True),
    )
    assert not made.success_float.any()
    assert bool(torch.isfinite(made.images).all())


class DarkIsNoNumber(nn.Module):
    """Logits of a curved network, and NaN for dark images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = curved_model().backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + torch.sqrt(x.mean((1, 2, 3)) - 0.3)[:, None]


@pytest.mark.parametrize("name", SMALLEST)
def test_a_slot_keeps_nothing_of_the_image_before_even_where_the_loss_is_no_number(name):
    head = curved_model().head
    model = fa.FaceModel(DarkIsNoNumber(), input_size=SIZE, mean=(0,) * 3, std=(1,) * 3, name="dark", head=head).eval()
    x = torch.cat([faces(2), torch.round(faces(1) * 40) / 255])
    goal = Misclassify(torch.tensor([0, 1, 2]))

    def last(order):
        jobs = [Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in order]
        engine = Engine(slots=1, batch=1)
        return {r.name: r for r in stream_jobs(fa.Recipe(short(name)), jobs, model, engine=engine)}["2"]

    alone, after = last([2]), last([0, 1, 2])
    assert torch.equal(alone.image, after.image)
    assert (alone.ticks, alone.success, alone.nonfinite) == (after.ticks, after.success, after.nonfinite)
    assert bool(torch.isfinite(alone.image).all())


class NoHost(TorchDispatchMode):
    """Refuses what waits for the device: a value or a shape that the host must know."""

    BANNED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.BANNED, name
        if name in ("index", "index_put_"):
            places = [i for i in args[1] if i is not None]
            assert not any(i.dtype == torch.bool for i in places), name
        return function(*args, **(kwargs or {}))


def test_the_watch_sees_what_waits():
    x = torch.zeros(3)
    for wait in (lambda: bool(x.any()), lambda: x[x > 0], lambda: x.nonzero()):
        with NoHost(), pytest.raises(AssertionError):
            wait()


@pytest.mark.parametrize("name", SMALLEST)
def test_a_tick_never_waits_for_the_device(name):
    """So it can be recorded as a CUDA graph."""
    model, x = curved_model(), faces(4)
    rows = Rows(label=predicted(model, x))
    goal = Misclassify(rows.label)
    attack = short(name)
    state = attack.allocate(x)
    attack.start(state, torch.arange(4), x, ids=torch.arange(4), seed=0)
    for _ in range(2 * STEPS):
        leaf = state.trial.detach().requires_grad_(True)
        outputs = model.logits(leaf)
        with NoHost():
            loss = attack.objective(goal, outputs, rows, state.query)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            achieved = goal.achieved(outputs.detach(), rows, attack.margin)
            attack.tick(
                state,
                Evaluation(loss=loss.detach(), achieved=achieved, gradient=gradient, outputs=outputs.detach()),
            )
    assert int(state.ticks.max()) > 1
