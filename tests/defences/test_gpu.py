"""Defences on a CUDA device: the captured tick, what cannot be captured, and the bits of one run in the next."""

import pytest
import torch

import fastadv as fa
from fastadv import attacks
from fastadv.defences import (
    AttackAsDefence,
    BitDepth,
    Chain,
    GaussianBlur,
    Jpeg,
    MeanFilter,
    Median,
    OneOf,
    PerfectKnowledge,
    RandomResizePad,
)
from fastadv.engine import Engine
from fastadv.models import load
from fastadv.models.float32_math import float32_math

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*:fastadv.AttackWarning")]

CAPTURED = (
    MeanFilter(),
    MeanFilter(size=5),
    GaussianBlur(),
    Median(),
    BitDepth(),
    RandomResizePad(),
    Chain(parts=(MeanFilter(), BitDepth())),
    OneOf(parts=(MeanFilter(), GaussianBlur(), RandomResizePad())),
)
ON_HOST = (
    Jpeg(quality=60),
    AttackAsDefence(attack=attacks.pgd(steps=2), engine=Engine(precision="fp32", batch=8, capture=False)),
)


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(1)
    x, targets = (torch.round(torch.rand(11, 3, 112, 112, generator=generator) * 255) / 255 for _ in range(2))
    return load("synth-mobile", device="cuda").eval(), x, targets


def attacked(case, defence, *, capture):
    model, x, targets = case
    attacker = PerfectKnowledge(samples=2).attacker(attacks.mi_fgsm_l2(eps=4.0, steps=6), model, defence)
    goal = attacker.goal(fa.Impersonate(targets, threshold=0.9))
    return fa.run(
        attacker.recipe, goal, attacker.model, x, seed=3, engine=Engine(precision="fp32", batch=8, capture=capture)
    ).images


@pytest.mark.parametrize("defence", CAPTURED, ids=lambda d: d.name)
def test_the_captured_tick_gives_the_eager_ones_bits(case, defence):
    eager = attacked(case, defence, capture=False)
    assert torch.equal(attacked(case, defence, capture=True), eager)
    assert not torch.equal(eager, case[1])


@pytest.mark.parametrize("defence", ON_HOST, ids=lambda d: d.name)
def test_what_runs_on_the_host_says_so_and_runs_uncaptured(case, defence):
    model, x, _ = case
    defended = defence.wrap(model, seed=5)
    with pytest.raises(RuntimeError, match="cannot be captured; use Engine"):
        attacked(case, defence, capture=True)
    first = defended(x[:4].cuda())
    assert torch.equal(defended(x[:4].cuda()), first)
    assert torch.equal(attacked(case, defence, capture=False), attacked(case, defence, capture=False))


@pytest.mark.parametrize("defence", CAPTURED, ids=lambda d: d.name)
def test_images_are_defended_as_on_the_processor(case, defence):
    model, x, _ = case
    on_cpu = defence.wrap(load("synth-mobile").eval(), seed=5)
    with torch.no_grad(), float32_math(model.device, tf32=False):
        torch.testing.assert_close(defence.wrap(model, seed=5)(x.cuda()).cpu(), on_cpu(x), rtol=0, atol=2e-4)
