"""Budgets: inside the ball, inside the pixel range, idempotent, and still so with 8 bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv.attacks import L2, Linf
from fastadv.attacks.budget import START_LAYER, Box
from fastadv.ops import philox
from fastadv.testing.tolerances import assert_same_bits

IDS = torch.tensor([3, 9, 2**40])


def images(seed: int, *, grid: bool) -> torch.Tensor:
    x = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(seed))
    return torch.round(x * 255) / 255 if grid else x


BUDGETS = st.one_of(st.floats(0.01, 1.0).map(Linf), st.floats(0.05, 5.0).map(L2), st.just(Box()))


@settings(max_examples=60, deadline=None)
@given(budget=BUDGETS, seed=st.integers(0, 10_000), reach=st.floats(0.0, 3.0))
def test_clip_is_inside_and_idempotent(budget, seed, reach):
    origin = images(seed, grid=False)
    x = origin + reach * (images(seed + 1, grid=False) * 2 - 1)
    once = budget.clip(x, origin)
    assert bool(budget.inside(once, origin).all())
    torch.testing.assert_close(budget.clip(once, origin), once, rtol=0, atol=2e-7)


@settings(max_examples=30, deadline=None)
@given(budget=BUDGETS, seed=st.integers(0, 10_000))
def test_a_point_inside_is_left_alone(budget, seed):
    origin = images(seed, grid=False)
    inner = origin + 0.001 * (images(seed + 1, grid=False) * 2 - 1)
    inner = inner.clamp(0, 1)
    torch.testing.assert_close(budget.clip(inner, origin), inner, rtol=0, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(budget=BUDGETS, seed=st.integers(0, 10_000))
def test_round8_is_on_the_grid_and_inside(budget, seed):
    origin = images(seed, grid=True)
    x = budget.random_start(origin, seed=seed, ids=IDS)
    q = budget.round8(x, origin)
    assert torch.equal(torch.round(q * 255) / 255, q)
    assert bool(budget.inside(q, origin).all())
    assert torch.equal(budget.round8(q, origin), q)


def test_round8_takes_the_nearest_level_where_it_may():
    origin = torch.full((1, 3, 1, 1), 100 / 255)
    x = torch.tensor([100.4, 100.6, 109.7]).view(1, 3, 1, 1) / 255
    assert torch.equal(torch.round(Linf(8 / 255).round8(x, origin) * 255).flatten(), torch.tensor([100.0, 101, 108]))
    assert torch.equal(torch.round(L2(1.0).round8(x, origin) * 255).flatten(), torch.tensor([100.0, 101, 110]))


@pytest.mark.parametrize("eps", [0.3, 2.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_round8_keeps_as_much_of_a_perturbation_as_the_ball_holds(eps, layout):
    """The nearest levels of points at the border are outside: by a third of the radius for the small one."""
    generator = torch.Generator().manual_seed(0)
    origin = torch.randint(20, 236, (3, 3, 64, 64), generator=generator) / 255
    x = L2(eps).clip(origin + torch.randn(origin.shape, generator=generator), origin)
    q = L2(eps).round8(x.to(memory_format=layout), origin)
    assert q.is_contiguous(memory_format=layout)
    length = (q - origin).flatten(1).norm(dim=1)
    assert bool((length <= eps * (1 + 2e-5)).all())
    assert bool((length >= eps * 0.998).all())
    alone = torch.cat([L2(eps).round8(x[k : k + 1], origin[k : k + 1]) for k in range(3)])
    assert torch.equal(q, alone)


def test_round8_without_a_level_inside_takes_the_origins_nearest():
    origin = torch.full((1, 3, 1, 1), 100.4 / 255)
    q = Linf(0.1 / 255).round8(origin, origin)
    assert torch.equal(torch.round(q * 255), torch.full_like(q, 100))
    assert not bool(Linf(0.1 / 255).inside(q, origin).any())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), reach=st.floats(0.0, 0.02), norm=st.sampled_from(["dense", "sign", "sparse"]))
def test_a_box_rounds_a_perturbation_to_one_that_is_as_long_along_itself(seed, reach, norm):
    """Also where every pixel changes by less than half a level, which the nearest levels would undo."""
    origin = images(seed, grid=True)
    noise = images(seed + 1, grid=False) * 2 - 1
    noise = {"dense": noise, "sign": noise.sign(), "sparse": noise * (noise.abs() > 0.8)}[norm]
    x = (origin + reach * noise).clamp(0, 1)
    q = Box().round8(x, origin)
    delta, rounded = (x - origin).flatten(1), (q - origin).flatten(1)
    snapped = delta.abs() * 255 < 1e-3  # float noise is no change
    needed = torch.where(snapped, 0.0, delta).square().sum(1)
    assert torch.equal(torch.round(q * 255) / 255, q)
    assert bool(((rounded * delta).sum(1) >= needed * (1 - 1e-4) - 1e-9).all())
    # never further than the next level, and never to the other side
    assert float((rounded - delta).abs().max()) < 1.001 / 255
    assert bool((rounded * delta >= -1e-9).all())


def test_a_box_takes_the_nearest_levels_where_they_are_long_enough():
    origin = torch.full((1, 3, 1, 2), 100 / 255)
    x = torch.tensor([100.2, 104.6, 95.4, 100.0, 110.7, 99.9]).view(1, 3, 1, 2) / 255
    q = torch.round(Box().round8(x, origin) * 255).flatten().tolist()
    assert q == [100, 105, 95, 100, 111, 100]


def test_a_box_leaves_what_did_not_move():
    origin = images(0, grid=True)
    assert torch.equal(Box().round8(origin + 1e-7, origin), origin)


def test_every_draw_of_a_random_start_is_another_point():
    origin = images(0, grid=True)
    for budget in (Linf(0.1), L2(0.7), Box()):
        first, again, second = (budget.random_start(origin, seed=5, ids=IDS, draw=d) for d in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        assert torch.equal(first, budget.random_start(origin, seed=5, ids=IDS))
        assert bool(budget.inside(second, origin).all())


@pytest.mark.parametrize("budget", [Linf(0.1), L2(0.7), Box()])
def test_random_start_depends_on_seed_and_id_only(budget):
    origin = images(0, grid=True)
    together = budget.random_start(origin, seed=5, ids=IDS)
    for i in range(3):
        alone = budget.random_start(origin[i : i + 1], seed=5, ids=IDS[i : i + 1])
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(budget.random_start(origin, seed=6, ids=IDS), together)


def test_linf_random_start_is_uniform_in_the_box():
    origin = torch.full((1, 3, 64, 64), 0.5)
    u = (Linf(0.2).random_start(origin, seed=1, ids=torch.tensor([7])) - 0.5) / 0.2
    # mean 0 and variance 1/3 of a uniform variable on [-1, 1], within 5 standard errors of 12,288 draws
    assert abs(float(u.mean())) < 5 * (1 / 3) ** 0.5 / 12288**0.5
    assert abs(float(u.var()) - 1 / 3) < 5 * (4 / 45) ** 0.5 / 12288**0.5


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("eps", [1e-9, 0.1 / 255, 8 / 255, 0.3, 1.0])
def test_linf_random_start_has_the_bits_of_its_formula(eps, device):
    origin = images(2, grid=True)
    origin[0, 0] = torch.tensor([0.0, 1.0, 1 / 255, 254 / 255])
    origin[1, 1, 2, 2] = float("nan")
    for order in (torch.contiguous_format, torch.channels_last):
        x = origin.contiguous(memory_format=order)
        u = philox.uniform(5, IDS, 3, START_LAYER, tuple(x.shape[1:]), backend="reference")
        made = Linf(eps).random_start(x.to(device), seed=5, ids=IDS.to(device), draw=3)
        assert made.stride() == x.stride()
        assert_same_bits(made, Linf(eps).clip(x + (2 * u - 1) * eps, x))


def test_a_random_start_carries_no_gradient():
    origin = images(3, grid=True)
    start = Linf(0.1).random_start(origin.clone().requires_grad_(True), seed=5, ids=IDS)
    assert not start.requires_grad
    assert_same_bits(start, Linf(0.1).random_start(origin, seed=5, ids=IDS))


def test_l2_random_start_fills_the_ball():
    origin = torch.full((2000, 3, 1, 1), 0.5)
    r = (L2(0.2).random_start(origin, seed=1, ids=torch.arange(2000)) - origin).flatten(1).norm(dim=1) / 0.2
    # in 3 dimensions the radius has the distribution function r^3, so the mean is 3/4
    assert abs(float(r.mean()) - 0.75) < 5 * 0.194 / 2000**0.5
    assert float(r.max()) <= 1 + 1e-5


@pytest.mark.parametrize("eps", [0, -1, float("nan"), float("inf"), "8/255"])
@pytest.mark.parametrize("kind", [Linf, L2])
def test_a_wrong_eps_is_refused(kind, eps):
    with pytest.raises(ValueError, match="eps: expected a positive number"):
        kind(eps)


def test_grey_levels_for_eps_are_recognised():
    with pytest.raises(ValueError, match=r"write 8/255"):
        Linf(8)


@pytest.mark.parametrize("make", [lambda **r: Linf(0.1, **r), lambda **r: L2(0.1, **r), Box])
def test_an_empty_pixel_range_is_refused(make):
    with pytest.raises(ValueError, match="lo < hi"):
        make(lo=1.0, hi=0.0)


def test_a_box_allows_a_change_of_the_whole_range():
    assert Box().eps == 1.0
    assert Box(lo=-1.0, hi=1.0).eps == 2.0
