"""Summed pictures and resampled windows: PyTorch's results, and the same bits whoever computes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastadv import _native, backends
from fastadv.ops.face_windows import area_means, summed_area_

numbers = st.integers(1, 40)
needs_native = pytest.mark.skipif(not _native.has("cpu_area_means"), reason="needs the compiled module")


def summed(pictures, backend=None):
    """Tables of (H, W, 3) pictures one behind the other, and where each is."""
    tables, placed, first = [], [], 0
    for picture in pictures:
        height, width = picture.shape[:2]
        table = torch.full(((height + 1) * (width + 1), 4), 7, dtype=torch.int32)
        summed_area_(torch.from_numpy(picture.astype(np.uint8)), table, backend=backend)
        tables.append(table)
        placed.append((first, width + 1))
        first += len(table)
    return torch.cat(tables), placed


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(numbers, numbers), transposed=st.booleans())
def test_tables_are_the_sums(shape, transposed):
    picture = np.random.default_rng(5).integers(0, 256, (*shape, 3))
    picture = picture.transpose(1, 0, 2) if transposed else picture
    expected = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1, 4), np.int64)
    expected[1:, 1:, :3] = picture.cumsum(0).cumsum(1)
    for backend in (None, "reference"):
        assert np.array_equal(summed([picture], backend)[0].numpy(), expected.reshape(-1, 4))


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4),
    size=st.tuples(numbers, numbers),
    data=st.data(),
)
def test_area_means_are_those_of_interpolate(shapes, size, data):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*shape, 3)) for shape in shapes]
    table, placed = summed(pictures)
    boxes = []
    for height, width in shapes:
        left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        boxes.append((left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))))
    begin = data.draw(st.integers(0, size[0] - 1))
    rows = range(begin, data.draw(st.integers(begin + 1, size[0])))
    windows = torch.tensor([(*place, *box) for place, box in zip(placed, boxes, strict=True)])
    found = area_means(table, windows, size, rows)
    assert found.shape == (len(shapes), 3, len(rows), size[1])
    assert torch.equal(found, area_means(table, windows, size, rows, backend="reference"))
    for picture, (left, top, right, bottom), made in zip(pictures, boxes, found, strict=True):
        part = torch.from_numpy(picture[top:bottom, left:right]).permute(2, 0, 1)[None].double()
        expected = (F.interpolate(part, size, mode="area")[0, :, rows.start : rows.stop] - 127.5) / 128
        torch.testing.assert_close(made.double(), expected, atol=1e-6, rtol=0)


def test_sums_may_wrap():
    picture = np.full((4200, 4100, 3), 255)  # 4.4e9 in all
    table, placed = summed([picture])
    windows = torch.tensor([[*placed[0], 0, 1000, 4100, 2000], [*placed[0], 4000, 4100, 4100, 4200]])
    found = area_means(table, windows, (3, 2), range(3))
    torch.testing.assert_close(found, torch.full((2, 3, 3, 2), 127.5 / 128), atol=1e-6, rtol=0)


@needs_native
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(monkeypatch):
    rng = np.random.default_rng(3)
    table, placed = summed([rng.integers(0, 256, (300, 200, 3))])
    given = torch.tensor([[*placed[0], 3, 5, 190, 290]])
    windows = area_means(table, given, (250, 190), range(250), backend="reference")
    for isa in range(backends.cpu_isa() + 1):
        for threads in (1, 3):
            monkeypatch.setattr(backends, "on_cpu", lambda given=(threads, isa): given)
            assert torch.equal(area_means(table, given, (250, 190), range(250), backend="cpu"), windows)


TABLE = torch.zeros(30, 4, dtype=torch.int32)
WINDOW = torch.tensor([[0, 6, 0, 0, 5, 4]])
PICTURE = torch.zeros(4, 5, 3, dtype=torch.uint8)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda b: summed_area_(PICTURE, TABLE[:29], backend=b), r"table: expected 30 contiguous rows of 4, got \(29"),
        (lambda b: summed_area_(PICTURE, TABLE.T.contiguous().T, backend=b), "table: expected 30 contiguous rows of 4"),
        (lambda b: summed_area_(PICTURE[..., :2], TABLE, backend=b), r"picture: expected shape \(H, W, 3\), got"),
        (lambda b: summed_area_(PICTURE.float(), TABLE, backend=b), "picture: expected a tensor of torch.uint8, got"),
        (lambda b: area_means(TABLE, WINDOW[:, :4], (2, 2), range(2), backend=b), "windows: expected"),
        (lambda b: area_means(TABLE, WINDOW.int(), (2, 2), range(2), backend=b), "windows: expected"),
        (lambda b: area_means(TABLE.long(), WINDOW, (2, 2), range(2), backend=b), "table: expected"),
        (lambda b: area_means(TABLE, WINDOW, (0, 2), range(0), backend=b), "rows: expected some of the rows of a size"),
        (lambda b: area_means(TABLE, WINDOW, (2, 2), range(3), backend=b), "rows: expected some of the rows of a size"),
    ],
)
def test_what_cannot_be_is_refused(call, text, backend):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=text):
        call(backend)


def test_a_backend_that_cannot_run_is_refused():
    with pytest.raises(ValueError, match="backend: expected 'reference', 'cpu' or None, got 'triton'"):
        area_means(TABLE, WINDOW, (2, 2), range(2), backend="triton")
    with pytest.raises(backends.BackendUnavailable, match="it takes CPU tensors"):
        area_means(TABLE.to("meta"), WINDOW.to("meta"), (2, 2), range(2), backend="cpu")


@needs_native
@pytest.mark.parametrize(
    "window",
    [
        (0, 6, 0, 0, 6, 4),
        (0, 6, 0, 0, 5, 5),
        (0, 6, -1, 0, 5, 4),
        (0, 6, 2, 0, 2, 4),
        (0, 6, 0, 3, 5, 2),
        (-1, 6, 0, 0, 5, 4),
        (30, 6, 0, 0, 5, 4),
        (0, 2**32, 0, 0, 5, 2**32),
    ],
)
def test_a_window_outside_of_its_picture_is_refused(window):
    with pytest.raises(ValueError, match="windows: expected rectangles inside of their pictures, got another at row 0"):
        area_means(TABLE, torch.tensor([window]), (2, 2), range(2))
