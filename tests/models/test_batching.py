"""`fixed_batches`: one shape, whatever the number of images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastadv.models import fixed_batches


@given(count=st.integers(1, 20), size=st.integers(1, 9))
def test_every_call_has_the_size_and_the_order_is_kept(count: int, size: int) -> None:
    images = torch.arange(count * 2, dtype=torch.float32).reshape(count, 2)
    sizes: list[int] = []

    def function(chunk: Tensor) -> Tensor:
        sizes.append(chunk.shape[0])
        return chunk * 2

    assert torch.equal(fixed_batches(function, images, size), images * 2)
    assert sizes == [size] * -(-count // size)


def test_filled_up_by_the_last_image() -> None:
    seen: list[Tensor] = []
    fixed_batches(lambda x: seen.append(x) or x, torch.tensor([[1.0], [2.0], [3.0]]), 2)  # type: ignore[func-returns-value]
    assert torch.equal(seen[1], torch.tensor([[3.0], [3.0]]))


def test_layout_is_kept() -> None:
    layouts: list[bool] = []

    def function(chunk: Tensor) -> Tensor:
        layouts.append(chunk.is_contiguous(memory_format=torch.channels_last))
        return chunk.sum((1, 2, 3))

    fixed_batches(function, torch.rand(5, 3, 4, 4).contiguous(memory_format=torch.channels_last), 2)
    assert layouts == [True] * 3


def test_no_gradient() -> None:
    images = torch.rand(3, 2, requires_grad=True)
    assert not fixed_batches(lambda x: x * 2, images, 2).requires_grad


def test_refusals() -> None:
    with pytest.raises(ValueError, match="size: expected an integer of at least 1, got 0"):
        fixed_batches(lambda x: x, torch.rand(3, 2), 0)
    with pytest.raises(ValueError, match=r"images: expected at least one image, got shape \(0, 2\)"):
        fixed_batches(lambda x: x, torch.rand(0, 2), 4)
    with pytest.raises(ValueError, match=r"function: expected 2 rows, got shape \(\)"):
        fixed_batches(lambda x: x.sum(), torch.rand(3, 2), 2)
