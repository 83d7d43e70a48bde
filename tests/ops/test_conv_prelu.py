"""Small networks in one compiled call: float64's results, and bits that depend on nothing but the pixels seen."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastadv import _native, backends
from fastadv.ops.conv_prelu import ConvPrelu, ConvPreluNetwork

needs_native = pytest.mark.skipif(not _native.has("cpu_conv_prelu"), reason="needs the compiled module")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_native)]


def layer(taken, channels, side, *, pool=None, sloped=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, taken, side, side, generator=draw) / (taken * side * side) ** 0.5
    bias, slopes = torch.randn(2, channels, generator=draw)
    return ConvPrelu(weight=weight, bias=bias, slopes=slopes if sloped else None, pool=pool)


def images(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_float64(layers, x):
    x = x.double()
    for each in layers:
        x = F.conv2d(x, each.weight.double(), each.bias.double())
        x = x if each.slopes is None else F.prelu(x, each.slopes.double())
        x = x if each.pool is None else F.max_pool2d(x, each.pool, 2, ceil_mode=True)
    return x


# as R-Net of MTCNN: maxima, channels that fill no register, a narrow map, a map in one piece, and one pixel
R_NET = [
    layer(3, 28, 3, pool=3),
    layer(28, 48, 3, pool=3, seed=1),
    layer(48, 64, 2, seed=2),
    layer(64, 128, 3, seed=3),
    layer(128, 5, 1, sloped=False, seed=4),
]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 3),
    taken=st.sampled_from([1, 3, 10, 16]),
    channels=st.sampled_from([1, 5, 10, 16, 28, 48, 64, 80, 128]),
    side=st.integers(1, 4),
    more=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    pool=st.sampled_from([None, 2, 3]),
    sloped=st.booleans(),
    last=st.booleans(),
)
def test_a_layer_is_that_of_float64(count, taken, channels, side, more, pool, sloped, last):
    least = side if pool is None else side + 1
    x = images(count, taken, least + more[0], least + more[1])
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    layers = [layer(taken, channels, side, pool=pool, sloped=sloped)]
    expected = in_float64(layers, x) if count else None
    for backend in (None, "reference"):
        found = ConvPreluNetwork(layers)(x, backend=backend)
        assert found.shape == (count, channels, layers[0].side(x.shape[2]), layers[0].side(x.shape[3]))
        if count:
            torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 50, 131])
def test_a_network_is_that_of_float64(count, backend):
    x = images(count, 3, 24, 24)
    found = ConvPreluNetwork(R_NET)(x, backend=backend)
    torch.testing.assert_close(found.double(), in_float64(R_NET, x), atol=2e-5, rtol=0)


@needs_native
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(monkeypatch):
    network, other = ConvPreluNetwork(R_NET), ConvPreluNetwork([layer(3, 10, 3, pool=2), layer(10, 16, 3)])
    windows, picture = images(50, 3, 24, 24), images(1, 3, 150, 61)
    usual = network(windows), other(picture)
    for isa in range(backends.cpu_isa() + 1):
        for threads in (1, 3):
            monkeypatch.setattr(backends, "on_cpu", lambda given=(threads, isa): given)
            assert torch.equal(network(windows, backend="cpu"), usual[0])
            assert torch.equal(other(picture, backend="cpu"), usual[1])


@needs_native
def test_what_is_beside_an_output_changes_no_bit():
    network, x = ConvPreluNetwork(R_NET), images(70, 3, 24, 24)
    whole = network(x)
    for part in (slice(0, 1), slice(3, 52), slice(69, 70)):
        assert torch.equal(network(x[part]), whole[part])
    # without maxima a part of a map is a part of the result
    layers, picture = ConvPreluNetwork([layer(3, 16, 3), layer(16, 32, 2, seed=1)]), images(1, 3, 40, 53)
    made = layers(picture)
    assert torch.equal(layers(picture[..., 5:21, 7:11]), made[..., 5:18, 7:8])
    assert torch.equal(layers(picture[..., 11:]), made[..., 11:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_where_it_is_seen(backend):
    x = images(1, 3, 12, 12)
    x[0, 1, 4, 5] = torch.nan
    layers = [layer(3, 20, 3, pool=3)]
    found = ConvPreluNetwork(layers)(x, backend=backend)
    assert torch.equal(found.isnan(), in_float64(layers, x).isnan())
    assert found.isnan().any()
    assert not found.isnan().all()


@needs_native
def test_the_modes_of_the_caller_do_not_matter():
    network, x = ConvPreluNetwork(R_NET), images(2, 3, 24, 24)
    expected, before = network(x), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            assert torch.equal(network(x), expected)
            assert torch.equal(ConvPreluNetwork(R_NET)(x), expected)
    finally:
        torch.set_default_dtype(before)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), expected)


@needs_native
def test_the_weights_are_those_of_its_making():
    one = layer(3, 4, 1)
    network, x = ConvPreluNetwork([one]), images(1, 3, 2, 2)
    expected = network(x)
    one.weight.zero_()
    assert torch.equal(network(x), expected)


def test_without_compiled_code_the_reference_computes(monkeypatch):
    monkeypatch.setattr(_native, "has", lambda symbol: False)
    network, x = ConvPreluNetwork(R_NET), images(2, 3, 24, 24)
    assert not network.compiled
    assert torch.equal(network(x), network(x, backend="reference"))
    with pytest.raises(backends.BackendUnavailable, match="expected one that can run ConvPreluNetwork here"):
        network(x, backend="cpu")


ONE = layer(3, 4, 2)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"weight": ONE.weight.double()}, "weight: expected a tensor of torch.float32, got torch.float64"),
        ({"weight": ONE.weight[..., :1]}, r"weight: expected shape \(K, C, S, S\), 1 to 4096 each, got \(4, 3, 2, 1\)"),
        ({"weight": ONE.weight[:0]}, r"weight: expected shape \(K, C, S, S\), 1 to 4096 each, got \(0, 3, 2, 2\)"),
        ({"weight": ONE.weight[0]}, r"weight: expected shape \(K, C, S, S\), 1 to 4096 each, got \(3, 2, 2\)"),
        ({"weight": torch.zeros(1, 4097, 1, 1)}, "weight: expected shape"),
        ({"bias": None}, "bias: expected a tensor of torch.float32, got NoneType"),
        ({"bias": torch.zeros(3)}, r"bias: expected one for each of 4 channels, got \(3,\)"),
        ({"slopes": torch.zeros(1)}, r"slopes: expected one for each of 4 channels, got \(1,\)"),
        ({"slopes": torch.zeros(4, device="meta")}, "slopes: expected cpu, the device of weight, got meta"),
        ({"pool": 4}, "pool: expected 2, 3 or None, got 4"),
    ],
)
def test_what_is_no_layer_is_refused(fields, text):
    with pytest.raises((ValueError, TypeError), match=text):
        replace(ONE, **fields)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([], "layers: expected at least one, got none"),
        ([ONE, "a"], r"layers\[1\]: expected a ConvPrelu, got 'a'"),
        ([ONE, ONE], r"layers\[1\]: expected weights of 4 channels, which the layer before gives, got 3"),
    ],
)
def test_what_is_no_network_is_refused(layers, text):
    with pytest.raises((ValueError, TypeError), match=text):
        ConvPreluNetwork(layers)


X = torch.zeros(1, 3, 24, 24)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("x", "text"),
    [
        (X.double(), "x: expected a tensor of torch.float32, got torch.float64"),
        (X[0], r"x: expected shape \(N, 3, H, W\), got \(3, 24, 24\)"),
        (X[:, :2], r"x: expected shape \(N, 3, H, W\), got \(1, 2, 24, 24\)"),
        (X[..., :17], r"x: expected sides that all layers fit into, got shape \(1, 3, 24, 17\)"),
        (X[..., :0], "x: expected sides that all layers fit into"),
        (X.to("meta"), "x: expected cpu, the device of the layers, got meta"),
        (X.clone().requires_grad_(), "ConvPreluNetwork reads x, which requires grad"),
    ],
)
def test_what_it_cannot_see_is_refused(x, text, backend):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=text):
        ConvPreluNetwork(R_NET)(x, backend=backend)


def test_another_backend_is_refused():
    with pytest.raises(ValueError, match="backend: expected 'reference', 'cpu' or None, got 'triton'"):
        ConvPreluNetwork(R_NET)(X, backend="triton")


@pytest.mark.gpu
def test_on_a_device_it_is_that_of_float64():
    x = images(9, 3, 24, 24)
    layers = [
        replace(each, **{k: v.cuda() for k, v in vars(each).items() if isinstance(v, torch.Tensor)}) for each in R_NET
    ]
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = ConvPreluNetwork(layers)(x.cuda())
    torch.testing.assert_close(found.cpu().double(), in_float64(R_NET, x), atol=2e-5, rtol=0)
