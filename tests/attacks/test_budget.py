"""Budgets: inside the ball, inside the pixel range, idempotent, and still so with 8 bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv.attacks import L2, Linf

IDS = torch.tensor([3, 9, 2**40])


def images(seed: int, *, grid: bool) -> torch.Tensor:
    x = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(seed))
    return torch.round(x * 255) / 255 if grid else x


BUDGETS = st.one_of(st.floats(0.01, 1.0).map(Linf), st.floats(0.05, 5.0).map(L2))


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


def test_round8_without_a_level_inside_takes_the_origins_nearest():
    origin = torch.full((1, 3, 1, 1), 100.4 / 255)
    q = Linf(0.1 / 255).round8(origin, origin)
    assert torch.equal(torch.round(q * 255), torch.full_like(q, 100))
    assert not bool(Linf(0.1 / 255).inside(q, origin).any())


@pytest.mark.parametrize("budget", [Linf(0.1), L2(0.7)])
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


def test_l2_random_start_fills_the_ball():
    origin = torch.full((2000, 3, 1, 1), 0.5)
    r = (L2(0.2).random_start(origin, seed=1, ids=torch.arange(2000)) - origin).flatten(1).norm(dim=1) / 0.2
    # in 3 dimensions the radius has the distribution function r^3, so the mean is 3/4
    assert abs(float(r.mean()) - 0.75) < 5 * 0.194 / 2000**0.5
    assert float(r.max()) <= 1 + 1e-5


@pytest.mark.parametrize("eps", [0, -1, float("nan"), float("inf"), "8/255"])
@pytest.mark.parametrize("kind", [Linf, L2])
def test_a_wrong_eps_is_refused(kind, eps):
    with pytest.raises(ValueError, match="eps must be a positive number"):
        kind(eps)


def test_grey_levels_for_eps_are_recognised():
    with pytest.raises(ValueError, match=r"write 8/255"):
        Linf(8)


@pytest.mark.parametrize("kind", [Linf, L2])
def test_an_empty_pixel_range_is_refused(kind):
    with pytest.raises(ValueError, match="lo < hi"):
        kind(0.1, lo=1.0, hi=0.0)
