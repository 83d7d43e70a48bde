"""The 3 x 3 mean filter: closed forms, float64, its symmetry."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fastadv import backends, ops
from fastadv.ops.reference import box_blur as reference
from fastadv.testing.cases import arrange
from fastadv.testing.feature_cases import IMAGE_CASES
from fastadv.testing.tolerances import RELATIVE, assert_same_bits

# NumPy, in which Triton's interpreter computes, warns where a sum overflows.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|underflow) encountered:RuntimeWarning")
LAYOUTS = ["contiguous", "channels_last", "columns", "offset"]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
def test_every_backend_gives_the_bits_of_the_reference(case, target):
    expected = ops.box_blur(case.make(), backend="reference")
    made = ops.box_blur(case.make(target.device), backend=target.backend)
    assert_same_bits(made, expected)
    assert made.stride() == expected.stride()


def test_by_hand(backend):
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0], x[0, 0, 2, 2] = 9.0, 18.0
    made = ops.box_blur(x, backend=backend)
    # The corner counts four times in itself, twice in its neighbours.
    assert made[0, 0].tolist() == [[4, 2, 0, 0], [2, 3, 2, 2], [0, 2, 2, 2], [0, 2, 2, 2]]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (1, 2, 1, 6), (1, 2, 6, 1), (1, 1, 1, 1), (2, 3, 2, 2), (1, 5, 3, 1030)]
)
def test_against_float64_and_scipy(shape, backend):
    x = torch.randn(shape)
    for layout in LAYOUTS:
        made = ops.box_blur(arrange(x, layout), backend=backend).double()
        padded = F.pad(x.double(), (1, 1, 1, 1), mode="replicate")
        torch.testing.assert_close(made, F.avg_pool2d(padded, 3, 1), rtol=0, atol=8 * RELATIVE[torch.float32])
        expected = ndimage.uniform_filter(x.double().numpy(), size=(1, 1, 3, 3), mode="reflect")
        torch.testing.assert_close(made, torch.from_numpy(expected), rtol=0, atol=8 * RELATIVE[torch.float32])


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 40)),
    st.sampled_from(LAYOUTS),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_mean_and_constants_are_kept(shape, layout, dtype):
    x = arrange(torch.rand(shape).to(dtype), layout)
    made = ops.box_blur(x, backend="cpu")
    assert_same_bits(made, ops.box_blur(x, backend="reference"))
    assert abs(float(made.double().mean() - x.double().mean())) <= RELATIVE[dtype]
    constant = torch.full(shape, 0.7).to(dtype)
    torch.testing.assert_close(ops.box_blur(constant), constant, rtol=RELATIVE[dtype], atol=0)
    assert float(made.double().min()) >= float(x.double().min()) * (1 - RELATIVE[dtype])
    assert float(made.double().max()) <= float(x.double().max()) * (1 + RELATIVE[dtype])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_it_is_its_own_derivative(layout, backend):
    x = arrange(torch.randn(2, 3, 5, 4), layout).requires_grad_(True)
    grad = torch.randn(2, 3, 5, 4)
    ops.box_blur(x, backend=backend).backward(grad)
    assert_same_bits(x.grad, ops.box_blur(grad, backend=backend))
    wide = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(reference.box_blur(wide), wide, grad.double())
    torch.testing.assert_close(x.grad.double(), expected, rtol=0, atol=8 * RELATIVE[torch.float32])


def test_gradcheck():
    def f(wide):
        return ops.box_blur(wide.float()).double()

    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, x, eps=1e-2, atol=1e-4)
    assert torch.autograd.gradgradcheck(f, x, eps=1e-2, atol=1e-4)


def test_slices(backend):
    whole = torch.randn(4, 6, 9, 10)
    for x in (whole[::2], whole[:, 1:4], whole[..., 2:7], whole.flip(1), whole[:1].expand(3, 6, 9, 10)):
        assert_same_bits(ops.box_blur(x, backend=backend), ops.box_blur(x.contiguous(), backend=backend))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_changes_no_bit(threads):
    x = torch.randn(3, 20, 57, 59)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        made = ops.box_blur(x, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert_same_bits(made, ops.box_blur(x, backend="reference"))


def test_opcheck_and_fullgraph(backend):
    x = arrange(torch.randn(2, 3, 4, 5), "channels_last").requires_grad_(True)
    torch.library.opcheck(torch.ops.fastadv.box_blur.default, (x, backend))
    torch.compiler.reset()
    compiled = torch.compile(lambda v: ops.box_blur(v * 2, backend=backend), fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x), ops.box_blur(x * 2, backend=backend))


def test_numpy_arrays():
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32)
    made = ops.box_blur(x)
    assert isinstance(made, np.ndarray)
    assert_same_bits(torch.from_numpy(made), ops.box_blur(torch.from_numpy(x)))


MISTAKES = [
    ({"x": None}, TypeError, "x: expected a torch.Tensor or a NumPy or CuPy array, got NoneType"),
    (
        {"x": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)},
        TypeError,
        r"x: expected dtype torch\.float32, torch\.bfloat16 or torch\.float16, got torch\.uint8",
    ),
    ({"x": torch.zeros(3, 4, 4)}, ValueError, r"x: expected a batch \(N, C, H, W\), got shape \(3, 4, 4\)"),
    ({"x": torch.zeros(1, 3, 4, 4), "backend": "gpu"}, ValueError, "backend: expected one of .*, got 'gpu'"),
    (
        {"x": torch.zeros(1, 3, 4, 4), "backend": "cuda"},
        backends.BackendUnavailable,
        "backend: expected one that can run box_blur on cpu, got 'cuda'",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change, error, message):
    with pytest.raises(error, match=message):
        ops.box_blur(**change)
