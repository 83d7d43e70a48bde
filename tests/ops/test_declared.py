"""What holds for every operation, read from its declaration: a new operation is among them without a line here."""

import inspect
import re

import pytest
import torch

from fastadv import backends, ops
from fastadv.ops.declaration import OPERATIONS
from fastadv.ops.momentum_step import momentum_workspace
from fastadv.testing.cases import arrange
from fastadv.testing.tolerances import assert_same_bits

SHAPE = (3, 5, 6, 4)
LAYOUTS = ["contiguous", "channels_last", "columns"]
#: Operations that sum in another order than the reference, and by how much of the value.
ROUNDED = {
    **{"average_pool": 4e-6, "centroid_distances": 1e-5, "centroid_distances_backward": 1e-5},
    **{"pooled_centroid_distances": 2e-5, "knn_score": 2e-7},
    **{"relative_distances": 2e-5, "pooled_relative_distances": 4e-5},
}

MAY_BE_A_NUMBER = ("alpha", "eps", "scale", "slope", "seed", "tick")
#: Written, but what it holds means nothing.
SCRATCH = ("workspace",)


def each(shape, draw, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(shape, generator=draw)


def example(argument, draw, layout):
    """Values of an argument by the names of the public function; a kind that is not listed has to come with one."""
    name = argument.public[0] if argument.public else ""
    images, channels = SHAPE[:2]
    if not argument.public:
        return {}
    if argument.kind in ("images", "read", "written", "feature_map"):
        return {name: arrange(each(SHAPE, draw), layout)}
    if argument.kind == "each":
        return {name: each(images, draw, 0.01, 0.2)}
    if argument.kind == "per_image":
        return {name: torch.arange(images).remainder(2).to(argument.dtype)}
    if argument.kind == "counts":
        return {name: torch.arange(2 * images).view(images, 2)}
    if argument.kind == "rows":
        values = each((images, 7), draw).sort(1).values
        return {name: values if argument.dtype.is_floating_point else (3 * values).to(argument.dtype)}
    layers = [(channels, 6, 4), (8, 1, 3)]
    special = {
        "number": lambda: {name: 0.9},
        "pixel_range": lambda: {"lo": 0.0, "hi": 1.0},
        "choice": lambda: {name: next(iter(next(iter(argument.uses.values()))))},
        "key": lambda: {"seed": 7, "ids": torch.tensor([3, 2**40 + 1, 3]), "tick": torch.tensor([4, 5, 6]), "layer": 2},
        "mask_rate": lambda: {"rate": 0.3, "rescale": True},
        "workspace": lambda: {name: momentum_workspace(torch.empty(SHAPE))},
        "parameters": lambda: {
            **{"scale": each(channels, draw), "shift": each(channels, draw), "slope": each(channels, draw)},
            **{"ceiling": 0.7, "keep": "input"},
        },
        "feature_maps": lambda: {name: [arrange(each((images, *s), draw), layout) for s in layers]},
        "features": lambda: {name: [each((images, c), draw) for c, _, _ in layers]},
        "centroids": lambda: {name: [each((4, c), draw) for c, _, _ in layers], "metric": "cosine"},
        "own": lambda: {name: torch.arange(images).remainder(2)},
        "distances": lambda: {part: each((images, len(layers), 4), draw, 0.1) for part in argument.public},
    }
    return special[argument.kind]()


def examples(op, layout="contiguous"):
    draw = torch.Generator().manual_seed(3)
    return {name: value for a in OPERATIONS[op].arguments for name, value in example(a, draw, layout).items()}


def moved(value, device):
    if isinstance(value, list):
        return [moved(each, device) for each in value]
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value


def run(op, values, backend=None):
    """What the operation returns and what it writes."""
    made = OPERATIONS[op].call(*values.values(), backend)
    written = [values[name] for name in tensors(op, written=True) if name not in SCRATCH]
    return [*(made if isinstance(made, tuple) else (made,)), *written]


def schema(op):
    return OPERATIONS[op].dispatch._schema.arguments


def tensors(op, written=None):
    """Names of the arguments that are one tensor each; those that are written, or only read."""
    found = []
    for argument in schema(op):
        name = re.sub("_(each|at)$", "", argument.name)
        if isinstance(examples(op).get(name), torch.Tensor) and "Tensor[]" not in str(argument.type):
            is_written = argument.alias_info is not None
            found += [name] if written in (None, is_written) else []
    return found


TENSORS = [(op, name) for op in OPERATIONS for name in tensors(op)]
WRITTEN = [(op, name) for op in OPERATIONS for name in tensors(op, written=True)]
BOTH = [(op, name, other) for op, name in WRITTEN for other in tensors(op) if other != name]
# NumPy, in which Triton's interpreter computes, warns where a product overflows.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|underflow) encountered:RuntimeWarning")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPERATIONS)
def test_every_backend_gives_what_the_reference_gives(op, layout, target):
    expected = run(op, examples(op, layout), "reference")
    values = {name: moved(value, target.device) for name, value in examples(op, layout).items()}
    if target.device == "cpu":
        values = examples(op, layout)
    for a, b in zip(run(op, values, target.backend), expected, strict=True):
        assert a.stride() == b.stride()
        if op in ROUNDED:
            torch.testing.assert_close(a.cpu(), b, rtol=ROUNDED[op], atol=ROUNDED[op])
        else:
            assert_same_bits(a.cpu(), b)


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_operation_is_in_every_table(op):
    declared = OPERATIONS[op]
    assert backends.STEMS[op] == declared.stem
    assert {row.backend for row in backends.table() if row.op == op} == set(backends.NAMES)
    assert tuple(declared.implementations) == backends.NAMES
    if op.endswith("_backward"):
        return
    public = inspect.signature(getattr(ops, op)).parameters
    assert {name for a in declared.arguments for name in a.public} == set(public) - {"backend"}
    assert public["backend"].default is None


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_backend_that_there_is_not(op):
    with pytest.raises(ValueError, match="backend: expected one of reference, cpu, cuda, triton or 'auto', got 'gpu'"):
        run(op, examples(op), "gpu")


@pytest.mark.parametrize(("op", "name"), [pair for pair in TENSORS if not pair[0].endswith("_backward")])
def test_a_wrong_tensor_is_one_sentence_that_names_it(op, name):
    given = examples(op)
    value, first = given[name], name == next(iter(given))
    wrong = [value.to(torch.complex64), value.to_sparse()]
    wrong += [] if first else [value.to("meta")]
    wrong += [] if name in MAY_BE_A_NUMBER else [[1.0]]
    for mistake in wrong:
        with pytest.raises((TypeError, ValueError), match=rf"^{name}\b") as e:
            run(op, {**given, name: mistake})
        assert "\n" not in str(e.value)
    if not first and name not in SCRATCH:
        with pytest.raises((TypeError, ValueError), match=rf"^{name}\b"):
            run(op, {**given, name: torch.cat([value, value])})


@pytest.mark.parametrize(("op", "name", "other"), BOTH)
def test_what_is_written_overlaps_no_other_argument(op, name, other):
    values = examples(op)
    memory = torch.zeros(1 << 16, dtype=torch.uint8)
    for each_name in (name, other):
        value = values[each_name]
        values[each_name] = memory[: value.nbytes].view(value.dtype).view(value.shape)
    with pytest.raises(
        ValueError, match=rf"({name}, {other}|{other}, {name}): expected separate tensors, got shared memory"
    ):
        run(op, values)


@pytest.mark.parametrize(("op", "name"), WRITTEN)
def test_what_is_written_has_a_memory_and_a_version_of_its_own(op, name, backend):
    values = examples(op)
    before = values[name]._version
    run(op, values, backend)
    assert values[name]._version > before
    if values[name].is_floating_point():
        view = torch.complex(torch.zeros_like(values[name]), -values[name]).conj().imag
        with pytest.raises(ValueError, match=f"{name}: expected a tensor to write into, got a view that negates"):
            run(op, {**examples(op), name: view}, backend)
        with pytest.raises(RuntimeError, match=f"{op} writes into {name}, which requires grad, and has no derivative"):
            run(op, {**examples(op), name: values[name].clone().requires_grad_(True)}, backend)


@pytest.mark.parametrize(("op", "name"), [pair for pair in TENSORS if pair not in WRITTEN and pair[0].endswith("_")])
def test_what_a_written_tensor_is_made_of_must_not_require_grad(op, name, backend):
    values = examples(op)
    if values[name].is_floating_point():
        with pytest.raises(RuntimeError, match=f"{op} reads {name}, which requires grad, and has no derivative"):
            run(op, {**values, name: values[name].requires_grad_(True)}, backend)
