"""Invariants of the step operations over inputs that Hypothesis chooses."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv import ops
from fastadv.testing.cases import SPECIALS, StepCase
from fastadv.testing.tolerances import assert_same_bits

FAST = settings(max_examples=40, deadline=None)

cases = st.builds(
    StepCase,
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from(["contiguous", "channels_last", "columns", "offset"]),
    grad_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    special=st.booleans(),
    seed=st.integers(0, 2**20),
)
rates = st.floats(0, 2)
radii = st.floats(0, 1)
norms = st.sampled_from(["l1", "l2"])
steps = st.sampled_from(["sign", "l2"])


@FAST
@given(cases, rates, radii)
def test_a_sign_step_ends_in_the_ball_and_the_box(case, alpha, eps):
    i = case.make()
    i.x.copy_(i.origin)
    ops.sign_step_(i.x, i.grad, i.origin, alpha=alpha, eps=eps)
    assert bool((i.x >= 0).all())
    assert bool((i.x <= 1).all())
    # Rounded sums: the bounds are float32(origin -+ eps).
    radius = torch.tensor(eps, dtype=torch.float32)
    assert bool((i.x >= i.origin - radius).all())
    assert bool((i.x <= i.origin + radius).all())


@FAST
@given(cases, radii)
def test_a_step_of_zero_is_idempotent(case, eps):
    i = case.make()
    ops.sign_step_(i.x, i.grad, i.origin, alpha=0.0, eps=eps)
    once = i.x.clone()
    ops.sign_step_(i.x, i.grad, i.origin, alpha=0.0, eps=eps)
    assert_same_bits(i.x, once)


@FAST
@given(cases, rates, st.floats(0.001, 1), norms)
def test_an_l2_step_ends_in_the_ball_and_the_box(case, alpha, eps, norm):
    i = case.make()
    i.x.copy_(i.origin)
    ops.momentum_step_(i.x, i.grad, i.origin, i.velocity, alpha=alpha, eps=eps, mu=0.5, norm=norm, step="l2")
    assert bool((i.x >= 0).all())
    assert bool((i.x <= 1).all())
    distance = (i.x.double() - i.origin.double()).flatten(1).norm(dim=1)
    # Each pixel is rounded at the size of the pixel, not of the step.
    slack = 2.0**-23 * i.x[0].numel() ** 0.5
    assert bool((distance <= eps * (1 + 2.0**-21) + slack).all())


@FAST
@given(cases, rates, radii, norms, steps)
def test_inactive_images_are_untouched(case, alpha, eps, norm, step):
    i = case.make()
    active = torch.arange(case.shape[0]) % 2 == 1
    i.x[0, 0, 0, 0] = float("nan")
    before = i.clone()
    options = {"alpha": alpha, "eps": eps, "active": active, "stats": i.stats}
    ops.sign_step_(i.x, i.grad, i.origin, **options)
    ops.momentum_step_(i.x, i.grad, i.origin, i.velocity, mu=1.0, norm=norm, step=step, **options)
    for name in ("x", "velocity", "stats"):
        assert_same_bits(getattr(i, name)[~active], getattr(before, name)[~active], name)


@FAST
@given(cases)
def test_the_counts_are_exact(case):
    i = case.make()
    before = i.stats.clone()
    ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1, stats=i.stats)
    g = i.grad.flatten(1)
    expected = torch.stack([(~g.isfinite()).sum(1), (g == 0).sum(1)], 1)
    assert torch.equal(i.stats - before, expected)


@FAST
@given(cases, st.data())
def test_an_image_does_not_see_its_neighbours(case, data):
    i = case.make()
    slot = data.draw(st.integers(0, case.shape[0] - 1))
    alone = {k: getattr(i, k)[slot : slot + 1].clone() for k in ("x", "grad", "origin", "velocity")}
    ops.momentum_step_(i.x, i.grad, i.origin, i.velocity, alpha=0.1, eps=0.2, mu=0.5, step="l2")
    ops.momentum_step_(**alone, alpha=0.1, eps=0.2, mu=0.5, step="l2")
    assert_same_bits(i.x[slot : slot + 1], alone["x"])
    assert_same_bits(i.velocity[slot : slot + 1], alone["velocity"])


@FAST
@given(
    st.lists(st.sampled_from(SPECIALS), min_size=1, max_size=40),
    st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_half_precision_gradients_act_as_their_float32_values(values, dtype):
    grad = torch.tensor([values]).to(dtype)
    x = torch.linspace(0, 1, len(values))[None]
    wide, narrow = x.clone(), x.clone()
    ops.sign_step_(wide, grad.float(), x, alpha=0.1, eps=0.2)
    ops.sign_step_(narrow, grad, x, alpha=0.1, eps=0.2)
    assert_same_bits(narrow, wide)


def test_every_half_precision_value_converts_exactly():
    # velocity <- g / n with a norm of 1 shows the converted value itself: all 65,536 patterns of each type.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        grad = bits.view(dtype)[:, None].contiguous()
        grad = torch.cat([grad, torch.ones_like(grad)], 1)
        for backend in ("cpu", "reference"):
            x, velocity = torch.zeros(2**16, 2), torch.zeros(2**16, 2)
            ops.momentum_step_(x, grad, torch.zeros_like(x), velocity, alpha=0, eps=1, mu=0, norm="l1", backend=backend)
            if backend == "cpu":
                native = velocity
        assert_same_bits(native, velocity)
