"""Registers operations with PyTorch. The only user of ``torch.library``.

``Library.define`` and ``impl`` cost about 4 µs a call, a mutating ``custom_op`` ten times as much. What
``custom_op`` would look after is done here, once: version counters, tensors that require grad, the choice of
the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastadv import backends
from fastadv.core.errors import ArgumentError

_LIBRARY = torch.library.Library("fastadv", "DEF")

Implementation = Callable[..., Any]

#: Every operation and its implementations; the tests walk it.
IMPLEMENTATIONS: dict[str, Mapping[str, Implementation]] = {}


def define_op(
    schema: str,
    implementations: Mapping[str, Implementation],
    *,
    fake: Callable[..., Any] | None = None,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., tuple[Any, ...]] | None = None,
) -> Callable[..., Any]:
    """Register an operation: one that writes into its arguments, or one that returns new tensors.

    Args:
        schema: in PyTorch's language; the first argument is a tensor or a list of tensors, the last one is
            ``str backend``, and the written ones are marked, as in ``Tensor(a!) x``.
        implementations: for every backend, a function of all arguments but the last.
        fake: of an operation that returns tensors: makes empty ones of the right shape, type and strides,
            from all arguments but the last. None: the operation writes and returns nothing.
        setup: ``setup(ctx, inputs, output)`` saves what ``backward`` needs; ``inputs`` are all arguments.
        backward: ``backward(ctx, *gradients)`` gives the gradients of the first arguments; the others have
            none. None: the backward pass raises NotImplementedError.

    Returns:
        The operation. One that writes raises RuntimeError for a tensor that requires grad while gradients are
        recorded, written or read: there is no derivative, and a silent wrong one would be worse.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    op = getattr(torch.ops.fastadv, name).default
    arguments = op._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    labels = {i: a.name.removesuffix("_each") for i, a in enumerate(arguments)}
    read = [i for i, a in enumerate(arguments) if written and i not in written and "Tensor" in str(a.type)]

    def kernel(*args: Any) -> Any:
        first = args[0][0] if isinstance(args[0], list) else args[0]
        made = implementations[backends.resolve(name, first.device, args[-1])](*args[:-1])
        for i in written:
            if args[i] is not None and not args[i].is_inference():
                torch.autograd.graph.increment_version(args[i])
        return made

    def empty(*args: Any) -> Any:
        return None if fake is None else fake(*args[:-1])

    def derivative(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        if backward is None:
            # Without this, the result would require grad and the gradient would silently be missing.
            raise NotImplementedError(f"{name} has no derivative")
        made = backward(ctx, *gradients)
        return (*made, *(None,) * (len(arguments) - len(made)))

    def call(*args: Any) -> Any:
        # A compiled graph writes into a copy, and cannot trace the question.
        for i in () if torch.compiler.is_compiling() else written:
            if args[i] is not None and args[i].is_neg():
                raise ArgumentError(
                    f"{labels[i]}: expected a tensor to write into, got a view that negates (the imaginary part of a "
                    "conjugate); pass resolve_neg() of it"
                )
        if written and torch.is_grad_enabled():
            for i in written:
                if args[i] is not None and args[i].requires_grad:
                    raise RuntimeError(
                        f"{name} writes into {labels[i]}, which requires grad, and has no derivative; "
                        "pass a detached tensor"
                    )
            for i in read:
                if args[i] is not None and args[i].requires_grad:
                    raise RuntimeError(
                        f"{name} reads {labels[i]}, which requires grad, and has no derivative; "
                        "pass a detached tensor, or call it under torch.no_grad()"
                    )
        return op(*args)

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"fastadv::{name}", empty, lib=_LIBRARY)
    if fake is not None:
        torch.library.register_autograd(f"fastadv::{name}", derivative, setup_context=setup, lib=_LIBRARY)
    IMPLEMENTATIONS[name] = implementations
    return call
