"""What the step operations mean: closed forms, a float64 oracle, and what they owe to PyTorch."""

import os
import threading

import pytest
import torch

from fastadv import backends, ops
from fastadv.testing.cases import SPECIALS, StepCase
from fastadv.testing.tolerances import RELATIVE, assert_same_bits

BACKENDS = ["reference", "cpu", "triton"] if backends.interpreted() else ["reference", "cpu"]
CASE = StepCase(shape=(3, 3, 6, 7))
MOMENTUM = [("l1", "sign"), ("l2", "sign"), ("l1", "l2"), ("l2", "l2")]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def momentum(i, **options):
    options = {"alpha": i.alpha, "eps": i.eps, "mu": 0.9, **options}
    return ops.momentum_step_(i.x, i.grad, i.origin, i.velocity, **options)


def test_sign_step_by_hand(backend):
    x = torch.tensor([[0.5, 0.5, 0.5, 0.02, 0.99, 0.5, 0.5]])
    grad = torch.tensor([[2.0, -3.0, 0.0, -1.0, 1.0, float("nan"), float("inf")]])
    stats = torch.tensor([[10, 20]])
    origin = x.clone()
    ops.sign_step_(x, grad, origin, alpha=0.25, eps=0.125, stats=stats, backend=backend)
    assert x[0, :3].tolist() == [0.625, 0.375, 0.5]
    assert x[0, 3:5].tolist() == [0.0, 1.0]
    assert x[0, 5:].tolist() == [0.5, 0.5]
    assert stats.tolist() == [[12, 21]]


def test_a_range_that_is_not_zero_to_one(backend):
    x = torch.tensor([[-1.0, 3.0]])
    ops.sign_step_(x, torch.tensor([[-1.0, 1.0]]), x.clone(), alpha=9, eps=9, lo=-1.5, hi=4, backend=backend)
    assert x.tolist() == [[-1.5, 4.0]]


def test_a_nan_pixel_stays_nan(backend):
    x = torch.tensor([[float("nan"), 0.5]])
    ops.sign_step_(x, torch.ones(1, 2), torch.full((1, 2), 0.5), alpha=0.1, eps=0.1, backend=backend)
    assert x.isnan().tolist() == [[True, False]]


def test_scalars_and_one_number_per_image_agree(backend):
    for run in (ops.sign_step_, None):
        one, each = CASE.make(), CASE.make()
        each.alpha, each.eps = torch.full((3,), one.alpha), torch.full((3,), one.eps)
        for i in (one, each):
            if run:
                run(i.x, i.grad, i.origin, alpha=i.alpha, eps=i.eps, backend=backend)
            else:
                momentum(i, step="l2", backend=backend)
        assert_same_bits(each.x, one.x)


@pytest.mark.parametrize(("norm", "step"), MOMENTUM)
def test_momentum_step_against_float64(norm, step, backend):
    i = CASE.make()
    x, g, x0, v = (t.double().flatten(1) for t in (i.x, i.grad, i.origin, i.velocity))
    alpha, eps, mu = 0.3, 0.2, 0.9
    v = mu * v + g / g.norm(p=int(norm[1]), dim=1, keepdim=True)
    if step == "sign":
        x = torch.minimum(torch.maximum(x + alpha * v.sign(), x0 - eps), x0 + eps).clamp(0, 1)
    else:
        x = x + alpha * v / v.norm(dim=1, keepdim=True)
        away = x - x0
        x = (x0 + away * (eps / away.norm(dim=1, keepdim=True)).clamp(max=1)).clamp(0, 1)
    momentum(i, alpha=alpha, eps=eps, norm=norm, step=step, backend=backend)
    tolerance = {"rtol": 8 * RELATIVE[torch.float32], "atol": 8 * RELATIVE[torch.float32]}
    torch.testing.assert_close(i.velocity.flatten(1).double(), v, **tolerance)
    torch.testing.assert_close(i.x.flatten(1).double(), x, **tolerance)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_norm_survives_huge_and_tiny_gradients(norm, backend):
    # In float32 the squares would overflow or vanish.
    for scale in (1e-30, 1e30):
        grad = torch.full((1, 64), scale)
        i = StepCase(shape=(1, 64)).make()
        velocity = torch.zeros_like(grad)
        ops.momentum_step_(i.x, grad, i.origin, velocity, alpha=0, eps=1, mu=0, norm=norm, backend=backend)
        expected = 1 / 64 if norm == "l1" else 1 / 8
        assert torch.allclose(velocity, torch.full_like(grad, expected), rtol=1e-6)


@pytest.mark.parametrize(("norm", "step"), MOMENTUM)
def test_a_zero_gradient_only_decays_the_velocity(norm, step, backend):
    i = CASE.make()
    expected = torch.tensor(0.9) * i.velocity
    i.grad.zero_()
    stats = torch.zeros(3, 2, dtype=torch.int64)
    momentum(i, norm=norm, step=step, stats=stats, backend=backend)
    assert_same_bits(i.velocity, expected)
    assert stats.tolist() == [[0, 126]] * 3


@pytest.mark.parametrize("step", ["sign", "l2"])
def test_without_any_direction_nothing_moves(step, backend):
    i = CASE.make()
    i.grad.zero_()
    i.velocity.zero_()
    before = i.x.clone()
    momentum(i, eps=9.0, step=step, backend=backend)
    assert_same_bits(i.x, before)
    assert not i.velocity.any()


@pytest.mark.parametrize("step", ["sign", "l2"])
def test_a_non_finite_element_adds_nothing_and_its_pixel_stays(step, backend):
    with_odd, without = CASE.make(), CASE.make()
    places = torch.arange(9) * 11
    odd = torch.tensor(SPECIALS[:3])
    with_odd.grad.view(3, -1)[:, places[:3]] = odd
    without.grad.view(3, -1)[:, places[:3]] = 0.0
    before = with_odd.x.clone()
    for i in (with_odd, without):
        momentum(i, eps=9.0, step=step, backend=backend)
    assert_same_bits(with_odd.velocity, without.velocity)
    assert_same_bits(with_odd.x.view(3, -1)[:, places[:3]], before.view(3, -1)[:, places[:3]])


def test_an_infinite_radius_leaves_the_box(backend):
    x = torch.rand(2, 8)
    origin = torch.zeros(2, 8)
    infinite = torch.full((2,), float("inf"))
    ops.sign_step_(x, torch.ones(2, 8), origin, alpha=5.0, eps=infinite, backend=backend)
    assert bool((x == 1).all())


def test_written_tensors_get_a_new_version(backend):
    i = CASE.make()
    versions = [t._version for t in (i.x, i.velocity, i.stats, i.grad)]
    momentum(i, stats=i.stats, backend=backend)
    ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1, stats=i.stats, backend=backend)
    after = [t._version for t in (i.x, i.velocity, i.stats, i.grad)]
    assert all(a > b for a, b in zip(after[:3], versions[:3], strict=True))
    assert after[3] == versions[3]


def test_backward_notices_a_write_to_a_saved_tensor(backend):
    i = CASE.make()
    weight = torch.ones_like(i.x, requires_grad=True)
    loss = (weight * i.x).sum()
    ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors(backend):
    with torch.inference_mode():
        i = CASE.make()
        momentum(i, backend=backend)
        ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1, backend=backend)


def test_a_tensor_that_requires_grad_is_refused(backend):
    i = CASE.make()
    i.x.requires_grad_(True)
    with pytest.raises(RuntimeError, match="sign_step_ writes into x, which requires grad"):
        ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1, backend=backend)
    with torch.no_grad():
        ops.sign_step_(i.x, i.grad, i.origin, alpha=0.1, eps=0.1, backend=backend)
    i = CASE.make()
    i.velocity.requires_grad_(True)
    with pytest.raises(RuntimeError, match="momentum_step_ writes into velocity, which requires grad"):
        momentum(i, backend=backend)


def test_opcheck(backend):
    i = StepCase(shape=(2, 3, 4, 5), active="some").make()
    scratch = ops.momentum_workspace(i.x).zero_()
    each = torch.rand(2)
    sign, step = torch.ops.fastadv.sign_step_.default, torch.ops.fastadv.momentum_step_.default
    both = [(None, 0.1, None, 0.2, i.active, i.stats), (each, 0.0, each, 0.0, None, None)]
    for alpha_each, alpha, eps_each, eps, active, stats in both:
        numbers = (alpha_each, alpha, eps_each, eps)
        torch.library.opcheck(sign, (i.x, i.grad, i.origin, *numbers, active, stats, 0.0, 1.0, backend))
        tensors = (i.x, i.grad, i.origin, i.velocity)
        torch.library.opcheck(step, (*tensors, *numbers, 0.9, "l1", "l2", active, stats, scratch, 0.0, 1.0, backend))


def test_compiled_without_a_graph_break(backend):
    def both(x, grad, origin, velocity, alpha):
        ops.sign_step_(x, grad * 2, origin, alpha=alpha, eps=0.1, backend=backend)
        return ops.momentum_step_(x, grad + 1, origin, velocity, alpha=alpha, eps=0.1, mu=1.0, backend=backend) * 2

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for alpha in (0.01, 0.02, 0.03):
        a, b = CASE.make(), CASE.make()
        made = compiled(a.x, a.grad, a.origin, a.velocity, alpha)
        assert_same_bits(made, both(b.x, b.grad, b.origin, b.velocity, alpha))
        assert_same_bits(a.x, b.x)
        assert_same_bits(a.velocity, b.velocity)


def test_calls_from_many_threads_at_once():
    # The pool serves one of them; the others run alone.
    case = StepCase(shape=(4, 3, 112, 112))
    expected = case.make()
    momentum(expected, step="l2", backend="cpu")
    inputs = [case.make() for _ in range(8)]
    workers = [threading.Thread(target=momentum, args=(i,), kwargs={"step": "l2"}) for i in inputs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in inputs:
        assert_same_bits(i.x, expected.x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_its_own_threads():
    case = StepCase(shape=(4, 3, 112, 112))
    expected = case.make()
    ops.sign_step_(expected.x, expected.grad, expected.origin, alpha=0.01, eps=0.1, backend="cpu")
    i = case.make()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        ops.sign_step_(i.x, i.grad, i.origin, alpha=0.01, eps=0.1, backend="cpu")
        same = bool((i.x.view(torch.int32).numpy() == expected.x.view(torch.int32).numpy()).all())
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_workspace_holds_what_every_backend_needs():
    for shape, chunks in (((2, 3, 112, 112), 19), ((4, 1), 1), ((1, 3, 1200, 1200), 256), ((0, 3, 4, 4), 1)):
        scratch = ops.momentum_workspace(torch.empty(shape))
        assert scratch.shape == (2, shape[0], chunks)
        assert scratch.dtype == torch.float64
