"""Random weights from a seed, without PyTorch's own random state, which is one for all threads."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset(
    {
        *("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"),
        *("trunc_normal_", "orthogonal_", "sparse_", "random_", "bernoulli_", "exponential_"),
        *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"),
    }
)


class Seeded(TorchFunctionMode):
    """In this block and thread, PyTorch's functions that take a generator draw from one of the block's own, on a CPU.

    They draw what they would after ``torch.manual_seed``. Functions that take no generator (``rand_like``, dropout)
    go on drawing from the process's.

    Args:
        seed: Of the block.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass the generator on."""
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in _DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)
