"""Norms of changes: an image inside its budget is never reported outside."""

import pytest
import torch

from fastadv.attacks import L2, Box, Linf
from fastadv.attacks.change import below_a_level, level_note, norms


@pytest.mark.parametrize("levels", [1, 2, 4, 8, 10, 16, 51])
def test_the_largest_change_of_grey_levels_is_the_number_itself(levels):
    origin = torch.arange(256 - levels).float().view(1, 1, 1, -1) / 255
    rounded = (torch.arange(256 - levels).float() + levels).view(1, 1, 1, -1) / 255
    assert float((rounded - origin).abs().max()) != levels / 255  # float32 differences are off
    (linf,), (l2,) = norms(rounded, origin, Linf(levels / 255))
    assert linf == levels / 255
    assert l2 == pytest.approx(levels / 255 * (256 - levels) ** 0.5, rel=1e-6)
    assert norms(rounded, origin)[0].tolist() == [levels / 255]


def test_between_grey_levels_an_image_inside_is_at_most_at_the_radius():
    eps = 0.03
    origin = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    budget = Linf(eps)
    rounded = budget.round8((origin + eps).clamp(0, 1), origin)
    inside = budget.inside(rounded, origin)
    assert bool(inside.all())
    assert max(norms(rounded, origin, budget)[0]) <= eps
    far = budget.round8((origin + 0.2).clamp(0, 1), origin) + 0.1
    assert max(norms(far, origin, budget)[0]) > eps  # outside is not made to look inside
    ball = L2(0.5)
    rounded = ball.round8((origin + 0.3).clamp(0, 1), origin)
    assert max(norms(rounded, origin, ball)[1]) <= 0.5
    assert norms(rounded, origin, Box())[1].tolist() == pytest.approx(norms(rounded, origin)[1].tolist())


@pytest.mark.parametrize(
    ("budget", "below"),
    [
        (Linf(1e-5), True),
        (Linf(0.5 / 255), True),
        (Linf(0.99 / 255), True),
        (Linf(1 / 255), False),
        (Linf(8 / 255), False),
        (L2(0.003), True),
        (L2(0.5), False),
        (Box(), False),
    ],
)
def test_a_radius_below_one_grey_level_is_said(budget, below):
    assert below_a_level(budget) is below
    note = level_note(budget)
    assert (note is not None) is below
    assert note is None or "below one grey level" in note
