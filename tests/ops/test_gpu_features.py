"""What only a GPU can show of the feature and noise operations: streams, graphs with new ticks, a second device."""

import pytest
import torch

from fastadv import ops
from fastadv.testing.cases import arrange
from fastadv.testing.feature_cases import FeatureCase
from fastadv.testing.tolerances import assert_same_bits

pytestmark = pytest.mark.gpu
CASE = FeatureCase(shape=(4, 64, 28, 28), layout="channels_last")


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    return request.param


def everything(x, image, key, parameters, backend):
    """All four operations, with a mask and without, forward and backward; the results in order."""
    x = x.detach().requires_grad_(True)
    y = ops.feature_dropout(x, rate=0.3, rescale=True, backend=backend, **key)
    z = ops.feature_dropout_bn_prelu(y, rate=0.3, backend=backend, **key, **parameters)
    z = ops.feature_dropout_bn_prelu(z, backend=backend, **{**parameters, "shift": z.detach()[0]})
    blurred = ops.box_blur(z, backend=backend)
    (grad,) = torch.autograd.grad((blurred * blurred.detach()).sum(), x)
    ops.add_noise_(image, scale=0.1, backend=backend, **key)
    return y.detach(), z.detach(), blurred.detach(), grad, image


def compare(made, expected):
    for a, b in zip(made, expected, strict=True):
        assert_same_bits(a, b)


def inputs(device, case=CASE):
    return case.make(device), torch.rand(case.shape, generator=torch.Generator().manual_seed(0)).to(device)


def expected_at(tick, case=CASE):
    x, image = inputs("cpu", case)
    return everything(x, image, {**case.key(), "tick": tick}, case.parameters(), "cpu")


def test_a_side_stream_orders_the_work(backend):
    expected = expected_at(5)
    value, image = inputs("cuda")
    x = torch.zeros_like(value)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch on another stream would see the zeros
        x.copy_(value)
        made = everything(x, image, {**CASE.key("cuda"), "tick": 5}, CASE.parameters("cuda"), backend)
    stream.synchronize()
    compare(made, expected)


def test_a_captured_tick_replays_with_new_ticks(backend):
    x, image = inputs("cuda")
    start = image.clone()
    tick = torch.zeros(4, dtype=torch.int64, device="cuda")
    key = {**CASE.key("cuda"), "seed": torch.tensor(2**63 + 11 - 2**64, device="cuda"), "tick": tick}
    parameters = CASE.parameters("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        everything(x, image, key, parameters, backend)  # Triton compiles on the first call
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = everything(x, image, key, parameters, backend)
    for moment in (3, 4, 2**20 - 1):
        image.copy_(start)
        tick.copy_(torch.tensor([moment, 3, moment, 0]))
        graph.replay()
        torch.cuda.synchronize()
        compare(made, expected_at(torch.tensor([moment, 3, moment, 0])))


def test_the_current_device_is_left_as_it_was(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    there = "cuda:1"
    x, image = inputs(there)
    with torch.cuda.device(0):
        made = everything(x, image, {**CASE.key(there), "tick": 5}, CASE.parameters(there), backend)
        assert torch.cuda.current_device() == 0
    compare(made, expected_at(5))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])
@pytest.mark.parametrize("shape", [(2, 96, 113, 111), (2, 64, 112, 112)])
def test_large_maps(shape, layout, backend):
    case = FeatureCase(shape=shape, layout=layout)
    x, image = inputs("cuda", case)
    made = everything(x, arrange(image, layout, "cuda"), case.key("cuda"), case.parameters("cuda"), backend)
    compare(made, expected_at(5, case))


def test_more_elements_than_32_bits_count(backend):
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free device memory")
    x = torch.ones(3, 2**30, dtype=torch.bfloat16, device="cuda")
    key = {"seed": 1, "ids": torch.tensor([1, 2, 1], device="cuda"), "tick": 0, "layer": 0}
    made = ops.feature_dropout(x, rate=0.5, backend=backend, **key)
    assert torch.equal(made[0], made[2])
    tail = ops.feature_dropout(torch.ones(3, 4096, dtype=torch.bfloat16), rate=0.5, **{**key, "ids": key["ids"].cpu()})
    assert_same_bits(made[:, :4096], tail)
    assert 0.49 < float(made[1, -(2**20) :].float().mean()) < 0.51


def test_keys_on_another_device_are_refused(backend):
    x = CASE.make("cuda")
    with pytest.raises(ValueError, match="ids has shape .* on cpu; expected .* on cuda:0"):
        ops.feature_dropout(x, rate=0.5, backend=backend, **CASE.key())
