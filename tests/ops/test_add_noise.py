"""Clipped noise: the numbers of Philox, in place, the same on every backend."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv import backends, ops
from fastadv.ops import philox
from fastadv.testing.cases import arrange
from fastadv.testing.feature_cases import NOISE_CASES, FeatureCase
from fastadv.testing.tolerances import assert_same_bits

KEY = {"seed": 7, "ids": torch.tensor([3, 2**40 + 1, 3]), "tick": 4, "layer": 2}
LAYOUTS = ["contiguous", "channels_last", "columns", "offset"]
GAUSSIAN = 2e-6  # between the reference and the compiled backends, times the scale, as documented
WIDE = {"lo": -100.0, "hi": 100.0}


def noise(shape, kind, **key):
    """Scaled by 1, from the public generator."""
    if kind == "uniform":
        return 2 * philox.uniform(key["seed"], key["ids"], key["tick"], key["layer"], tuple(shape[1:])) - 1
    return philox.normal(key["seed"], key["ids"], key["tick"], key["layer"], tuple(shape[1:]))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("case", NOISE_CASES, ids=lambda case: case.name)
def test_every_backend(case, kind, each, target):
    images = {"reference": (case.make(), "cpu"), "cpu": (case.make(), "cpu")}
    images["made"] = (case.make(target.device), target.device)
    for name, (x, device) in images.items():
        scale = torch.linspace(0.1, 2.0, case.shape[0], device=device) if each else 0.3
        origin = torch.zeros_like(x) if each else None
        backend = target.backend if name == "made" else name
        options = {"scale": scale, "kind": kind, "origin": origin, "lo": -1.5, "hi": 1.5, "backend": backend}
        assert ops.add_noise_(x, **options, **case.key(device)) is x
    made = images["made"][0]
    if kind == "uniform" or target.backend == "reference":
        assert_same_bits(made, images["reference"][0])
        return
    assert_same_bits(made, images["cpu"][0])
    torch.testing.assert_close(made.cpu(), images["reference"][0], rtol=0, atol=2 * GAUSSIAN, equal_nan=True)


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_numbers_belong_to_the_logical_element(layout, kind, backend):
    x = arrange(torch.rand(3, 5, 7, 6), layout)
    expected = x + 0.25 * noise(x.shape, kind, **KEY)
    ops.add_noise_(x, scale=0.25, kind=kind, backend=backend, **WIDE, **KEY)
    torch.testing.assert_close(x, expected, rtol=0, atol=GAUSSIAN if kind == "gaussian" else 0)
    assert x.stride() == arrange(x, layout).stride()


def test_half_and_half_of_the_noise_is_the_uniform_number_itself(backend):
    # philox.uniform on a GPU is this
    x = torch.full((3, 7_001), 0.5)
    ops.add_noise_(x, scale=0.5, backend=backend, **KEY)
    assert_same_bits(x, philox.uniform(KEY["seed"], KEY["ids"], KEY["tick"], KEY["layer"], (7_001,)))


def test_images_with_one_id_get_the_same_noise(backend):
    x = torch.zeros(3, 3, 4, 4)
    ops.add_noise_(x, scale=1.0, kind="gaussian", backend=backend, **WIDE, **KEY)
    assert_same_bits(x[0], x[2])
    assert not torch.equal(x[0], x[1])


def test_the_origin_is_left_alone(backend):
    origin = torch.rand(3, 4, 5, 6)
    before = origin.clone()
    x, y = torch.full_like(origin, float("nan")), origin.clone()
    ops.add_noise_(x, scale=0.5, origin=arrange(origin, "channels_last"), backend=backend, **KEY)
    ops.add_noise_(y, scale=0.5, backend=backend, **KEY)
    assert_same_bits(x, y)
    assert_same_bits(origin, before)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["uniform", "gaussian"]),
    st.floats(0, 10),
    st.integers(0, 2**64 - 1),
)
def test_images_stay_in_the_range(shape, layout, kind, scale, seed):
    key = {"seed": seed, "ids": torch.arange(shape[0]), "tick": 1, "layer": 0}
    x = arrange(torch.rand(shape), layout)
    start = x.clone()
    ops.add_noise_(x, scale=scale, kind=kind, backend="cpu", **key)
    assert bool(((x >= 0) & (x <= 1)).all())
    if kind == "uniform":
        assert bool(((x - start).abs() <= torch.tensor(scale, dtype=torch.float32) + 2.0**-24).all())
        other = start.clone()
        assert_same_bits(x, ops.add_noise_(other, scale=scale, backend="reference", **key))


def test_moments_of_the_compiled_gaussian():
    x = torch.zeros(16, 3, 64, 64)
    ops.add_noise_(x, scale=1.0, kind="gaussian", seed=1, ids=torch.arange(16), **WIDE)
    wide = x.double().flatten()
    deviation = 5 / math.sqrt(x.numel())
    assert abs(float(wide.mean())) < deviation
    assert abs(float(wide.var()) - 1) < 2 * deviation
    assert abs(float((wide**4).mean()) - 3) < 10 * deviation


def test_the_gaussian_is_accurate_in_every_binade_and_quadrant():
    # A million pairs: |compiled - float64| in units of the largest deviate of 24 bits.
    x = torch.zeros(64, 32768)
    ids = torch.arange(64)
    ops.add_noise_(x, scale=1.0, kind="gaussian", seed=2, ids=ids, **WIDE)
    expected = philox.normal(2, ids, 0, 0, (32768,))
    assert float((x - expected).abs().max()) <= GAUSSIAN
    assert float((x - expected).abs().mean()) < 5e-8


def test_a_nan_stays_one(backend):
    x = torch.tensor([[0.5, float("nan"), 0.5]])
    ops.add_noise_(x, scale=0.1, seed=0, ids=torch.tensor([1]), backend=backend)
    assert x.isnan().tolist() == [[False, True, False]]


def test_held_seed_and_ticks(backend):
    ticks = torch.tensor([1, 2, 3])
    x = torch.zeros(3, 9)
    ops.add_noise_(x, scale=1.0, backend=backend, **WIDE, **{**KEY, "seed": torch.tensor(7), "tick": ticks})
    for i in range(3):
        alone = torch.zeros(1, 9)
        key = {**KEY, "ids": KEY["ids"][i : i + 1], "tick": i + 1}
        assert_same_bits(x[i : i + 1], ops.add_noise_(alone, scale=1.0, backend=backend, **WIDE, **key))


def test_what_it_owes_to_pytorch(backend):
    x = FeatureCase(shape=(3, 4, 5, 6)).make()
    version = x._version
    ops.add_noise_(x, scale=0.1, backend=backend, **KEY)
    assert x._version > version
    x.requires_grad_(True)
    with pytest.raises(RuntimeError, match="add_noise_ writes into x, which requires grad"):
        ops.add_noise_(x, scale=0.1, backend=backend, **KEY)
    with torch.inference_mode():
        ops.add_noise_(torch.zeros(3, 4), scale=0.1, backend=backend, **KEY)


def test_opcheck_and_fullgraph(backend):
    x = FeatureCase(shape=(3, 4, 5, 6)).make()
    op = torch.ops.fastadv.add_noise_.default
    key = (KEY["ids"], None, 7, None, 4, 2)
    for origin, each in ((None, None), (x.clone(), torch.rand(3))):
        torch.library.opcheck(op, (x, origin, each, 0.5, 0.0, 1.0, "uniform", *key, backend))
    torch.compiler.reset()

    def f(value):
        return ops.add_noise_(value * 2, scale=0.1, kind="gaussian", backend=backend, **KEY) + 1

    assert_same_bits(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


def test_numpy_arrays():
    x, scale = np.zeros((3, 4, 5), np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    assert ops.add_noise_(x, scale=scale, **{**KEY, "ids": KEY["ids"].numpy()}) is x
    expected = torch.zeros(3, 4, 5)
    assert_same_bits(torch.from_numpy(x), ops.add_noise_(expected, scale=torch.from_numpy(scale), **KEY))


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


MISTAKES = [
    ({"x": [0.0]}, TypeError, "x: expected a torch.Tensor or a NumPy or CuPy array, got list"),
    ({"x": zeros(3, 4).half()}, TypeError, "x: expected dtype torch.float32, got torch.float16"),
    ({"x": zeros(3)}, ValueError, r"x: expected a batch \(N, C, H, W\), got shape \(3,\)"),
    (
        {"x": zeros(3, 8)[:, ::2]},
        ValueError,
        r"x: expected a dense batch, one image after the other \(contiguous or channels-last\), sinc",
    ),
    ({"x": zeros(1, 4).expand(3, 4)}, ValueError, "expected a dense batch"),
    ({"scale": float("nan")}, ValueError, r"scale: expected a finite number, or a float32 tensor \(N,\), got nan"),
    ({"scale": zeros(4)}, ValueError, r"scale: expected shape \(3,\), got \(4,\)"),
    ({"scale": zeros(3).double()}, TypeError, "scale: expected .*, got torch.float64"),
    ({"origin": zeros(3, 5)}, ValueError, r"origin: expected shape \(3, 4\), the shape of x, got \(3, 5\)"),
    ({"origin": zeros(3, 4).half()}, TypeError, "origin: expected .*, got torch.float16"),
    ({"kind": "normal"}, ValueError, "kind: expected 'uniform' or 'gaussian', got 'normal'"),
    ({"lo": 1.0, "hi": 0.0}, ValueError, r"lo, hi: expected lo <= hi, got 1\.0 and 0\.0"),
    ({"ids": torch.arange(4)}, ValueError, r"ids: expected .*, got \(4,\)"),
    ({"tick": -1}, ValueError, "tick: expected .*, got -1"),
    (
        {"backend": "cuda"},
        backends.BackendUnavailable,
        "backend: expected one that can run add_noise_ on cpu, got 'cuda'",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change, error, message):
    with pytest.raises(error, match=message):
        ops.add_noise_(**{"x": zeros(3, 4), "scale": 0.1, **KEY, **change})


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_x_and_origin_must_be_separate(backend):
    x = zeros(3, 4)
    with pytest.raises(ValueError, match="x, origin: expected separate tensors, got shared memory"):
        ops.add_noise_(x, scale=0.1, origin=x, backend=backend, **KEY)
