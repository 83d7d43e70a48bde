"""Declares operations: from the list of its arguments follow an operation's schema, checks and calls of its kernels.

The way of a call, ``sign_step_(x, ...)``:

1. the public function hands its arguments to ``call``: arrays are lent as tensors, each argument is checked and taken
   apart for the schema;
2. PyTorch's dispatcher looks after devices, ``torch.compile``, tensors without memory and the derivative;
3. ``kernel`` chooses the backend, and counts a new version of what is written;
4. ``native`` checks memory orders, copies what is read in another one, and hands addresses to ``cpu_<stem>`` or
   ``cuda_<stem>``; ``triton`` hands tensors to ``launch`` of ``kernels/triton/<stem>.py``; ``reference`` calls
   ``ops/reference/<stem>.py``.

These functions are generated when a module is imported, as :mod:`dataclasses` generates ``__init__``: a list of
arguments that every call went through would take longer than the kernel of a small batch. ``print(op.source)`` shows
them. This is the only user of ``torch.library``: ``define`` and ``impl`` cost about 4 µs a call, a mutating
``custom_op`` ten times as much.
"""

from __future__ import annotations

import importlib
import linecache
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.ops import checks, foreign, layout, random_key
from fastadv.ops.arguments import Argument

_LIBRARY = torch.library.Library("fastadv", "DEF")

#: Every operation by its name in ``torch.ops.fastadv``; the tests walk it.
OPERATIONS: dict[str, Op] = {}


class Op:
    """An operation: one that writes into its arguments, or one that returns new tensors.

    Args:
        name: in ``torch.ops.fastadv``; one that writes ends with an underscore.
        arguments: in the order of the public function, which is also the order for the kernels.
        stem: of its files and functions; None: the name.
        make: of one that returns tensors: empty ones of the right shape, type and strides, from the arguments of the
            schema. None: the operation writes and returns nothing.
        results: what the tensors of ``make`` are called in the kernels' expressions.
        sizes: expressions that the kernels take last.
        setup: ``setup(ctx, inputs, output)`` saves what ``backward`` needs; ``inputs`` are those of the schema.
        backward: ``backward(ctx, *gradients)`` gives the gradients of the first arguments; the others have none. None:
            the backward pass raises NotImplementedError.

    Attributes:
        call: The public side: arguments and backend; it raises for a wrong argument. One that writes also raises
            RuntimeError for a tensor that requires grad while gradients are recorded, written or read: there is no
            derivative, and a silent wrong one would be worse.
        dispatch: The operation itself, with the arguments of its schema.
        implementations: For every backend, a function of the schema's arguments but the last.
        source: The generated functions.
    """

    def __init__(
        self,
        name: str,
        *arguments: Argument,
        stem: str | None = None,
        make: Callable[..., Any] | None = None,
        results: tuple[str, ...] = ("out",),
        sizes: tuple[str, ...] = (),
        setup: Callable[..., None] | None = None,
        backward: Callable[..., tuple[Any, ...]] | None = None,
    ) -> None:
        self.name, self.arguments = name, arguments
        self.stem = stem or name.rstrip("_")
        self.results = results if make else ()
        _LIBRARY.define(self._schema())
        self.dispatch: Callable[..., Any] = getattr(torch.ops.fastadv, name).default
        self.source = self._source(sizes)
        part = name.rstrip("_").removeprefix(self.stem)  # "" or "_backward"
        self._functions = {backend: f"{backend}_{self.stem}{part}" for backend in ("cpu", "cuda")}
        specification = importlib.import_module(f"fastadv.ops.reference.{self.stem}")
        scope: dict[str, Any] = {
            **{"torch": torch, "backends": backends, "checks": checks, "foreign": foreign, "layout": layout},
            **{"random_key": random_key, "GRAD_TYPES": checks.GRAD_TYPES},
            **{"increment_version": torch.autograd.graph.increment_version},
            **{"NAME": name, "op": self.dispatch, "make": make, "specification": getattr(specification, name)},
        }
        for argument in arguments:
            scope |= argument.uses
        made = _compiled(f"<operation {name}>", self.source, scope)
        native, triton = made["native"], made["triton"]

        def cpu(*args: Any) -> Any:
            return native(self.compiled("cpu"), backends.on_cpu(), *args)

        def cuda(*args: Any) -> Any:
            device = _first(args).device
            with torch.cuda.device(device):
                where = (device.index, torch.cuda.current_stream().cuda_stream)
                return native(self.compiled("cuda"), where, *args)

        def in_triton(*args: Any) -> Any:
            kernels = importlib.import_module(f"fastadv.kernels.triton.{self.stem}")
            return triton(getattr(kernels, f"launch{part}"), *args)

        self.call: Callable[..., Any] = made["call"]
        self.implementations: dict[str, Callable[..., Any]] = {
            **{"reference": made["reference"], "cpu": cpu, "cuda": cuda, "triton": in_triton}
        }
        scope["implementations"] = self.implementations
        self._register(made["kernel"], make, setup, backward)
        backends.STEMS[name] = self.stem
        OPERATIONS[name] = self

    def compiled(self, backend: str) -> Callable[..., None]:
        """The function ``cpu_<stem>`` or ``cuda_<stem>`` of the compiled module."""
        function: Callable[..., None] = getattr(_native.module(), self._functions[backend])
        return function

    def _register(self, kernel: Any, make: Any, setup: Any, backward: Any) -> None:
        def empty(*args: Any) -> Any:
            return None if make is None else make(*args[:-1])

        def derivative(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
            if backward is None:
                # Without this, the result would require grad and the gradient would silently be missing.
                raise NotImplementedError(f"{self.name} has no derivative")
            made = backward(ctx, *gradients)
            return (*made, *(None,) * (len(self._slots()) + 1 - len(made)))

        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(self.name, kernel, key)
        torch.library.register_fake(f"fastadv::{self.name}", empty, lib=_LIBRARY)
        if make is not None:
            torch.library.register_autograd(f"fastadv::{self.name}", derivative, setup_context=setup, lib=_LIBRARY)

    def _schema(self) -> str:
        parts = ", ".join(argument.schema for argument in self.arguments if argument.schema)
        for letter in "abcdef"[: parts.count("(!)")]:
            parts = parts.replace("(!)", f"({letter}!)", 1)
        returned = {0: "()", 1: "Tensor"}.get(len(self.results), f"({', '.join('Tensor' for _ in self.results)})")
        return f"{self.name}({parts}, str backend) -> {returned}"

    def _slots(self) -> list[tuple[str, str]]:
        """Type and name of every argument of the schema but the last."""
        parts = [part for argument in self.arguments if argument.schema for part in argument.schema.split(", ")]
        return [(kind, name) for kind, name in (part.rsplit(" ", 1) for part in parts)]

    def _source(self, sizes: tuple[str, ...]) -> str:
        slots = self._slots()
        written = [name for kind, name in slots if "!" in kind]
        read = [name for kind, name in slots if kind.startswith("Tensor") and "!" not in kind]
        optional = [name for kind, name in slots if "?" in kind]
        names, first, returned = ", ".join(name for _, name in slots), slots[0][1], ", ".join(self.results)
        public = [name for argument in self.arguments for name in argument.public]

        def lines(part: str) -> list[str]:
            return [line for argument in self.arguments for line in getattr(argument, part)]

        def any_of(names: list[str], question: str) -> str:
            asked = [(f"{name} is not None and " if name in optional else "", question.format(name)) for name in names]
            return " or ".join(there + each for there, each in asked)

        pairs = f"({_labelled(written)}), ({_labelled(read)})"
        checked = [*lines("layout"), *([f"checks.not_shared({pairs})"] if written else [])]
        empty = f"make({names})"
        specification = f"specification({', '.join(lines('whole'))})"
        if len(self.results) == 1:
            specification = f"layout.arranged({specification}, {empty})"
        return _filled(
            (_CALL_IN_PLACE if written else _CALL) + _BEHIND_THE_DISPATCHER,
            public=", ".join(public),
            labels=repr(tuple(public)),
            targets=repr(tuple(written)),
            first=first,
            names=names,
            pairs=pairs,
            targets_named=_labelled(written),
            check=lines("check"),
            negated=any_of(written, "{}.is_neg()"),
            wants_gradient=any_of(written + read, "{}.requires_grad"),
            device=f"{first}[0].device" if "[]" in slots[0][0] else f"{first}.device",
            new_versions=[
                line
                for name in written
                for line in (f"if {any_of([name], 'not {}.is_inference()')}:", f"    increment_version({name})")
            ],
            prepare=[*checked, *([f"{returned} = {empty}"] if returned else []), *lines("ready")],
            filled=f"{self.results[0] if returned else first}.numel()",
            native=", ".join([*lines("native"), *sizes]),
            launch=", ".join([*lines("launch"), *sizes]),
            finish=[*lines("after"), *([f"return {returned}"] if returned else [])],
            checked=checked,
            specification=specification,
        )


_CALL = """
def call({public}, backend):
    {check}
    return op({names}, backend or 'auto')
"""

_CALL_IN_PLACE = """
def call({public}, backend):
    if foreign.is_array({first}):
        foreign.call(call, {labels}, ({public},), {targets}, backend)
        return {first}
    {check}
    # A compiled graph writes into a copy, and cannot trace the question.
    if not torch.compiler.is_compiling() and ({negated}):
        checks.refuse_negated(({targets_named}))
    if torch.is_grad_enabled() and ({wants_gradient}):
        checks.refuse_gradients(NAME, {pairs})
    op({names}, backend or 'auto')
    return {first}
"""

_BEHIND_THE_DISPATCHER = """
def kernel({names}, backend):
    made = implementations[backends.resolve(NAME, {device}, backend)]({names})
    {new_versions}
    return made

def native(function, where, {names}):
    {prepare}
    if {filled}:
        function({native}, *where)
    {finish}

def triton(launch, {names}):
    {prepare}
    if {filled}:
        launch({launch})
    {finish}

def reference({names}):
    {checked}
    return {specification}
"""


def _filled(template: str, **parts: str | list[str]) -> str:
    """The template with its parts; a list takes lines of its own."""
    made: list[str] = []
    for line in template.strip().splitlines():
        part = parts.get(line.strip().strip("{}"))
        if isinstance(part, list):
            indent = line[: line.index("{")]
            made += [indent + each for each in part]
        else:
            made.append(line.format(**parts))
    return "\n".join(made) + "\n"


def _labelled(names: Iterable[str]) -> str:
    """Pairs of the name in errors and the value."""
    return "".join(f"('{name.removesuffix('_each').removesuffix('_at')}', {name}), " for name in names)


def _compiled(file: str, source: str, scope: dict[str, Any]) -> dict[str, Any]:
    """The functions of a source, whose lines tracebacks show."""
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), scope)
    return scope


def _first(args: tuple[Any, ...]) -> Tensor:
    first = args[0]
    return first[0] if isinstance(first, list) else first
