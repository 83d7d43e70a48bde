"""Feature dropout: one mask on every backend and in every memory order, from the published counter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv import backends, ops
from fastadv.ops import philox
from fastadv.testing.cases import SPECIALS, arrange
from fastadv.testing.feature_cases import FEATURE_CASES, FeatureCase
from fastadv.testing.tolerances import assert_same_bits

KEY = {"seed": 7, "ids": torch.tensor([3, 2**40 + 1, 3]), "tick": 4, "layer": 2}
# NumPy, in which Triton's interpreter computes, warns where a product overflows.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|underflow) encountered:RuntimeWarning")
LAYOUTS = ["contiguous", "channels_last", "columns", "offset"]


def draws_of(words):
    """Draw k of a block of bytes b: b[k] above b[k ^ 1] ^ b[((k ^ 1) + 4) % 16]."""
    b = [words[..., k // 4 :: 4] // 256 ** (k % 4) % 256 for k in range(16)]
    return torch.stack([b[k] * 256 + (b[k ^ 1] ^ b[((k ^ 1) + 4) % 16]) for k in range(16)], -1).flatten(-2)


def mask(shape, rate, **key):
    """Kept elements, from the words themselves: sixteen to a block of four."""
    size = torch.Size(shape[1:]).numel()
    words = philox.words(key["seed"], key["ids"], key["tick"], key["layer"], 4 * (size // 16 + 1), rounds=7)
    return (draws_of(words)[:, :size] >= round(rate * 2**16)).view(shape)


def test_any_two_draws_of_a_block_are_independent():
    # They are linear in the 128 bits of a block, so two of them take all 2^32 values equally often if the map to their
    # 32 bits has full rank.
    unit = torch.zeros(128, 4, dtype=torch.int64)
    unit[torch.arange(128), torch.arange(128) // 32] = 1 << torch.arange(128) % 32
    draws = draws_of(unit).tolist()  # what each bit of a block changes in the sixteen
    for a in range(16):
        for b in range(a):
            basis = {}
            for bit in draws:
                value = bit[a] << 16 | bit[b]
                while value and (high := value.bit_length()) in basis:
                    value ^= basis[high]
                if value:
                    basis[high] = value
            assert len(basis) == 32, (a, b)


@pytest.mark.parametrize("rate", [0.025, 0.1, 0.5])
def test_the_dropped_of_a_block_are_as_many_as_of_independent_draws(rate):
    blocks = 2**17
    key = {**KEY, "ids": KEY["ids"][:2]}
    dropped = (ops.feature_dropout(torch.ones(2, 16 * blocks), rate=rate, **key) == 0).view(-1, 16)
    exact = round(rate * 2**16) / 2**16
    counts = torch.bincount(dropped.sum(1), minlength=17).double()
    expected = torch.tensor(
        [2 * blocks * math.comb(16, n) * exact**n * (1 - exact) ** (16 - n) for n in range(17)], dtype=torch.float64
    )
    often = expected > 20
    chi_square = float(((counts - expected) ** 2 / expected)[often].sum())
    assert chi_square < int(often.sum()) + 5 * (2 * int(often.sum())) ** 0.5
    together = dropped.double().T @ dropped.double()
    pairs = together[~torch.eye(16, dtype=torch.bool)]
    mean = 2 * blocks * exact**2
    assert float((pairs - mean).abs().max()) < 5 * mean**0.5


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("case", FEATURE_CASES, ids=lambda case: case.name)
def test_every_backend_gives_the_bits_of_the_reference(case, rescale, target, sized):
    case = sized(case)
    x = case.make()
    expected = ops.feature_dropout(x, rate=0.3, rescale=rescale, backend="reference", **case.key())
    made = ops.feature_dropout(
        case.make(target.device), rate=0.3, rescale=rescale, backend=target.backend, **case.key(target.device)
    )
    assert_same_bits(made, expected)
    assert made.stride() == expected.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 6, 5, 7), (3, 4, 6, 6), (3, 5, 4, 6)])
def test_the_mask_belongs_to_the_logical_element(shape, layout, backend):
    x = arrange(torch.rand(shape) + 1, layout)
    made = ops.feature_dropout(x, rate=0.4, backend=backend, **KEY)
    assert_same_bits(made, torch.where(mask(shape, 0.4, **KEY), x, 0.0))
    assert_same_bits(made[0] != 0, made[2] != 0)  # one id, one mask
    assert not torch.equal(made[0] != 0, made[1] != 0)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("channels", [8, 31, 33, 48, 57, 512, 545])
@pytest.mark.parametrize("side", [(2, 2), (3, 1)])
def test_every_number_of_channels_side_by_side(channels, side, target):
    x = arrange(torch.rand(3, channels, *side) + 1, "channels_last", target.device)
    key = {**KEY, "ids": KEY["ids"].to(target.device)}
    made = ops.feature_dropout(x, rate=0.4, backend=target.backend, **key)
    assert_same_bits(made, torch.where(mask(x.shape, 0.4, **KEY), x.cpu(), 0.0))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("size", [1, 15, 127, 128, 129, 1000])
def test_every_number_of_elements_in_a_row(size, target):
    x = torch.rand(3, size) + 1
    key = {**KEY, "ids": KEY["ids"].to(target.device)}
    made = ops.feature_dropout(x.to(target.device), rate=0.4, backend=target.backend, **key)
    assert_same_bits(made, torch.where(mask(x.shape, 0.4, **KEY), x, 0.0))


def test_a_result_that_is_mapped_afresh():
    x = torch.ones(1, (32 << 18) + 4096)  # above 32 MiB: huge pages are asked for
    key = {**KEY, "ids": KEY["ids"][:1]}
    made = ops.feature_dropout(x, rate=0.25, backend="cpu", **key)
    assert_same_bits(made[:, :4096], ops.feature_dropout(x[:, :4096], rate=0.25, backend="cpu", **key))
    assert abs(float(made[:, -(1 << 20) :].mean()) - 0.75) < 5 * (0.1875 / 2**20) ** 0.5
    assert float(made.double().sum()) == int(mask(x.shape, 0.25, **key).sum())


def test_the_output_lies_as_the_input(backend):
    x = torch.rand(2, 3, 4, 5)
    key = {**KEY, "ids": KEY["ids"][:2]}
    assert ops.feature_dropout(x, rate=0.1, backend=backend, **key).is_contiguous()
    made = ops.feature_dropout(arrange(x, "channels_last"), rate=0.1, backend=backend, **key)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("poisoned")
def test_slices_and_expanded_maps_of_larger_ones(backend):
    whole = torch.randn(6, 6, 9, 10)
    ids = torch.arange(6)
    for x in (whole[::2], whole[:3, 1:4], whole[:3, ..., 2:7], whole[:3].flip(1), whole[:1].expand(3, 6, 9, 10)):
        made = ops.feature_dropout(x, rate=0.5, seed=1, ids=ids[::2], tick=0, layer=0, backend=backend)
        expected = torch.where(mask(x.shape, 0.5, seed=1, ids=ids[::2], tick=0, layer=0), x, 0.0)
        assert_same_bits(made, expected)


def test_what_is_dropped_is_zero_whatever_it_was(backend):
    x = torch.tensor([SPECIALS * 8, SPECIALS * 8])
    made = ops.feature_dropout(x, rate=0.5, backend=backend, **{**KEY, "ids": KEY["ids"][:2]})
    kept = mask(x.shape, 0.5, **{**KEY, "ids": KEY["ids"][:2]})
    assert_same_bits(made[~kept], torch.zeros(int((~kept).sum())))
    assert_same_bits(made[kept], x[kept])


def test_a_rate_of_zero_keeps_and_one_just_below_one_drops_all_but_the_largest_draw(backend):
    x = torch.randn(3, 500)
    assert_same_bits(ops.feature_dropout(x, rate=0.0, rescale=True, backend=backend, **KEY), x)
    assert not ops.feature_dropout(x, rate=1 - 2.0**-53, backend=backend, **KEY).any()
    many = torch.ones(3, 2**19)
    kept = int(ops.feature_dropout(many, rate=1 - 2.0**-53, **KEY).sum())
    assert 0 < kept < 5 * many.numel() / 2**16


def test_the_share_and_the_mean():
    x = torch.ones(8, 3, 64, 64)
    key = {**KEY, "ids": torch.arange(8)}
    made = ops.feature_dropout(x, rate=0.1, **key)
    assert abs(float((made == 0).double().mean()) - 0.1) < 5 * (0.09 / x.numel()) ** 0.5
    made = ops.feature_dropout(x, rate=0.1, rescale=True, **key)
    assert abs(float(made.double().mean()) - 1) < 0.01


def test_rescaling_multiplies_by_the_rounded_factor(backend):
    x = torch.randn(3, 99)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        made = ops.feature_dropout(x.to(dtype), rate=0.3, rescale=True, backend=backend, **KEY)
        wide = x.to(dtype).float() * torch.tensor(1 / 0.7)
        assert_same_bits(made, torch.where(mask(x.shape, 0.3, **KEY), wide, 0.0).to(dtype))


def test_seed_and_tick_as_tensors(backend):
    x = torch.randn(3, 50)
    ticks = torch.tensor([9, 4, 2**20 - 1])
    made = ops.feature_dropout(x, rate=0.5, backend=backend, **{**KEY, "seed": torch.tensor(7), "tick": ticks})
    for i, tick in enumerate(ticks.tolist()):
        alone = {**KEY, "ids": KEY["ids"][i : i + 1], "tick": tick}
        assert_same_bits(made[i : i + 1], ops.feature_dropout(x[i : i + 1], rate=0.5, backend=backend, **alone))
    one = ops.feature_dropout(x, rate=0.5, backend=backend, **{**KEY, "seed": torch.tensor([7]), "tick": ticks[1]})
    assert_same_bits(one, ops.feature_dropout(x, rate=0.5, backend=backend, **KEY))
    seed = {**KEY, "seed": 2**64 - 1}
    held = {**KEY, "seed": torch.tensor(-1)}
    options = {"rate": 0.5, "backend": backend}
    assert_same_bits(ops.feature_dropout(x, **options, **held), ops.feature_dropout(x, **options, **seed))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(LAYOUTS),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**20 - 1),
    st.integers(0, 2**12 - 1),
)
def test_any_key_and_shape(shape, layout, rate, seed, tick, layer):
    key = {"seed": seed, "ids": torch.arange(shape[0]) * 2**61, "tick": tick, "layer": layer}
    x = arrange(torch.rand(shape) + 1, layout)
    made = ops.feature_dropout(x, rate=rate, backend="cpu", **key)
    assert_same_bits(made, ops.feature_dropout(x, rate=rate, backend="reference", **key))
    assert bool(((made == 0) | (made == x)).all())


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_number_of_threads_changes_no_bit(threads, layout):
    x = arrange(torch.randn(3, 20, 57, 59), layout)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        made = ops.feature_dropout(x, rate=0.3, backend="cpu", **KEY)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(made, torch.where(mask(x.shape, 0.3, **KEY), x, 0.0))


def test_every_half_precision_value_is_rounded_as_pytorch_rounds(backend):
    # x * factor of all 65,536 patterns, with factors that reach ties, overflow and the subnormal numbers.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        for rate in (0.5, 1 / 3, 0.99):
            x = bits.view(dtype)[None]
            made = ops.feature_dropout(x, rate=rate, seed=0, ids=torch.tensor([1]), tick=0, layer=0, rescale=True)
            kept = mask(x.shape, rate, seed=0, ids=torch.tensor([1]), tick=0, layer=0)
            expected = (x.float() * torch.tensor(1 / (1 - rate))).to(dtype)
            assert_same_bits(made[kept], expected[kept])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_the_same_mask(layout, dtype, backend):
    x = arrange(torch.randn(3, 5, 6, 7).to(dtype), layout).requires_grad_(True)
    grad = torch.randn(3, 5, 6, 7).to(dtype)
    options = {"rate": 0.4, "rescale": True, "backend": backend}
    ops.feature_dropout(x, **options, **KEY).backward(grad)
    assert_same_bits(x.grad, ops.feature_dropout(grad, **options, **KEY))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_derivative_against_float64(backend):
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    key = {**KEY, "ids": KEY["ids"][:2]}

    def f(wide):
        # Linear, so a difference of any width is exact but for the float32 in between.
        return ops.feature_dropout(wide.float(), rate=0.4, rescale=True, backend=backend, **key).double()

    assert torch.autograd.gradcheck(f, x.requires_grad_(True), eps=1e-2, atol=1e-4)
    assert torch.autograd.gradgradcheck(f, x, eps=1e-2, atol=1e-4)


def test_a_tick_that_changes_before_the_backward_pass_is_noticed(backend):
    x = torch.randn(3, 8, requires_grad=True)
    tick = torch.tensor(4)
    loss = ops.feature_dropout(x, rate=0.5, backend=backend, **{**KEY, "tick": tick}).sum()
    tick += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck(backend):
    x = FeatureCase(shape=(3, 4, 4, 4), layout="channels_last").make().requires_grad_(True)
    op = torch.ops.fastadv.feature_dropout.default
    held = (KEY["ids"], torch.tensor(7), 0, torch.tensor([4, 5, 6]), 0, 2)
    for key in ((KEY["ids"], None, 7, None, 4, 2), held):
        torch.library.opcheck(op, (x, *key, 2**15, 2.0, backend))


def test_compiled_without_a_graph_break(backend):
    def f(x, tick):
        return ops.feature_dropout(x * 2, rate=0.5, backend=backend, **{**KEY, "tick": tick}) + 1

    torch.compiler.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for tick in (torch.tensor(4), torch.tensor(5), 3, 4, 6):
        x, y = (torch.linspace(-1, 1, 3 * 20).view(3, 20).requires_grad_(True) for _ in range(2))
        made, expected = compiled(x, tick), f(y, tick)
        assert_same_bits(made, expected)
        made.sum().backward()
        expected.sum().backward()
        assert_same_bits(x.grad, y.grad)


def test_numpy_arrays():
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    key = {**KEY, "ids": KEY["ids"].numpy(), "tick": np.array([4, 4, 4])}
    made = ops.feature_dropout(x, rate=0.5, **key)
    assert isinstance(made, np.ndarray)
    assert_same_bits(torch.from_numpy(made), ops.feature_dropout(torch.from_numpy(x), rate=0.5, **KEY))


MISTAKES = [
    ({"x": [1.0]}, TypeError, "x: expected a torch.Tensor or a NumPy or CuPy array, got list"),
    (
        {"x": torch.zeros(3, 4, dtype=torch.float64)},
        TypeError,
        r"x: expected dtype torch\.float32, torch\.bfloat16 or torch\.float16, got torch\.float64",
    ),
    ({"x": torch.tensor(1.0)}, ValueError, r"x: expected a batch \(N, \.\.\.\), got shape \(\)"),
    ({"rate": -0.1}, ValueError, r"rate: expected a number in \[0, 1\), got -0.1"),
    ({"rate": 1}, ValueError, r"rate: expected a number in \[0, 1\), got 1"),
    ({"rate": float("nan")}, ValueError, "rate: expected .*, got nan"),
    ({"seed": -1}, ValueError, r"seed: expected an integer in \[0, 2\*\*64\), got -1"),
    ({"seed": 2**64}, ValueError, "seed: expected .*, got 18446744073709551616"),
    (
        {"seed": torch.tensor([1, 2])},
        TypeError,
        r"seed: expected an int64 tensor of one element on cpu, like ids, got torch\.int64 \(2,\) on ",
    ),
    ({"seed": torch.tensor(1.0)}, TypeError, "seed: expected .*, got torch.float32"),
    ({"ids": [1, 2, 3]}, TypeError, r"ids: expected an int64 tensor \(N,\), got list"),
    ({"ids": torch.arange(3).int()}, TypeError, r"ids: expected .*, got torch.int32 \(3,\)"),
    ({"ids": torch.arange(4)}, ValueError, r"ids: expected shape \(3,\) on cpu, like x, got \(4,\) on cpu"),
    ({"ids": torch.arange(3, device="meta")}, ValueError, "ids: expected .*, got .* on meta"),
    ({"tick": -1}, ValueError, r"tick: expected an integer in \[0, 1048576\), got -1"),
    ({"tick": 2**20}, ValueError, "tick: expected .*, got 1048576"),
    (
        {"tick": torch.arange(2)},
        TypeError,
        r"tick: expected an int64 tensor \(3,\) or of one element on cpu, like ids, got torch\.int64 ",
    ),
    ({"tick": torch.zeros(3)}, TypeError, "tick: expected .*, got torch.float32"),
    (
        {"tick": torch.zeros((), dtype=torch.int64, device="meta")},
        TypeError,
        r"tick: expected .*, got torch.int64 \(\) on meta",
    ),
    ({"layer": 2**12}, ValueError, r"layer: expected an integer in \[0, 4096\), got 4096"),
    ({"layer": -1}, ValueError, "layer: expected .*, got -1"),
    ({"backend": "gpu"}, ValueError, "backend: expected one of reference, cpu, cuda, triton or 'auto', got 'gpu'"),
    (
        {"backend": "cuda"},
        backends.BackendUnavailable,
        "backend: expected one that can run feature_dropout on cpu, got 'cuda': it takes",
    ),
    ({"epsilon": 1}, TypeError, "epsilon"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    MISTAKES,
    ids=lambda value: str(next(iter(value), "")) if value.__class__ is dict else "",
)
def test_mistakes(change, error, message):
    with pytest.raises(error, match=message):
        ops.feature_dropout(**{"x": torch.zeros(3, 4), "rate": 0.5, **KEY, **change})
