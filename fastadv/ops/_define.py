"""Registers operations with PyTorch. The only user of ``torch.library``.

``Library.define`` and ``impl`` cost about 4 µs a call, a mutating ``custom_op`` ten times as much. What
``custom_op`` would look after is done here, once: version counters, tensors that require grad, the choice of
the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastadv import backends

_LIBRARY = torch.library.Library("fastadv", "DEF")

Implementation = Callable[..., None]

#: Every operation and its implementations; the tests walk it.
IMPLEMENTATIONS: dict[str, Mapping[str, Implementation]] = {}


def define_op(schema: str, implementations: Mapping[str, Implementation]) -> Callable[..., None]:
    """Register an operation that writes into its arguments and returns nothing.

    Args:
        schema: in PyTorch's language; the first argument is a tensor, the last one is ``str backend``, and
            the written ones are marked, as in ``Tensor(a!) x``.
        implementations: for every backend, a function of all arguments but the last.

    Returns:
        The operation. It raises RuntimeError for a written tensor that requires grad while gradients are
        recorded: there is no derivative, and a silent wrong one would be worse.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    op = getattr(torch.ops.fastadv, name).default
    arguments = op._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    labels = [arguments[i].name for i in written]

    def kernel(*args: Any) -> None:
        implementations[backends.resolve(name, args[0].device, args[-1])](*args[:-1])
        for i in written:
            if args[i] is not None and not args[i].is_inference():
                torch.autograd.graph.increment_version(args[i])

    def fake(*args: Any) -> None:
        return None

    def call(*args: Any) -> None:
        if torch.is_grad_enabled():
            for i, label in zip(written, labels, strict=True):
                if args[i] is not None and args[i].requires_grad:
                    raise RuntimeError(
                        f"{name} writes into {label}, which requires grad, and has no derivative; "
                        "pass a detached tensor"
                    )
        op(*args)

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"fastadv::{name}", fake, lib=_LIBRARY)
    IMPLEMENTATIONS[name] = implementations
    return call
