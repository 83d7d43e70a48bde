"""The prepared operation of a layer is the operation, bit for bit, forwards and backwards."""

import copy
import multiprocessing
import pickle

import pytest
import torch

from fastadv import backends, ops
from fastadv.testing.cases import arrange
from fastadv.testing.feature_cases import FEATURE_CASES, FeatureCase
from fastadv.testing.tolerances import assert_same_bits

CASE = FeatureCase(shape=(3, 5, 6, 7))
KEY = {"seed": 7, "ids": torch.tensor([3, 2**40 + 1, 3]), "tick": torch.tensor([4, 5, 6])}
# NumPy, in which Triton's interpreter computes, warns where a product overflows.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|underflow) encountered:RuntimeWarning")
ACTIVATIONS = [
    {"slope": None},
    {"slope": torch.linspace(-0.5, 1.5, 5)},
    {"slope": 0, "ceiling": 0.7, "keep": "result"},
    {"slope": 0.25, "rescale": True},
]


def both(function, x, grad):
    x = x.detach().requires_grad_(True)
    made = function(x)
    made.backward(grad)
    with torch.no_grad():
        assert_same_bits(function(x), made.detach())
    return made.detach(), x.grad


LAYOUTS = ["contiguous", "channels_last", "columns"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def leave_to_pairs(*numbers, of):
    """In Triton's interpreter, where the call is the operation, a combination for every pair of values is enough."""
    if sum(numbers) % of:
        pytest.skip("slow in the interpreter, and each pair of its values is in another combination")


@pytest.mark.parametrize("number", range(4), ids=["none", "prelu", "relu6", "number"].__getitem__)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_it_is_the_operation(number, layout, dtype, backend):
    activation = ACTIVATIONS[number]
    if backend == "triton":
        leave_to_pairs(number, LAYOUTS.index(layout), DTYPES.index(dtype), of=2)
    x = arrange(CASE.make().to(dtype), layout)
    grad = torch.randn(CASE.shape).to(dtype)
    fixed = {"rate": 0.4, "layer": 2, **{**CASE.parameters(), **activation}, "backend": backend}
    prepared = ops.PreparedDropout(**fixed)
    made = both(lambda y: prepared(y, **KEY), x, grad)
    expected = both(lambda y: ops.feature_dropout_bn_prelu(y, **fixed, **KEY), x, grad)
    for a, b in zip(made, expected, strict=True):
        assert_same_bits(a, b)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", FEATURE_CASES, ids=lambda case: case.name)
def test_every_case_on_every_device(case, target, sized):
    case = sized(case)
    there = target.device
    fixed = {"rate": 0.3, **case.parameters(there)}
    key = case.key(there)
    prepared = ops.PreparedDropout(**fixed, layer=key.pop("layer"), backend=target.backend)
    x = case.make(there)
    expected = ops.feature_dropout_bn_prelu(
        case.make(), rate=0.3, backend="reference", **case.parameters(), **case.key()
    )
    assert_same_bits(prepared(x, **key), expected)


WIDE = FeatureCase(shape=(3, 77, 3, 5), held=True)
WIDE_ACTIVATIONS = [
    {"slope": None},
    {"slope": None, "rescale": True},
    {"slope": torch.linspace(-0.5, 1.5, 77)},
    {"slope": 0, "ceiling": 0.7, "keep": "result"},
    {"slope": torch.tensor([0.25]), "keep": "result"},
]


@pytest.mark.parametrize("number", range(5), ids=["none", "rescale", "prelu", "relu6", "one"].__getitem__)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_it_may_overwrite_it_gives_the_same(number, layout, dtype, target):
    activation = WIDE_ACTIVATIONS[number]
    if target.interpreted:
        leave_to_pairs(number, LAYOUTS.index(layout), DTYPES.index(dtype), of=3)
    fixed = {"rate": 0.4, "rescale": False, "layer": 2, **WIDE.parameters(target.device), **activation}
    fixed["slope"] = fixed["slope"].to(target.device) if isinstance(fixed["slope"], torch.Tensor) else fixed["slope"]
    key = {name: value for name, value in WIDE.key(target.device).items() if name != "layer"}
    x = arrange(WIDE.make().to(dtype), layout, target.device)
    grad = arrange(WIDE.make().flip(1).to(dtype), layout, target.device)
    expected = both(lambda y: ops.feature_dropout_bn_prelu(y, **fixed, **key, backend="reference"), x, grad)
    owner = ops.PreparedDropout(**fixed, backend=target.backend, overwrite_map=True, overwrite_gradient=True)
    with torch.no_grad():
        assert_same_bits(owner(x.clone(), **key), expected[0])
    leaf = x.clone().requires_grad_(True)
    made = owner(leaf.clone(), **key)
    (found,) = torch.autograd.grad(made, leaf, grad.clone())
    assert_same_bits(made.detach(), expected[0])
    assert_same_bits(found, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_mask_alone(dtype, layout, target):
    x = arrange(WIDE.make().to(dtype), layout, target.device)
    key = {name: value for name, value in WIDE.key(target.device).items() if name != "layer"}
    expected = both(lambda y: ops.feature_dropout(y, rate=0.4, layer=2, **key, backend="reference"), x, x.flip(0))
    for overwrite in (False, True):
        how = {"overwrite_map": overwrite, "overwrite_gradient": overwrite, "backend": target.backend}
        prepared = ops.PreparedDropout(rate=0.4, layer=2, **how)
        leaf = x.clone().requires_grad_(True)
        made = prepared(leaf.clone(), **key)
        (found,) = torch.autograd.grad(made, leaf, x.flip(0))
        assert_same_bits(made.detach(), expected[0])
        assert_same_bits(found, expected[1])


@pytest.mark.parametrize("strides", [(5, 1, 1, 1), (5, 1, 5, 5), (5, 1, 1, 5)])
def test_one_pixel_lies_in_memory_as_the_operation_leaves_it(strides):
    """The next convolution chooses its kernel, and so its last bits, by the strides."""
    x = torch.zeros(3, 5, 1, 1).as_strided((3, 5, 1, 1), strides).copy_(torch.randn(3, 5, 1, 1))
    owner = ops.PreparedDropout(rate=0.4, layer=2, **CASE.parameters(), overwrite_map=True)
    expected = ops.feature_dropout_bn_prelu(x, rate=0.4, layer=2, **CASE.parameters(), **KEY)
    with torch.no_grad():
        made = owner(x.clone(memory_format=torch.preserve_format), **KEY)
    assert made.stride() == expected.stride()
    assert_same_bits(made, expected)


def test_it_overwrites_what_it_was_given_and_nothing_else():
    key = {"seed": 7, "ids": torch.arange(3), "tick": 4}
    x, parameters = WIDE.make(), WIDE.parameters() | {"slope": 0.0}
    keeps = {
        keep: ops.PreparedDropout(rate=0.4, layer=2, **parameters, keep=keep, overwrite_map=True)
        for keep in ("input", "result")
    }
    for prepared in keeps.values():
        own, larger = x.clone(), torch.cat([x, x])
        with torch.no_grad():
            assert prepared(own, **key) is own
            part = prepared(larger[:3], **key)  # others may read the rest through the same memory
        assert_same_bits(larger[:3], x)
        assert_same_bits(part, own)
    own = (x.clone().requires_grad_(True) * 1).contiguous()
    assert keeps["result"](own, **key) is own
    own = (x.clone().requires_grad_(True) * 1).contiguous()
    kept = own.detach().clone()
    assert keeps["input"](own, **key) is not own  # the derivative needs it
    assert_same_bits(own.detach(), kept)
    never = ops.PreparedDropout(rate=0.4, layer=2, **parameters, keep="result")
    with torch.no_grad():
        never(x, **key)
    assert_same_bits(x, WIDE.make())


def test_what_is_overwritten_and_was_needed_is_noticed():
    prepared = ops.PreparedDropout(rate=0.4, layer=2, overwrite_map=True)
    leaf = WIDE.make().requires_grad_(True)
    root = leaf.exp()  # its derivative is its result
    prepared(root, seed=7, ids=torch.arange(3), tick=4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        root.sum().backward()


def test_compiled_it_is_part_of_the_graph(backend):
    prepared = ops.PreparedDropout(rate=0.4, layer=2, **CASE.parameters(), backend=backend)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: prepared(x * 2, **KEY) + 1, fullgraph=True, backend="aot_eager")
    x = CASE.make()
    assert_same_bits(compiled(x), prepared(x * 2, **KEY) + 1)


def test_there_is_no_second_derivative(backend):
    x = CASE.make().requires_grad_(True)
    prepared = ops.PreparedDropout(rate=0.4, layer=2, **CASE.parameters(), backend=backend)
    (grad,) = torch.autograd.grad((prepared(x, **KEY) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_ticks_that_change_before_the_backward_pass_are_noticed():
    tick = torch.tensor([4, 5, 6])
    prepared = ops.PreparedDropout(rate=0.4, layer=2, **CASE.parameters())
    loss = prepared(CASE.make().requires_grad_(True), **{**KEY, "tick": tick}).sum()
    tick += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


FIXED = {"rate": 0.5, "layer": 2, "scale": torch.ones(5), "shift": torch.ones(5)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scale": None}, ValueError, "scale: expected a tensor beside shift, slope or ceiling, got None"),
        ({"layer": 4096}, ValueError, r"layer: expected an integer in \[0, 4096\), got 4096"),
        ({"scale": [1.0]}, TypeError, r"scale: expected a torch\.Tensor, like x, got list"),
        ({"shift": torch.ones(4)}, ValueError, r"shift: expected shape \(5,\), as x has 5 channels, got \(4,\)"),
        ({"rate": 1.0}, ValueError, "rate: expected .*, got 1.0"),
        (
            {"slope": -1.0, "keep": "result"},
            ValueError,
            "slope: expected a number of at least 0 with keep='result', which does not tell the sign ",
        ),
        ({"slope": torch.ones(5, requires_grad=True)}, RuntimeError, "slope requires grad"),
    ],
)
def test_mistakes_in_what_is_fixed(change, error, message):
    with pytest.raises(error, match=message):
        ops.PreparedDropout(**{**FIXED, **change})


@pytest.mark.parametrize(
    ("x", "change", "error", "message"),
    [
        ([1.0], {}, TypeError, r"x: expected a tensor of torch\.float32, torch\.bfloat16 or torch\.float16, got list"),
        (
            torch.zeros(3, 5).double(),
            {},
            TypeError,
            r"x: expected a tensor of torch\.float32, torch\.bfloat16 or torch\.float16, got torch\.float64",
        ),
        (torch.zeros(3, 4), {}, ValueError, r"x: expected shape \(N, 5, ...\) on cpu, got \(3, 4\) on cpu"),
        (torch.zeros(3), {}, ValueError, r"x: expected shape \(N, 5, \.\.\.\) on cpu, got \(3,\) on cpu"),
        (torch.zeros(3, 5), {"ids": torch.arange(2), "tick": 4}, ValueError, r"ids: expected .*, got \(2,\)"),
        (torch.zeros(3, 5), {"seed": -1}, ValueError, "seed: expected .*, got -1"),
    ],
)
def test_mistakes_in_a_call(x, change, error, message):
    with pytest.raises(error, match=message):
        ops.PreparedDropout(**FIXED)(x, **{**KEY, **change})


def test_a_backend_that_cannot_run():
    prepared = ops.PreparedDropout(**FIXED, backend="cuda")
    with pytest.raises(backends.BackendUnavailable, match="backend: expected one that can run .* on cpu, got 'cuda'"):
        prepared(torch.zeros(3, 5), **KEY)


def _after_a_fork(queue, x):
    # NumPy's sum, since torch's own loops may hang in a forked child.
    queue.put(float(ops.feature_dropout(x, rate=0.5, layer=1, **KEY).numpy().sum()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    x = torch.ones(3, 1 << 18)  # enough for several threads
    expected = float(ops.feature_dropout(x, rate=0.5, layer=1, **KEY).numpy().sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_after_a_fork, args=(queue, x))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_what_it_is_given_may_move_and_a_copy_is_a_copy(copied):
    x, given = CASE.make(), {"scale": torch.rand(5), "shift": torch.rand(5), "slope": torch.rand(5)}
    prepared = ops.PreparedDropout(rate=0.4, layer=2, **given, backend="cpu")
    made = prepared(x, **KEY)
    for value in given.values():
        value.share_memory_().fill_(torch.nan)  # as when it is sent to another process
    other = copied(prepared)
    for each in (prepared, other):
        assert_same_bits(each(x, **KEY), made)
    del prepared
    assert_same_bits(other(x, **KEY), made)
