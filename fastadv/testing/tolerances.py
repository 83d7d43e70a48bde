"""How closely two results must agree, written once."""

from __future__ import annotations

import torch
from torch import Tensor

#: Largest relative difference from a float64 computation, by the type that was computed in.
RELATIVE: dict[torch.dtype, float] = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    """Raise AssertionError unless two tensors hold the same bits; any NaN equals any NaN.

    Devices differ in the payload of the NaN they make, so that is the one freedom.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype} != {expected.dtype}"
    a, b = actual.detach().cpu(), expected.detach().cpu()
    if a.is_floating_point():
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        same = (a.contiguous().view(bits) == b.contiguous().view(bits)) | (a.isnan() & b.isnan())
    else:
        same = a == b
    if not bool(same.all()):
        first = (~same).nonzero()[0].tolist()
        where = tuple(first)
        count = int((~same).sum())
        raise AssertionError(f"{what}: {count} elements differ; at {first}: {a[where].item()!r} != {b[where].item()!r}")
