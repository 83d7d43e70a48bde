"""What is asked of images and embeddings that come from outside: one sentence each, that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops.all_within import all_within


def check_images(argument: str, images: Tensor) -> None:
    """Refuse images that are no floating-point tensor, or hold a value outside of [0, 1] or no number.

    Waits for the device once where the images are on one.

    Args:
        argument: what the message calls them.
        images: of any shape.

    Raises:
        ArgumentTypeError: they are no floating-point tensor.
        ArgumentError: a value is out of range.
    """
    if not isinstance(images, Tensor):
        raise ArgumentTypeError(
            f"{argument}: expected a floating-point torch.Tensor with RGB values in [0, 1], got {type(images).__name__}"
        )
    if not images.is_floating_point():
        raise ArgumentTypeError(
            f"{argument}: expected a floating-point tensor with RGB values in [0, 1], got {images.dtype}"
            + ("; use images.float() / 255" if images.dtype == torch.uint8 else "")
        )
    if all_within(images, 0.0, 1.0):
        return
    low, high = (end.item() for end in torch.aminmax(images.detach()))
    if low != low or high != high:
        raise ArgumentError(f"{argument}: expected values in [0, 1], got NaN")
    hint = ""
    if low >= 0.0 and 2.0 < high <= 255.0:
        hint = "; divide by 255"
    elif -1.5 < low < -0.1 and high <= 1.5:
        hint = "; the model subtracts mean and divides by std itself, so give pixels"
    raise ArgumentError(f"{argument}: expected values in [0, 1], got values in [{low:g}, {high:g}]{hint}")


def check_embeddings(argument: str, rows: Tensor, *, zero: bool = False) -> None:
    """Refuse embeddings with a value that is not finite, or a row of zeros, which has no direction.

    Args:
        argument: what the message calls them.
        rows: ``(N, D)`` floating point.
        zero: whether rows of zeros are allowed: for features that are not normalised.

    Raises:
        ArgumentError: there is such a row; the message gives the first one's place.
    """
    finite = torch.isfinite(rows).all(1)
    bad = ~finite if zero else ~(finite & (rows != 0).any(1))
    places = bad.nonzero().flatten().tolist()
    if places:
        what = "only zeros" if bool(finite[places[0]]) else "a value that is not finite"
        wanted = "finite embeddings" if zero else "finite embeddings that are not zero"
        raise ArgumentError(f"{argument}: expected {wanted}, got one with {what} at row {places[0]}")
