"""Functions that are called with the modules of a network, for the time of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Hook = Callable[..., Any]


@contextmanager
def hooked(after: Iterable[tuple[nn.Module, Hook]], before: Iterable[tuple[nn.Module, Hook]] = ()) -> Iterator[None]:
    """While it lasts, functions are called with modules of a network, whatever ends it.

    Args:
        after: Modules, and what is called with (module, inputs, output) after each of their passes.
        before: The same with (module, inputs) before them.
    """
    with ExitStack() as stack:
        for module, hook in before:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        for module, hook in after:
            stack.callback(module.register_forward_hook(hook).remove)
        yield
