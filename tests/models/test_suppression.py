"""Non-maximum suppression in tensors against the plain greedy loop."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastadv.models.mtcnn import suppression
from fastadv.models.mtcnn.suppression import nms, nms_on_grid, overlap

seeds = st.integers(0, 2**32 - 1)


def share(a, b, of_smaller):
    width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    whole = min(areas) if of_smaller else areas[0] + areas[1] - width * height
    return width * height / whole if whole else np.nan


def greedy(boxes, scores, groups, threshold, of_smaller=False):
    """The indices that stay, by group, the best first; of equal scores the first is the better one."""
    stay = []
    for k in sorted(range(len(scores)), key=lambda k: (-scores[k], k)):
        same = (boxes[j] for j in stay if groups[j] == groups[k])
        if not any(share(boxes[k], other, of_smaller) > threshold for other in same):
            stay.append(k)
    return sorted(stay, key=lambda k: (groups[k], stay.index(k)))


def some(seed, most=40):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, most))
    corners = rng.integers(0, 12, (count, 2)) + rng.choice([0.0, 0.3], (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 9, (count, 2))], 1).astype(np.float32)
    return boxes, rng.integers(0, 6, count).astype(np.float32) / 6, rng.integers(0, 3, count)


@pytest.fixture(params=[3, 256], scope="module")
def block(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suppression, "_BLOCK", request.param)
        yield request.param


@given(seeds, st.sampled_from([0.2, 0.5, 0.7]), st.booleans())
def test_is_the_greedy_loop(block, seed, threshold, of_smaller):
    boxes, scores, groups = some(seed)
    got = nms(*map(torch.from_numpy, (boxes, scores, groups)), threshold, of_smaller=of_smaller)
    assert got.tolist() == greedy(boxes, scores, groups, threshold, of_smaller)


@given(seeds)
def test_the_order_of_the_boxes_does_not_matter(seed):
    boxes, _, groups = some(seed)
    rng = np.random.default_rng(seed)
    scores, order = rng.permutation(len(boxes)).astype(np.float32), rng.permutation(len(boxes))
    one = nms(*map(torch.from_numpy, (boxes, scores, groups)), 0.4)
    other = nms(*(torch.from_numpy(values[order]) for values in (boxes, scores, groups)), 0.4)
    assert torch.from_numpy(order)[other].tolist() == one.tolist()


def test_a_box_that_went_removes_none():
    """In a row of boxes in which each overlaps the next one, every second stays."""
    left = torch.arange(1000.0)[:, None] * 4
    boxes = torch.cat((left, torch.zeros_like(left), left + 10, torch.full_like(left, 10)), 1)
    got = nms(boxes, -left[:, 0], torch.zeros(1000, dtype=torch.int64), 0.3)
    assert got.tolist() == list(range(0, 1000, 2))


def test_overlap_in_closed_form():
    a, b = torch.tensor([0.0, 0, 4, 4]), torch.tensor([2.0, 0, 4, 8])
    assert float(overlap(a, b)) == pytest.approx(8 / 24)
    assert float(overlap(a, b, of_smaller=True)) == 8 / 16
    assert float(overlap(a, b + 10)) == 0


@given(seeds, st.floats(0.02, 1))
def test_on_the_grid_of_pnet_it_is_the_same(seed, scale):
    rng = np.random.default_rng(seed)
    shapes = [tuple(map(int, rng.integers(1, 9, 2))) for _ in range(2)]
    cells = [np.insert(np.argwhere(rng.random(shape) < rng.random()), 0, k, axis=1) for k, shape in enumerate(shapes)]
    cells = torch.from_numpy(np.concatenate(cells))
    corner = 2 * cells[:, [2, 1]].float()
    boxes = torch.cat((((corner + 1) / scale).floor(), ((corner + 12) / scale).floor()), 1)
    scores = torch.from_numpy(rng.integers(0, 5, len(cells)).astype(np.float32))
    got = nms_on_grid(cells, boxes, scores, shapes)
    assert got.tolist() == sorted(nms(boxes, scores, cells[:, 0], 0.5).tolist())
