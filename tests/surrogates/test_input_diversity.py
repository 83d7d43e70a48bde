"""Input diversity: what is drawn, what is kept, and that it hangs on the key only."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastadv.surrogates.input_diversity import InputDiversity
from fastadv.surrogates.key import StepKey
from fastadv.surrogates.warp import affine_warp

STILL = {"resize": (1.0, 1.0), "translate": 0.0, "rotate": 0.0, "scale": (1.0, 1.0)}


def key(count: int, *, seed: int = 7, tick: int = 3, first: int = 0) -> StepKey:
    return StepKey(seed=seed, ids=torch.arange(first, first + count), ticks=torch.full((count,), tick))


def faces(count: int, height: int = 112, width: int = 112) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def part(value: StepKey, rows: list[int]) -> StepKey:
    return StepKey(seed=value.seed, ids=value.ids[rows], ticks=value.ticks[rows])


def moved(value: InputDiversity, draws: int = 20_000, size: tuple[int, int] = (112, 96)) -> tuple[Tensor, Tensor]:
    """The maps from the image to the result: ``(K, 2, 2)`` and ``(K, 2)``, float64."""
    m = value.matrices(key(draws), size).double()
    inverse = torch.linalg.inv(m[:, :, :2])
    return inverse, -(inverse @ m[:, :, 2:]).squeeze(2)


def test_without_ranges_nothing_changes_by_a_bit():
    x = faces(4)
    assert torch.equal(InputDiversity(**STILL)(x, key(4)), x)


def test_with_probability_0_nothing_changes_by_a_bit():
    x = faces(4)
    assert torch.equal(InputDiversity(probability=0)(x, key(4)), x)


def test_probability():
    value, n = InputDiversity(probability=0.3), 4000
    m = value.matrices(key(n), (112, 112))
    kept = (m == torch.eye(2, 3)).flatten(1).all(1)
    # five standard deviations of a binomial share
    assert abs(float(kept.double().mean()) - 0.7) < 5 * math.sqrt(0.21 / n)
    x = faces(12)
    y, whole = value(x, key(12)), InputDiversity()(x, key(12))
    for i in range(12):
        assert torch.equal(y[i], x[i] if kept[i] else whole[i])
        assert not torch.equal(whole[i], x[i])


def uniform(values: Tensor, low: float, high: float) -> None:
    """The values fill the range, as evenly as a uniform sample does (Kolmogorov and Smirnov, one in a million)."""
    assert float(values.min()) >= low - 1e-4
    assert float(values.max()) <= high + 1e-4
    ordered = ((values - low) / (high - low)).sort().values
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    assert float((ordered - steps).abs().max()) < 2.7 / math.sqrt(len(values))


def test_resize_and_pad():
    linear, shift = moved(InputDiversity(**{**STILL, "resize": (0.8, 0.95)}))
    assert float(linear[:, 0, 1].abs().max()) == float(linear[:, 1, 0].abs().max()) == 0
    torch.testing.assert_close(linear[:, 0, 0], linear[:, 1, 1])
    ratio = linear[:, 0, 0]
    uniform(ratio, 0.8, 0.95)
    for axis, length in ((0, 96), (1, 112)):
        # the place of the smaller image on the canvas, from the one end to the other
        uniform(shift[:, axis] / ((1 - ratio) * length), -0.5, 0.5)


def test_a_ratio_above_1_crops():
    linear, shift = moved(InputDiversity(**{**STILL, "resize": (1.2, 1.2)}))
    uniform(shift[:, 0] / (0.2 * 96), -0.5, 0.5)
    torch.testing.assert_close(linear[0], 1.2 * torch.eye(2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_translate():
    linear, shift = moved(InputDiversity(**{**STILL, "translate": 0.1}))
    assert torch.equal(linear[0], torch.eye(2, dtype=torch.float64))
    uniform(shift[:, 0], -9.6, 9.6)
    uniform(shift[:, 1], -11.2, 11.2)


def test_rotate_and_scale():
    linear, shift = moved(InputDiversity(**{**STILL, "rotate": 30.0, "scale": (0.9, 1.2)}))
    assert float(shift.abs().max()) < 1e-4
    factor = torch.linalg.det(linear).sqrt()
    uniform(factor, 0.9, 1.2)
    uniform(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg(), -30, 30)
    turn = linear / factor[:, None, None]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(2, dtype=torch.float64).expand_as(turn), rtol=0, atol=1e-5)


def test_the_parts_compose():
    """A point goes through the resizing and its place, the scale and rotation, and the translation, in this order."""
    value = InputDiversity(resize=(0.7, 0.9), translate=0.2, rotate=40.0, scale=(0.8, 1.1))
    linear, shift = moved(value, 50)
    resized, place = moved(InputDiversity(**{**STILL, "resize": (0.7, 0.9)}), 50)
    turned, _ = moved(InputDiversity(**{**STILL, "rotate": 40.0, "scale": (0.8, 1.1)}), 50)
    _, translation = moved(InputDiversity(**{**STILL, "translate": 0.2}), 50)
    torch.testing.assert_close(linear, turned @ resized, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shift, (turned @ place[:, :, None])[:, :, 0] + translation, rtol=1e-4, atol=1e-4)


def test_is_the_warp_with_the_drawn_maps():
    value, x = InputDiversity(), faces(3, 40, 36)
    expected = affine_warp(x, value.matrices(key(3), (40, 36)), reach=3.0)
    assert torch.equal(value(x, key(3)), expected)


def test_gradient_reaches_every_part():
    """The backward pass looks far enough: the adjoint, for the widest ranges."""
    value = InputDiversity(resize=(0.5, 2.0), translate=0.3, rotate=180.0, scale=(0.5, 2.0))
    x = faces(24, 20, 20).double().requires_grad_()
    y = value(x, key(24))
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close((gradient * x).flatten(1).sum(1), (g * y).flatten(1).sum(1), rtol=1e-10, atol=1e-10)


def test_an_image_hangs_on_its_key_only():
    value, x, whole = InputDiversity(), faces(6, 50, 50), key(6)
    y = value(x, whole)
    for rows in ([2], [5, 0], [3, 4, 5, 0, 1, 2]):
        assert torch.equal(value(x[rows], part(whole, rows)), y[rows])
    for other in (key(6, tick=4), key(6, seed=8), key(6, first=100)):
        different = (value(x, other) != y).flatten(1).any(1)
        assert bool(different.all())


def test_images_at_different_ticks():
    value, x = InputDiversity(), faces(2, 30, 30)
    mixed = StepKey(seed=7, ids=torch.tensor([0, 1]), ticks=torch.tensor([3, 9]))
    got = value(x, mixed)
    assert torch.equal(got[0], value(x, key(2, tick=3))[0])
    assert torch.equal(got[1], value(x, key(2, tick=9))[1])


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("probability", 1.1),
        ("translate", -0.1),
        ("rotate", 181),
        ("resize", (0.0, 1.0)),
        ("resize", (1.0, 0.9)),
        ("resize", 0.9),
        ("scale", (0.5, 2.5)),
    ],
)
def test_refuses_ranges(field, wrong):
    with pytest.raises(ValueError, match=f"{field}: expected .*, got "):
        InputDiversity(**{field: wrong})


def test_refuses_keys_and_images():
    value, x = InputDiversity(), faces(2, 8, 8)
    with pytest.raises(TypeError, match="key: expected a StepKey, got int"):
        value(x, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"key: expected ids of shape \(2,\), one per image, got \(3,\)"):
        value(x, key(3))
    with pytest.raises(ValueError, match=r"images: expected shape \(N, C, H, W\), got \(3, 8, 8\)"):
        value(x[0], key(3))


@pytest.mark.gpu
def test_repeats_its_bits_and_is_captured_on_cuda():
    value = InputDiversity(rotate=20.0)
    x = faces(8).cuda().requires_grad_()
    ids, ticks = torch.arange(8, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")
    g = torch.randn(x.shape, device="cuda")

    def run() -> tuple[Tensor, Tensor]:
        y = value(x, StepKey(seed=1, ids=ids, ticks=ticks))
        return y, torch.autograd.grad(y, x, g)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = run()
    for tick in (0, 5, 11):
        ticks.fill_(tick)
        graph.replay()
        for got, expected in zip(captured, run(), strict=True):
            assert torch.equal(got, expected)
    host = value(x.detach().cpu(), StepKey(seed=1, ids=ids.cpu(), ticks=ticks.cpu()))
    torch.testing.assert_close(captured[0].cpu(), host, rtol=0, atol=1e-4)
