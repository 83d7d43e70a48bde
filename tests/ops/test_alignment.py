"""Memory that does not begin at a multiple of the size of its elements, as over the bytes of a file: refused."""

import math

import pytest
import torch

from fastadv import ops


def shifted(*shape, dtype=torch.float32, by=1):
    """Zeros that begin so many bytes behind a multiple of 64."""
    count = math.prod(shape)
    room = torch.zeros(count * dtype.itemsize + 128, dtype=torch.uint8)
    begin = -room.data_ptr() % 64 + by
    return torch.frombuffer(room.numpy(), dtype=dtype, offset=begin, count=count).view(shape)


def like(value):
    return torch.zeros(value.shape)


X, HALF, ROWS = (2, 3, 4, 5), torch.bfloat16, (2, 6)
CALLS = {
    "x": (4, lambda: ops.sign_step_(x := shifted(*X), like(x), like(x), alpha=0.1, eps=0.1, backend="cpu")),
    "grad": (
        *(2, lambda: ops.sign_step_(torch.zeros(X), shifted(*X, dtype=HALF), torch.zeros(X), alpha=0.1, eps=0.1)),
    ),
    "maps": (2, lambda: ops.average_pool([shifted(*X, dtype=HALF)], backend="cpu")),
    "features": (4, lambda: ops.centroid_distances([shifted(*ROWS, by=2)], [torch.ones(ROWS)], backend="cpu")),
    "centroids": (4, lambda: ops.centroid_distances([torch.ones(ROWS)], [shifted(*ROWS, by=3)], backend="cpu")),
    "labels": (
        *(8, lambda: ops.knn_score(torch.ones(ROWS), shifted(*ROWS, dtype=torch.int64, by=4), torch.zeros(2).long())),
    ),
    "blurred": (4, lambda: ops.box_blur(shifted(*X), backend="cpu")),
    "dropped": (4, lambda: ops.feature_dropout(shifted(*X), rate=0.5, seed=1, ids=torch.arange(2), tick=0, layer=0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_memory_that_is_not_aligned_is_refused(name):
    size, call = CALLS[name]
    expected = rf"tensor: expected memory that begins at a multiple of {size} bytes, got \d bytes more; pass its clone"
    with pytest.raises(ValueError, match=expected):
        call()


def test_a_clone_of_it_is_taken():
    assert ops.box_blur(shifted(*X).clone(), backend="cpu").eq(0).all()
