"""The pyramid that P-Net sees: its levels, in strips, and the boxes of its windows."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv.models.mtcnn import pyramid
from fastadv.models.mtcnn.pyramid import WINDOW, boxes_of, levels_of
from fastadv.models.mtcnn.weights import load_cascade

SIDES = st.integers(12, 400)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from([0.6, 1.0, 0.25]), st.sampled_from([0.709, 0.5, 0.9]))
def test_levels_shrink_down_to_the_window(height, width, scale, factor):
    levels = levels_of(height, width, scale=scale, factor=factor)
    assert bool(levels) == (min(height, width) * scale >= WINDOW)
    for level, smaller in pairwise(levels):
        assert smaller.scale == level.scale * factor
    for level in levels:
        assert min(height, width) * level.scale >= WINDOW
        assert min(level.cells) >= 1
    if levels:
        assert min(height, width) * levels[-1].scale * factor < WINDOW


@pytest.mark.parametrize("size", [(90, 71), (61, 60), (41, 131), (250, 250)])
@pytest.mark.parametrize("pixels", [1, 900])
def test_strips_of_a_level_are_the_level(size, pixels, monkeypatch):
    monkeypatch.setattr(pyramid, "_STRIP", pixels)
    network = load_cascade(None, random_weights_seed=1).pnet.network()
    (level, *_) = levels_of(*size, scale=0.6, factor=0.709)
    x = torch.randn(1, 3, *level.size, generator=torch.Generator().manual_seed(0))
    parts = []
    for strip in level.strips:
        seen = level.seen(strip)
        parts.append(network(x[:, :, seen.start : seen.stop]))
        assert parts[-1].shape[2:] == (len(strip), level.cells[1])
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat(parts, 2), network(x), rtol=1e-4, atol=1e-5)


def test_boxes_of_windows_are_those_of_their_levels():
    levels = levels_of(120, 90, scale=12 / 20, factor=0.709)
    for level in levels:
        cells = torch.tensor([[0, 0], [level.cells[0] - 1, 3]])
        last = 2 * (level.cells[0] - 1)
        expected = torch.tensor([[1, 1, WINDOW, WINDOW], [7, last + 1, 6 + WINDOW, last + WINDOW]])
        boxes = boxes_of(cells, torch.tensor(level.scale).repeat(2))
        torch.testing.assert_close(boxes, (expected.float() / level.scale).floor())
