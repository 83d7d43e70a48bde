"""What only a GPU can show: streams, graph capture, a second device."""

import pytest
import torch

from fastadv import ops
from fastadv.testing.cases import StepCase
from fastadv.testing.tolerances import assert_same_bits

pytestmark = pytest.mark.gpu

CASE = StepCase(shape=(4, 3, 112, 112), special=True, each=True, active="some")


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    return request.param


def step(i, backend, scratch=None):
    options = {"alpha": i.alpha, "eps": i.eps, "active": i.active, "stats": i.stats, "backend": backend}
    ops.sign_step_(i.x, i.grad, i.origin, **options)
    for norm, kind in (("l1", "sign"), ("l2", "l2")):
        ops.momentum_step_(
            *(i.x, i.grad, i.origin, i.velocity), mu=0.9, norm=norm, step=kind, workspace=scratch, **options
        )


def compare(actual, expected):
    for name in ("x", "velocity", "stats"):
        assert_same_bits(getattr(actual, name), getattr(expected, name), name)


def test_a_side_stream_orders_the_work(backend):
    expected, i = CASE.make(), CASE.make("cuda")
    grad, i.grad = i.grad, torch.zeros_like(i.grad)
    step(expected, "reference")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch on another stream would see the zeros
        i.grad.copy_(grad)
        step(i, backend)
    stream.synchronize()
    compare(i, expected)


def test_a_captured_step_replays(backend):
    expected, i = CASE.make(), CASE.make("cuda")
    start = i.clone()
    scratch = ops.momentum_workspace(i.x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(i, backend, scratch)  # Triton compiles on the first call
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(i, backend, scratch)
    for name in ("x", "velocity", "stats"):
        getattr(i, name).copy_(getattr(start, name))
    for _ in range(3):
        step(expected, "reference")
        graph.replay()
    torch.cuda.synchronize()
    compare(i, expected)


def test_runs_repeat_their_bits(backend):
    first, second = CASE.make("cuda"), CASE.make("cuda")
    step(first, backend)
    step(second, backend)
    compare(second, first)


def test_the_current_device_is_left_as_it_was(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    expected, i = CASE.make(), CASE.make("cuda:1")
    step(expected, "reference")
    with torch.cuda.device(0):
        step(i, backend)
        assert torch.cuda.current_device() == 0
    compare(i, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])
def test_large_images(layout, backend):
    case = StepCase(shape=(2, 3, 1200, 1000), layout=layout, special=True, grad_dtype=torch.bfloat16)
    expected, i = case.make(), case.make("cuda")
    step(expected, "reference")
    step(i, backend)
    compare(i, expected)


def test_more_elements_than_32_bits_count(backend):
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free device memory")
    size = 2**31 + 4096
    x = torch.zeros(2, size // 2 + 16, device="cuda")
    grad = torch.ones_like(x, dtype=torch.bfloat16)
    stats = torch.zeros(2, 2, dtype=torch.int64, device="cuda")
    ops.sign_step_(x, grad, torch.zeros_like(x), alpha=0.25, eps=0.5, stats=stats, backend=backend)
    assert bool((x[:, -4096:] == 0.25).all())
    assert bool((x == 0.25).all())
    assert stats.tolist() == [[0, 0], [0, 0]]


def test_a_read_argument_on_another_device_is_refused(backend):
    i = CASE.make("cuda")
    with pytest.raises(ValueError, match="grad is on cpu; expected cuda:0"):
        ops.sign_step_(i.x, i.grad.cpu(), i.origin, alpha=0.1, eps=0.1, backend=backend)
