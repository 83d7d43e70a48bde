"""`feature_dropout_bn_prelu` without a mask, and with a shift for each position: bias and activation in one pass."""

import pytest
import torch
import torch.nn.functional as F

from fastadv import ops
from fastadv.ops.reference import feature_dropout_bn_prelu as reference
from fastadv.testing.cases import arrange
from fastadv.testing.feature_cases import FEATURE_CASES, FeatureCase
from fastadv.testing.tolerances import RELATIVE, assert_same_bits

# NumPy, in which Triton's interpreter computes, warns where a product overflows.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|underflow) encountered:RuntimeWarning")
CASE = FeatureCase(shape=(3, 5, 6, 7))
SMALL = [case for case in FEATURE_CASES if case.shape[1] < 100]
LAYOUTS = ["contiguous", "channels_last", "columns", "offset"]


def both(x, grad, **options):
    x = x.detach().requires_grad_(True)
    made = ops.feature_dropout_bn_prelu(x, **options)
    made.backward(grad)
    return made.detach(), x.grad


def grad_of(case):
    return torch.randn(case.shape, generator=torch.Generator().manual_seed(1)).to(case.dtype)


def untied(case, device="cpu"):
    """A shift for each position of an image."""
    return torch.randn(case.shape[1:], generator=torch.Generator().manual_seed(2)).to(device)


def compare(made, expected):
    for a, b in zip(made, expected, strict=True):
        assert_same_bits(a, b)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("case", "each_position"), [*((case, True) for case in FEATURE_CASES), *((case, False) for case in SMALL[::3])]
)
def test_every_backend_gives_the_bits_of_the_reference(case, each_position, target, sized):
    case = sized(case)
    there, grad = target.device, grad_of(case)
    for activation in ({}, {"slope": None}, {"slope": 0, "ceiling": 0.7, "keep": "result"}):
        given = {"cpu": {**case.parameters(), **activation}, there: {**case.parameters(there), **activation}}
        if each_position:
            given = {device: {**options, "shift": untied(case, device)} for device, options in given.items()}
        expected = both(case.make(), grad, backend="reference", **given["cpu"])
        made = both(case.make(there), grad.to(there), backend=target.backend, **given[there])
        compare(made, expected)
        assert [value.stride() for value in made] == [value.stride() for value in expected]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_mask_and_a_shift_for_each_position(case, target):
    there, grad = target.device, grad_of(case)
    options = {"rate": 0.3, "rescale": True, "ceiling": 0.7}
    tied = both(case.make(), grad, backend="reference", **case.key(), **options, **case.parameters())
    shifts = case.parameters()["shift"].view(-1, *(1,) * (len(case.shape) - 2)).expand(case.shape[1:])
    parameters = {**case.parameters(there), "shift": shifts.to(there)}
    compare(
        both(case.make(there), grad.to(there), backend=target.backend, **case.key(there), **options, **parameters), tied
    )


@pytest.mark.parametrize("case", SMALL[::3], ids=lambda case: case.name)
def test_a_rate_of_0_needs_no_key_and_draws_nothing_with_one(case, target):
    there, grad = target.device, grad_of(case).to(target.device)
    options = {**case.parameters(there), "backend": target.backend}
    compare(both(case.make(there), grad, **options, **case.key(there)), both(case.make(there), grad, **options))


ACTIVATIONS = {
    "relu": ({"slope": 0}, F.relu),
    "relu6": ({"slope": 0, "ceiling": 6.0}, F.relu6),
    "leaky": ({"slope": 0.25}, lambda x: F.leaky_relu(x, 0.25)),
    "prelu": ({"slope": torch.linspace(-0.5, 1.5, 5)}, lambda x: F.prelu(x, torch.linspace(-0.5, 1.5, 5))),
    "one slope": ({"slope": torch.tensor([0.25])}, lambda x: F.prelu(x, torch.tensor([0.25]))),
}


@pytest.mark.parametrize("shape", [(5,), (5, 6, 7)], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_activation_of_torch_behind_a_bias(name, layout, shape, backend):
    options, activation = ACTIVATIONS[name]
    bias, grad = torch.randn(shape), torch.randn(CASE.shape)
    x = arrange(9 * CASE.make(), layout)
    made = both(x, grad, scale=torch.ones(5), shift=bias, backend=backend, **options)
    y = x.detach().requires_grad_(True)
    expected = activation(y + bias.view(1, 5, *shape[1:] or (1, 1)))
    expected.backward(grad)
    compare([value + 0.0 for value in made], [expected.detach() + 0.0, y.grad + 0.0])


def test_minus_zero_as_shift_changes_no_number(backend):
    x = torch.tensor([0.0, -0.0, 1.5, -1.5, torch.inf, -torch.inf, 1e-40, -1e-40, torch.nan]).repeat(5).view(1, 5, 9)
    made = ops.feature_dropout_bn_prelu(x, scale=torch.ones(5), shift=torch.full((5,), -0.0), backend=backend)
    assert_same_bits(made, x)


@pytest.mark.parametrize("keep", ["input", "result"])
@pytest.mark.parametrize("shape", [(5,), (5, 3, 3)], ids=["tied", "untied"])
def test_the_reference_has_the_derivative_it_says(shape, keep):
    x = CASE.make().double()[:2, :, :3, :3].requires_grad_(True)
    scale, slope = torch.linspace(-1, 1, 5).double(), torch.linspace(0, 1.5, 5).double()
    fixed = (None, 0, 0, 0, 0, 1.0, scale, torch.randn(shape).double(), slope, 0.0, 0.7)
    y = reference.feature_dropout_bn_prelu(x, None, *fixed, False)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, grad)
    seen = (x if keep == "input" else y).detach()
    made = reference.feature_dropout_bn_prelu(seen, grad, *fixed, keep == "result")
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("dtype", RELATIVE)
def test_against_float64(dtype, backend):
    x, grad, bias = CASE.make().to(dtype), torch.randn(CASE.shape).to(dtype), untied(CASE)
    slope = torch.linspace(-0.5, 1.5, 5)
    made = both(x, grad, scale=torch.ones(5), shift=bias, slope=slope, backend=backend)
    y = x.double().requires_grad_(True)
    expected = F.prelu(y + bias.double(), slope.double())
    expected.backward(grad.double())
    for a, b in zip(made, (expected.detach(), y.grad), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=4 * RELATIVE[dtype], atol=4 * RELATIVE[dtype])


@pytest.mark.parametrize("of_map", LAYOUTS)
@pytest.mark.parametrize("of_shift", LAYOUTS)
def test_memory_orders_of_map_and_shift(of_map, of_shift, backend):
    x, grad, p = CASE.make(), grad_of(CASE), {"scale": torch.ones(5), "slope": 0.25, "backend": backend}
    expected = both(x, grad, shift=untied(CASE), **p)
    shift = arrange(untied(CASE)[None], of_shift)[0]
    compare(both(arrange(x, of_map), grad, shift=shift, **p), expected)
    prepared = ops.PreparedDropout(shift=shift, **p)
    leaf = arrange(x, of_map).requires_grad_(True)
    made = prepared(leaf)
    compare([made.detach(), torch.autograd.grad(made, leaf, grad)[0]], expected)


def test_an_image_is_activated_alike_in_any_slot_and_batch(backend):
    x, p = CASE.make(), {**CASE.parameters(), "shift": untied(CASE), "backend": backend}
    whole = ops.feature_dropout_bn_prelu(x, **p)
    assert_same_bits(ops.feature_dropout_bn_prelu(x.flip(0), **p).flip(0), whole)
    assert_same_bits(torch.cat([ops.feature_dropout_bn_prelu(each, **p) for each in x.split(1)]), whole)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("each_position", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("keep", ["input", "result"])
@pytest.mark.parametrize("case", FEATURE_CASES, ids=lambda case: case.name)
def test_prepared_it_is_the_operation(case, keep, each_position, target):
    if target.interpreted:
        pytest.skip("there it is the operation, and slow")
    there, grad = target.device, grad_of(case)
    given = {**case.parameters(), "slope": 0.5, "keep": keep, "ceiling": 0.7}
    given |= {"shift": untied(case)} if each_position else {}
    expected = both(case.make(), grad, backend="reference", **given)
    fixed = {name: value.to(there) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    for overwrite in (False, True):
        how = {"overwrite_map": overwrite, "overwrite_gradient": overwrite, "backend": target.backend}
        prepared = ops.PreparedDropout(**fixed, **how)
        leaf = case.make(there).requires_grad_(True)
        made = prepared(leaf.clone())
        (found,) = torch.autograd.grad(made, leaf, grad.to(there).clone())
        compare([made.detach(), found], expected)
        with torch.no_grad():
            assert_same_bits(prepared(case.make(there)), expected[0])


def test_opcheck(backend):
    x, p = arrange(CASE.make()[:2], "channels_last").requires_grad_(True), CASE.parameters()
    op = torch.ops.fastadv.feature_dropout_bn_prelu.default
    key = (None, None, 0, None, 0, 0, 0, 1.0)
    torch.library.opcheck(op, (x, None, *key, p["scale"], p["shift"], p["slope"], 0.0, None, False, backend))
    torch.library.opcheck(op, (x, None, *key, p["scale"], untied(CASE), None, 0.5, 6.0, True, backend))


def test_compiled_without_a_graph_break(backend):
    p = {"scale": torch.ones(5), "shift": untied(CASE), "slope": 0.25}
    prepared = ops.PreparedDropout(**p, backend=backend)

    def f(x):
        return prepared(ops.feature_dropout_bn_prelu(x * 2, **p, backend=backend)) + 1

    torch.compiler.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    x, y = (CASE.make().requires_grad_(True) for _ in range(2))
    made, expected = compiled(x), f(y)
    made.sum().backward()
    expected.sum().backward()
    compare([made, x.grad], [expected, y.grad])


MISTAKES = [
    ({"rate": 0.5}, TypeError, r"ids: expected an int64 tensor \(N,\) beside a rate above 0, got None"),
    ({"ids": torch.arange(2)}, ValueError, r"ids: expected .*, got \(2,\)"),
    (
        {"shift": torch.ones(5, 7, 6)},
        ValueError,
        r"shift: expected shape \(5,\) or \(5, 6, 7\), as x has 5 channels, got \(5, 7, 6\)",
    ),
    ({"scale": torch.ones(5, 6, 7)}, ValueError, r"scale: expected shape \(5,\), as x has 5 channels, got \(5, 6, 7\)"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change, error, message):
    with pytest.raises(error, match=message):
        ops.feature_dropout_bn_prelu(**{"x": CASE.make(), **CASE.parameters(), **change})


@pytest.mark.parametrize(
    ("fixed", "shape", "error", "message"),
    [
        ({"rate": 0.5}, (3, 5, 6, 7), TypeError, r"ids: expected an int64 tensor \(N,\) beside a rate above 0, got"),
        (
            {"shift": untied(CASE)},
            (3, 5, 7, 6),
            ValueError,
            r"x: expected shape \(N, 5, 6, 7\) on cpu, got \(3, 5, 7, 6\)",
        ),
        ({"shift": untied(CASE)}, (3, 5), ValueError, r"x: expected shape \(N, 5, 6, 7\) on cpu, got \(3, 5\)"),
        ({}, (3, 4, 6, 7), ValueError, r"x: expected shape \(N, 5, \.\.\.\) on cpu, got \(3, 4, 6, 7\)"),
    ],
)
def test_mistakes_in_a_prepared_call(fixed, shape, error, message):
    with pytest.raises(error, match=message):
        ops.PreparedDropout(**{**CASE.parameters(), **fixed})(torch.zeros(shape))


def test_a_prepared_shift_has_the_channels_of_the_scale():
    with pytest.raises(
        ValueError, match=r"shift: expected shape \(5,\) or \(5, 6, 7\), as x has 5 .*, got \(4, 6, 7\)"
    ):
        ops.PreparedDropout(scale=torch.ones(5), shift=torch.ones(4, 6, 7))
