"""Streaming moments against NumPy, and whitening."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastadv.detection import Moments, whitening
from fastadv.detection import moments as module


def rows(count, width, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mix + offset


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 100))
def test_any_cut_gives_the_batch_result(sizes, width, seed):
    x = rows(sum(sizes), width, seed, offset=100.0)
    moments = Moments(width)
    for part in x.split(sizes):
        moments.add(part)
    assert moments.count == len(x)
    if len(x) == 0:
        assert not moments.mean.any()
        return
    wide = x.double()
    torch.testing.assert_close(moments.mean, wide.mean(0), rtol=1e-13, atol=1e-12)
    centred = wide - wide.mean(0)
    torch.testing.assert_close(moments.scatter, centred.T @ centred, rtol=1e-10, atol=1e-8)


def test_merged_parts_are_the_whole(monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 7)
    x = rows(60, 4)
    whole, first, second, third = (Moments(4) for _ in range(4))
    whole.add(x)
    first.add(x[:20])
    second.add(x[20:])
    first.merge(second)
    third.merge(first)
    for one in (first, third):
        assert one.count == 60
        torch.testing.assert_close(one.mean, whole.mean, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(one.scatter, whole.scatter, rtol=1e-12, atol=1e-12)


def test_a_mean_far_from_zero_does_not_cancel():
    x = rows(5000, 3, offset=3e4)  # in the form E[x^2] - E[x]^2, float32 would leave nothing
    moments = Moments(3)
    for part in x.split(100):
        moments.add(part)
    expected = np.cov(x.numpy().astype(np.float64), rowvar=False)
    np.testing.assert_allclose(moments.scatter.numpy() / 4999, expected, rtol=1e-9)


@pytest.mark.parametrize("dimensions", [6, 3, 1, 99])
def test_whitened_rows_have_identity_covariance(dimensions):
    x = rows(400, 6, offset=5.0)
    moments = Moments(6)
    moments.add(x)
    made = whitening(moments, dimensions)(x)
    kept = min(dimensions, 6)
    assert made.shape == (400, kept)
    assert made.dtype == torch.float32
    np.testing.assert_allclose(np.atleast_2d(np.cov(made.double().numpy(), rowvar=False)), np.eye(kept), atol=1e-5)
    torch.testing.assert_close(made.mean(0), torch.zeros(kept), rtol=0, atol=1e-5)


def test_the_axes_are_those_of_an_svd():
    x = rows(300, 5, offset=2.0)
    moments = Moments(5)
    for part in x.split(37):
        moments.add(part)
    made = whitening(moments, 3)
    centred = x.double().numpy() - x.double().numpy().mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    scaled = axes[:3].T / (singular[:3] / np.sqrt(299))
    scaled *= np.sign(np.take_along_axis(scaled, np.abs(scaled).argmax(0)[None], 0))
    np.testing.assert_allclose(made.matrix.numpy(), scaled, rtol=1e-8)


def test_axes_without_variance_are_left_out():
    flat = rows(50, 2) @ torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    moments = Moments(3)
    moments.add(flat)
    assert whitening(moments, 3).matrix.shape == (3, 2)


def test_mistakes():
    with pytest.raises(ValueError, match="width: expected 1 or more, got 0"):
        Moments(0)
    moments = Moments(2)
    with pytest.raises(ValueError, match="rows: expected two or more, to have a variance, got [01]"):
        whitening(moments, 1)
    for wrong, error, message in (
        ([[1.0, 2.0]], TypeError, "rows: expected a torch.Tensor, got list"),
        (torch.ones(1, 2).double(), TypeError, "rows: expected .*, got torch.float64"),
        (torch.ones(1, 3), ValueError, r"rows: expected shape \(any, 2\), got \(1, 3\)"),
        (torch.full((1, 2), torch.nan), ValueError, "rows: expected finite values, got NaN or infinity"),
        (torch.ones(1, 2, device="meta"), ValueError, "rows: expected cpu, the device of x, got meta"),
    ):
        with pytest.raises(error, match=message):
            moments.add(wrong)
    moments.add(torch.ones(4, 2))
    with pytest.raises(ValueError, match="rows: expected some that differ, got equal ones"):
        whitening(moments, 1)
    with pytest.raises(ValueError, match="dimensions: expected 1 or more, got 0"):
        whitening(moments, 0)
    with pytest.raises(ValueError, match="other: expected width 2, got 3"):
        moments.merge(Moments(3))
