"""Dropout, affine map and PReLU in one pass: the same bits everywhere, and the derivative of the parts."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastadv import backends, ops
from fastadv.ops.reference import feature_dropout_bn_prelu as reference
from fastadv.testing.cases import arrange
from fastadv.testing.feature_cases import FEATURE_CASES, FeatureCase
from fastadv.testing.tolerances import RELATIVE, assert_same_bits

# NumPy, in which Triton's interpreter computes, warns where a product overflows.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|underflow) encountered:RuntimeWarning")
KEY = {"seed": 7, "ids": torch.tensor([3, 2**40 + 1, 3]), "tick": 4, "layer": 2}
CASE = FeatureCase(shape=(3, 5, 6, 7))
INTERPRETED = SimpleNamespace(interpreted=True)
SLOPES = ["none", "zero", "number", "one", "each"]


def slope_of(kind, channels):
    return {"none": None, "zero": 0, "number": 0.25, "one": torch.tensor([0.25])}.get(
        kind, torch.linspace(-0.5, 1.5, channels)
    )


def both(x, grad, backend, **options):
    x = x.detach().requires_grad_(True)
    made = ops.feature_dropout_bn_prelu(x, backend=backend, **options)
    made.backward(grad)
    return made.detach(), x.grad


EACH_BACKEND = [
    {},
    {"ceiling": 0.7},
    {"slope": 0.1, "ceiling": 0.7, "keep": "result"},
    {"slope": 0.1, "ceiling": 0.7, "keep": "result", "rescale": False},
]


def activations_of(number, target):
    """Which a case is tried with: in Triton's interpreter, those slow there, that are not whole blocks, with half."""
    case = FEATURE_CASES[number]
    slow = target.interpreted and case.layout == "channels_last" and math.prod(case.shape[2:]) % 16
    return EACH_BACKEND[number // 2 % 2 :: 2] if slow else EACH_BACKEND


def test_half_of_the_activations_leaves_every_pair():
    found = {}
    for number, case in enumerate(FEATURE_CASES):
        if case.layout == "channels_last":
            tried = [EACH_BACKEND.index(activation) for activation in activations_of(number, INTERPRETED)]
            for kind in (case.dtype, f"special: {case.special}", f"held: {case.held}", f"blocks: {case.shape[1] > 64}"):
                found.setdefault(kind, set()).update(tried)
    assert len(found) == 9
    assert all(tried == {0, 1, 2, 3} for tried in found.values()), found


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("number", range(len(FEATURE_CASES)), ids=lambda number: FEATURE_CASES[number].name)
def test_every_backend_gives_the_bits_of_the_reference(number, target, sized):
    case = sized(FEATURE_CASES[number])
    grad = torch.randn(case.shape, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    there = target.device
    options = {"rate": 0.3, "rescale": True}
    for activation in activations_of(number, target):
        expected = both(case.make(), grad, "reference", **case.key(), **{**options, **case.parameters(), **activation})
        keys = {**case.key(there), **{**options, **case.parameters(there), **activation}}
        made = both(case.make(there), grad.to(there), target.backend, **keys)
        for a, b in zip(made, expected, strict=True):
            assert_same_bits(a, b)
            assert a.stride() == b.stride()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("rescale", [False, True])
def test_every_bfloat16_is_rounded_as_the_reference_rounds(rescale, target):
    if target.interpreted:
        pytest.skip("the interpreter of Triton reads subnormal numbers of bfloat16 as 0")
    # Scales that leave ties, halves above and below, overflow and subnormal numbers; the slope passes NaN on.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    channels = 70  # two registers, and what is left over, on every instruction set
    scales = torch.tensor([1 + 2**-8, 1 + 2**-7 + 2**-9, 1 / 3, -(2.0**-20), 3e38, 1 + 2**-8 + 2**-23, 1.0]).repeat(10)
    shifts = torch.tensor([0.0, -0.0, 1e-3, 2.0**-127, -1e38]).repeat(14)
    x = torch.stack([bits.roll(c) for c in range(channels)], 1)[None, :, None].permute(0, 3, 1, 2)  # channels-last
    grad = x.flip(3)
    key = {"seed": 1, "tick": 0, "layer": 0, "rate": 0.25, "rescale": rescale, "slope": 0.5}
    expected = both(x, grad, "reference", scale=scales, shift=shifts, ids=torch.tensor([5]), **key)
    there = {"scale": scales, "shift": shifts, "ids": torch.tensor([5])}
    there = {name: value.to(target.device) for name, value in there.items()}
    made = both(x.to(target.device), grad.to(target.device), target.backend, **there, **key)
    for a, b in zip(made, expected, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("kind", SLOPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_it_is_the_composition_of_its_parts(kind, layout, backend):
    x, parameters = arrange(CASE.make(), layout), CASE.parameters()
    slope = slope_of(kind, 5)
    options = {**parameters, "slope": slope, "rate": 0.4}
    grad = torch.randn(x.shape)
    made, made_grad = both(x, grad, backend, **options, **KEY)
    y = x.detach().requires_grad_(True)
    dropped = ops.feature_dropout(y, rate=0.4, backend="reference", **KEY)
    affine = dropped * parameters["scale"].view(1, -1, 1, 1) + parameters["shift"].view(1, -1, 1, 1)
    expected = affine if slope is None else F.prelu(affine, torch.as_tensor(slope).float().reshape(-1))
    expected.backward(grad)
    assert_same_bits(made + 0.0, expected.detach() + 0.0)
    torch.testing.assert_close(made_grad, y.grad, rtol=4 * RELATIVE[torch.float32], atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_float64(dtype, backend):
    x, parameters = CASE.make().to(dtype), CASE.parameters()
    grad = torch.randn(x.shape).to(dtype)
    made, made_grad = both(x, grad, backend, rate=0.4, **parameters, **KEY)
    wide = [parameters[name].double() for name in ("scale", "shift", "slope")]
    key = (KEY["ids"], KEY["seed"], KEY["tick"], KEY["layer"], round(0.4 * 2**16), 1.0, *wide, 0.0, None, False)
    expected = reference.feature_dropout_bn_prelu(x.double(), None, *key)
    expected_grad = reference.feature_dropout_bn_prelu(x.double(), grad.double(), *key)
    tolerance = {"rtol": 4 * RELATIVE[dtype], "atol": 4 * RELATIVE[dtype]}
    torch.testing.assert_close(made.double(), expected, **tolerance)
    torch.testing.assert_close(made_grad.double(), expected_grad, **tolerance)


def test_the_reference_has_the_derivative_it_says():
    x = CASE.make().double()[:2, :, :3, :3]
    wide = {name: value.double() for name, value in CASE.parameters().items()}
    wide["slope"] = wide["slope"].abs()
    key = (KEY["ids"][:2], 7, 4, 2, 2**15, 2.0, wide["scale"], wide["shift"], wide["slope"], 0.0)
    x.requires_grad_(True)
    for ceiling in (None, 0.7):
        y = reference.feature_dropout_bn_prelu(x, None, *key, ceiling, False)
        assert ceiling is None or 0 < int((y == ceiling).sum()) < y.numel()
        grad = torch.randn_like(y)
        (expected,) = torch.autograd.grad(y, x, grad)
        for seen, from_result in ((x, False), (y, True)):
            made = reference.feature_dropout_bn_prelu(seen.detach(), grad, *key, ceiling, from_result)
            torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slope", [0, 0.25])
def test_the_result_tells_the_derivative(slope, dtype, backend):
    x, p = CASE.make().to(dtype), CASE.parameters()
    options = {"rate": 0.4, "slope": slope, "scale": p["scale"], "shift": p["shift"], **KEY}
    grad = torch.randn(x.shape).to(dtype)
    for ceiling in (None, 0.3):  # 0.3 is no number of the 16-bit types
        made, made_grad = both(x, grad, backend, ceiling=ceiling, keep="result", **options)
        expected, expected_grad = both(x, grad, backend, ceiling=ceiling, **options)
        assert_same_bits(made, expected)
        reached = made == torch.tensor(float("inf") if ceiling is None else ceiling).to(dtype)
        assert ceiling is None or 0 < int(reached.sum()) < made.numel()
        clear = ~reached if dtype == torch.float32 else ~reached & (made != 0)  # what rounding has not moved
        assert_same_bits(made_grad[clear], expected_grad[clear])
        assert not made_grad[reached].any()


def test_relu6(backend):
    x, p = 9 * CASE.make(), CASE.parameters()
    made, made_grad = both(
        x, torch.ones(CASE.shape), backend, rate=0.0, scale=p["scale"], shift=p["shift"], slope=0, ceiling=6.0, **KEY
    )
    y = x.detach().requires_grad_(True)
    affine = y * p["scale"].view(1, -1, 1, 1) + p["shift"].view(1, -1, 1, 1)
    expected = F.relu6(affine)
    expected.sum().backward()
    assert_same_bits(made + 0.0, expected.detach() + 0.0)
    assert_same_bits(made_grad + 0.0, y.grad + 0.0)
    assert 0 < int((made == 6).sum()) < made.numel()


def kept(x, **options):
    """How many tensors of the size of ``x`` are kept for the backward pass."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        made = ops.feature_dropout_bn_prelu(x, rate=0.4, **options, **KEY)
    large = [t for t in found if t.shape == x.shape]
    return [("result" if t.data_ptr() == made.data_ptr() else "input") for t in large]


def test_what_is_kept(backend):
    x, p = CASE.make().requires_grad_(True), CASE.parameters()
    options = {"scale": p["scale"], "shift": p["shift"], "backend": backend}
    assert kept(x, **options) == []
    assert kept(x, slope=0, **options) == kept(x, ceiling=1.0, **options) == ["input"]
    assert kept(x, slope=0, keep="result", **options) == kept(x, slope=p["slope"], keep="result", **options)
    assert kept(x, slope=0, keep="result", **options) == ["result"]


def test_gradients_in_another_memory_order(backend):
    x, grad = CASE.make(), torch.randn(CASE.shape)
    options = {"rate": 0.4, **CASE.parameters(), **KEY}
    _, expected = both(x, grad, backend, **options)
    for layout in ("channels_last", "columns", "offset"):
        assert_same_bits(both(x, arrange(grad, layout), backend, **options)[1], expected)
        assert_same_bits(both(arrange(x, layout), grad, backend, **options)[1], expected)
    ones = ops.feature_dropout_bn_prelu(x.requires_grad_(True), backend=backend, **options).sum()
    ones.backward()  # its gradient is an expanded number
    assert_same_bits(x.grad, both(x, torch.ones(CASE.shape), backend, **options)[1])


def test_strided_parameters(backend):
    x, parameters = CASE.make(), CASE.parameters()
    strided = {name: torch.stack([value, value * 9], 1)[:, 0] for name, value in parameters.items()}
    made = ops.feature_dropout_bn_prelu(x, rate=0.4, backend=backend, **strided, **KEY)
    assert_same_bits(made, ops.feature_dropout_bn_prelu(x, rate=0.4, backend=backend, **parameters, **KEY))


def test_there_is_no_second_derivative(backend):
    x = CASE.make().requires_grad_(True)
    y = ops.feature_dropout_bn_prelu(x, rate=0.4, backend=backend, **CASE.parameters(), **KEY)
    (grad,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="feature_dropout_bn_prelu has no second derivative"):
        grad.sum().backward()


def test_opcheck(backend):
    x = arrange(CASE.make()[:2], "channels_last").requires_grad_(True)
    p = CASE.parameters()
    op = torch.ops.fastadv.feature_dropout_bn_prelu.default
    key = (KEY["ids"][:2], None, 7, None, 4, 2, 2**15, 2.0)
    torch.library.opcheck(op, (x, None, *key, p["scale"], p["shift"], p["slope"], 0.0, None, False, backend))
    torch.library.opcheck(op, (x, None, *key, p["scale"], p["shift"], None, 0.5, 6.0, True, backend))
    held = x.detach()
    torch.library.opcheck(op, (held, held, *key, p["scale"], p["shift"], None, 0.5, None, False, backend))


def test_compiled_without_a_graph_break(backend):
    p = {**CASE.parameters(), "slope": 0.0, "ceiling": 1.5, "keep": "result"}

    def f(x, tick):
        key = {**KEY, "tick": tick}
        return ops.feature_dropout_bn_prelu(x * 2, rate=0.5, backend=backend, **p, **key) + 1

    torch.compiler.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for tick in (torch.tensor(4), torch.tensor(5)):
        x, y = (CASE.make().requires_grad_(True) for _ in range(2))
        made, expected = compiled(x, tick), f(y, tick)
        assert_same_bits(made, expected)
        made.sum().backward()
        expected.sum().backward()
        assert_same_bits(x.grad, y.grad)


def test_numpy_arrays():
    x, p = CASE.make(), CASE.parameters()
    arrays = {name: value.numpy() for name, value in {**p, "ids": KEY["ids"]}.items()}
    made = ops.feature_dropout_bn_prelu(x.numpy(), rate=0.4, **{**KEY, **arrays})
    assert isinstance(made, np.ndarray)
    assert_same_bits(torch.from_numpy(made), ops.feature_dropout_bn_prelu(x, rate=0.4, **p, **KEY))


MISTAKES = [
    ({"x": torch.zeros(3)}, ValueError, r"x: expected a batch \(N, C, \.\.\.\), got shape \(3,\)"),
    ({"x": torch.zeros(3, 5).double()}, TypeError, "x: expected .*, got torch.float64"),
    ({"rate": 1.0}, ValueError, "rate: expected .*, got 1.0"),
    ({"ids": torch.arange(2)}, ValueError, r"ids: expected .*, got \(2,\)"),
    ({"scale": None}, TypeError, r"scale: expected a torch\.Tensor, like x, got NoneType"),
    ({"scale": torch.ones(5).double()}, TypeError, "scale: expected dtype torch.float32, got torch.float64"),
    ({"scale": torch.ones(1)}, ValueError, r"scale: expected shape \(5,\), as x has 5 channels, got \(1,\)"),
    ({"shift": torch.ones(6)}, ValueError, r"shift: expected shape \(5,\), as x has 5 channels, got \(6,\)"),
    ({"shift": torch.ones(5, device="meta")}, ValueError, "shift: expected cpu, the device of x, got meta"),
    (
        {"slope": torch.ones(2)},
        ValueError,
        r"slope: expected shape \(5,\) or one element, as x has 5 channels, got \(2,\)",
    ),
    ({"slope": torch.ones(5).half()}, TypeError, "slope: expected .*, got torch.float16"),
    ({"slope": float("nan")}, ValueError, "slope: expected a finite number, a float32 tensor or None, got nan"),
    ({"ceiling": float("inf")}, ValueError, "ceiling: expected a finite number or None, got inf"),
    ({"keep": "output"}, ValueError, "keep: expected 'input' or 'result', got 'output'"),
    (
        {"keep": "result", "slope": -0.1},
        ValueError,
        "slope: expected a number of at least 0 with keep='result', which does not tell the sign ",
    ),
    (
        {"backend": "cuda"},
        backends.BackendUnavailable,
        "backend: expected one that can run feature_dropout_bn_prelu on cpu, got 'cuda'",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change, error, message):
    given = {"x": torch.zeros(3, 5), "rate": 0.5, "scale": torch.ones(5), "shift": torch.ones(5), **KEY, **change}
    with pytest.raises(error, match=message):
        ops.feature_dropout_bn_prelu(**given)


@pytest.mark.parametrize("name", ["scale", "shift", "slope"])
def test_a_parameter_that_requires_grad_is_refused(name):
    given = {"x": CASE.make(), "rate": 0.5, **CASE.parameters(), **KEY}
    given[name] = given[name].requires_grad_(True)
    with pytest.raises(RuntimeError, match=f"{name} requires grad, and feature_dropout_bn_prelu has a derivative with"):
        ops.feature_dropout_bn_prelu(**given)
    with torch.no_grad():
        ops.feature_dropout_bn_prelu(**given)


EVERY = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1.5, -1.5, 3e38, -3e38, 1e-40])
LIKE_TORCH = [
    (None, None, lambda x: x * 1),
    (0.0, None, F.relu),
    (0.0, 6.0, F.relu6),
    (0.25, None, lambda x: F.leaky_relu(x, 0.25)),
    (torch.tensor([0.25, -0.5, 0.0]), None, lambda x: F.prelu(x, torch.tensor([0.25, -0.5, 0.0]))),
]


@pytest.mark.parametrize(
    ("slope", "ceiling", "activation"), LIKE_TORCH, ids=["none", "relu", "relu6", "leaky", "prelu"]
)
def test_numbers_that_are_not_finite_become_what_torch_makes_of_them(slope, ceiling, activation, target):
    x = EVERY.repeat(18).view(3, 3, 4, 5)
    grad = torch.tensor([1.0, float("inf"), float("nan"), -2.0, -float("inf"), 0.5, 7.0]).repeat(26)[:180].view_as(x)
    scale, shift = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 0.5, -1.0])
    mask = ops.feature_dropout(torch.ones_like(x), rate=0.3, **KEY, backend="reference") != 0
    inner = torch.where(mask, x, 0.0) * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    inner.requires_grad_(True)
    expected = activation(inner)
    expected.backward(grad)
    derivative = torch.where(mask, inner.grad * scale.view(1, -1, 1, 1), 0.0)
    if ceiling is not None:  # of a NaN beside a ceiling, torch's own derivative depends on the function that is asked
        grad = torch.where(inner.isnan(), 0.0, grad)
        derivative = torch.where(inner.isnan(), 0.0, derivative)
    key = {name: value.to(target.device) if isinstance(value, torch.Tensor) else value for name, value in KEY.items()}
    on = target.device
    for keep in ("input", "result") if not isinstance(slope, torch.Tensor) else ("input",):
        value = x.to(on, copy=True).requires_grad_(True)
        made = ops.feature_dropout_bn_prelu(
            value,
            rate=0.3,
            **key,
            scale=scale.to(on),
            shift=shift.to(on),
            slope=slope.to(on) if isinstance(slope, torch.Tensor) else slope,
            ceiling=ceiling,
            keep=keep,
            backend=target.backend,
        )
        made.backward(grad.to(on))
        torch.testing.assert_close(made.detach().cpu(), expected.detach(), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(value.grad.cpu(), derivative, rtol=0, atol=0, equal_nan=True)
