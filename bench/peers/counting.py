"""What a run asks of a network and of the machine, counted from outside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
_PYTHON_READS = {"tolist", "cpu", "numpy"}
_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::detach"}


class Counter:
    """Images that went through a network forward and backward, and batches that went backward.

    Attributes:
        forwards: Images.
        backwards: Images.
        ticks: Batches backward; ``on_tick`` is called at each.
        inside: Whether the network is at work.
    """

    def __init__(self) -> None:
        self.forwards: float = 0
        self.backwards: float = 0
        self.ticks = self._depth = 0
        self.on_tick: Callable[[], object] = int
        self._backward = False

    @property
    def inside(self) -> bool:
        return self._depth > 0 or self._backward

    def per_image(self, images: int) -> None:
        """Divide what was counted by the images that it was counted on."""
        self.forwards, self.backwards = self.forwards / images, self.backwards / images

    @contextmanager
    def watching(self, owner: Any, *names: str) -> Iterator[Counter]:
        """Count the calls of these methods, whoever calls them; one inside another is one call."""
        before = {name: getattr(owner, name) for name in names}
        for name, method in before.items():
            setattr(owner, name, self._counted(method))
        try:
            yield self
        finally:
            for name, method in before.items():
                setattr(owner, name, method)

    def _counted(self, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(method)
        def call(itself: Any, images: Tensor, *more: Any) -> Tensor:
            outermost = self._depth == 0
            self._depth += 1
            try:
                output = method(itself, images, *more)
            finally:
                self._depth -= 1
            if outermost:
                self.forwards += len(images)
                if output.requires_grad:
                    output.register_hook(self._begins)
                    if images.requires_grad:
                        images.register_hook(self._ends)
            return output

        return call

    def _begins(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
        self.ticks += 1
        self.on_tick()
        self._backward = True

    def _ends(self, gradient: Tensor) -> None:
        self._backward = False


class Outside(TorchDispatchMode):
    """Operations outside of the network that a GPU would launch, and values that the host would wait for.

    Views and allocations launch nothing. Reads are ``item``, ``bool``, ``nonzero``, ``equal``, an index by a mask, and
    ``tolist``, ``cpu`` and ``numpy`` (by ``reads``, since on a CPU they reach no dispatcher).
    """

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter, self.operations, self.syncs = counter, 0, 0
        self.reads = _Reads(self)
        self._ticks: list[tuple[int, int]] = []
        counter.on_tick = lambda: self._ticks.append((self.operations, self.syncs))

    def per_tick(self) -> tuple[float | None, float | None]:
        """Operations and reads from one batch backward to the next; None where there was one batch only."""
        if len(self._ticks) < 2:
            return None, None
        first, last = self._ticks[0], self._ticks[-1]
        return (last[0] - first[0]) / (len(self._ticks) - 1), (last[1] - first[1]) / (len(self._ticks) - 1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.counter.inside:
            name = func._schema.name
            masked = name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])
            view = any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments)
            self.syncs += name in _READS or masked
            self.operations += not view and name not in _ALLOCATIONS and name not in _READS
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    def __init__(self, outside: Outside) -> None:
        super().__init__()
        self.outside = outside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.outside.counter.inside and getattr(func, "__name__", "") in _PYTHON_READS:
            self.outside.syncs += 1
        return func(*args, **(kwargs or {}))
