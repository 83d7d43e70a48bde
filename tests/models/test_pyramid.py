"""The sheets that P-Net sees: small levels side by side give what each gives alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv.models.mtcnn.pyramid import WINDOW, levels_of, sheets_of
from fastadv.models.mtcnn.weights import load_cascade

SIDES = st.integers(12, 400)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from([0.6, 1.0, 0.25]), st.sampled_from([0.709, 0.5, 0.9]))
def test_each_level_is_on_one_sheet_apart_from_the_others(height, width, scale, factor):
    levels = levels_of(height, width, scale=scale, factor=factor)
    sheets = sheets_of(levels, 2**14)
    assert [level for sheet in sheets for level in sheet.levels] == levels
    for sheet in sheets:
        covered = np.zeros(sheet.size, int)
        for level, (row, column) in zip(sheet.levels, sheet.corners, strict=True):
            assert row % 2 == column % 2 == 0
            assert row + level.size[0] <= sheet.size[0]
            assert column + level.size[1] <= sheet.size[1]
            covered[row : row + level.size[0], column : column + level.size[1]] += 1
        assert covered.max() == 1
        owner = sheet.level_at(range(sheet.cells[0])).numpy()
        counts = np.bincount(owner[owner >= 0], minlength=len(sheet.levels))
        assert counts.tolist() == [rows * columns for rows, columns in (level.cells for level in sheet.levels)]
        for k in range(len(sheet.levels)):  # nobody else's window within five cells
            rows, columns = np.nonzero(owner == k)
            near = owner[max(rows.min() - 4, 0) : rows.max() + 5, max(columns.min() - 4, 0) : columns.max() + 5]
            assert set(near.ravel().tolist()) <= {k, -1}


@pytest.mark.parametrize("size", [(90, 71), (61, 60), (41, 131), (250, 250)])
def test_a_window_scores_the_same_beside_other_levels(size):
    pnet = load_cascade(None, random_weights_seed=1).pnet
    levels = levels_of(*size, scale=0.6, factor=0.709)
    (sheet,) = sheets_of(levels, 2**20)
    assert len(sheet.levels) == len(levels) > 1
    pictures = [
        torch.randn(1, 3, *level.size, generator=torch.Generator().manual_seed(k)) for k, level in enumerate(levels)
    ]
    seen = torch.zeros(1, 3, *sheet.size)
    for part, (row, column) in zip(pictures, sheet.corners, strict=True):
        seen[:, :, row : row + part.shape[2], column : column + part.shape[3]] = part
    with torch.no_grad():
        together, owner = pnet.evidence(pnet(seen, sheet.fences))[0], sheet.level_at(range(sheet.cells[0]))
        assert torch.isfinite(together[owner >= 0]).all()
        for k, part in enumerate(pictures):
            alone = pnet.evidence(pnet(part))[0]
            torch.testing.assert_close(together[owner == k], alone.flatten(), rtol=1e-4, atol=1e-5)


def test_boxes_of_windows_are_those_of_their_levels():
    levels = levels_of(120, 90, scale=12 / 20, factor=0.709)
    (sheet,) = sheets_of(levels, 2**20)
    for k, (level, (row, column)) in enumerate(zip(sheet.levels, sheet.corners, strict=True)):
        cells = torch.tensor([[row // 2, column // 2], [row // 2 + level.cells[0] - 1, column // 2]])
        boxes = sheet.boxes(cells, torch.tensor([k, k]))
        last = 2 * (level.cells[0] - 1)
        expected = [[1, 1, WINDOW, WINDOW], [1, last + 1, WINDOW, last + WINDOW]]
        torch.testing.assert_close(boxes, (torch.tensor(expected, dtype=torch.float32) / level.scale).floor())
