"""One sentence for each image or embedding that is out of range."""

import math

import pytest
import torch

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.models.checks import check_embeddings, check_images


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (
            torch.full((1, 3, 2, 2), 255.0),
            ArgumentError,
            r"x: expected values in \[0, 1\], got .* 255\]; divide by 255",
        ),
        (torch.tensor([-1.0, 1.0]), ArgumentError, r"got values in \[-1, 1\]; the model subtracts mean"),
        (torch.tensor([0.5, math.nan]), ArgumentError, "got NaN"),
        (torch.tensor([0.5, math.inf]), ArgumentError, r"got values in \[0.5, inf\]"),
        (torch.tensor([0.5, -1e-6]), ArgumentError, r"got values in \[-1e-06, 0.5\]"),
        (torch.zeros(2, dtype=torch.uint8), ArgumentTypeError, r"got torch.uint8; use images.float\(\) / 255"),
        (torch.zeros(2, dtype=torch.bool), ArgumentTypeError, "got torch.bool$"),
        ([0.5], ArgumentTypeError, "got list"),
    ],
)
def test_images(images, error, text):
    with pytest.raises(error, match=text):
        check_images("x", images)


def test_images_that_are_in_range():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        check_images("x", torch.tensor([0.0, 0.5, 1.0], dtype=dtype))
    check_images("x", torch.empty(0, 3, 4, 4))


def test_embeddings():
    good = torch.eye(3)
    check_embeddings("targets", good)
    check_embeddings("targets", torch.cat([good, torch.zeros(1, 3)]), zero=True)
    with pytest.raises(ArgumentError, match="targets: expected finite .* got one with only zeros at row 3"):
        check_embeddings("targets", torch.cat([good, torch.zeros(1, 3)]))
    with pytest.raises(ArgumentError, match="got one with a value that is not finite at row 1"):
        check_embeddings("targets", torch.tensor([[1.0], [math.nan], [math.inf]]))
    with pytest.raises(ArgumentError, match="got one with a value that is not finite at row 0"):
        check_embeddings("guides", torch.full((1, 3), math.inf), zero=True)
