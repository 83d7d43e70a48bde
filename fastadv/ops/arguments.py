"""The kinds of arguments that operations declare: what each one contributes to the functions of an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fastadv.ops import random_key

#: What the kernels take last, as expressions: the number of images, and of the elements of one.
IMAGES_AND_SIZE = ("x.shape[0]", "x.numel() // x.shape[0]")
#: Images, channels, pixels of a channel, and 1 where they are channels-last.
BATCH_SIZES = ("*layout.sizes(x)",)


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument, as lines and expressions of the functions that :class:`fastadv.ops.declaration.Op` generates.

    They may use the names of ``public`` and ``schema``, those of earlier arguments and of the results (``out``), the
    modules ``torch``, ``checks``, ``foreign``, ``layout`` and ``random_key``, ``GRAD_TYPES``, and ``uses``.

    Attributes:
        kind: The function that made it; the tests choose values by it, and by ``dtype``.
        public: Its names in the public function; more than one where they are checked together.
        schema: What PyTorch's schema holds of it; a tensor that is written is marked as in ``Tensor(!) x``.
        check: Lines of the public side: raise for a wrong value, and assign what the schema names.
        layout: Lines behind the dispatcher that raise for a wrong memory order. Not among ``check``, since
            ``torch.compile`` may hand over other strides than it traced.
        ready: Lines that copy what a kernel cannot read as it is.
        after: Lines behind the call of a kernel.
        whole: Expressions for the reference, which takes no kernel's ``ready``.
        native: Expressions for the compiled function.
        launch: Expressions for the Triton launcher.
        uses: What the lines name beside these.
    """

    kind: str
    dtype: torch.dtype = torch.float32
    public: tuple[str, ...] = ()
    schema: str = ""
    check: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    native: tuple[str, ...] = ()
    launch: tuple[str, ...] = ()
    uses: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def as_it_is(cls, names: tuple[str, ...], **parts: Any) -> Argument:
        """One whose values reference and kernels take as the schema holds them."""
        return cls(whole=names, native=names, launch=names, **parts)


def images(name: str, *, copied: bool = False) -> Argument:
    """The batch that an operation writes, float32 and dense; its first argument.

    ``copied``: through a copy where it is neither contiguous nor channels-last.
    """
    return _tensor(
        *("images", name, "Tensor(!)"),
        check=(f"checks.batch('{name}', {name}, checks.FLOAT, 2, '(N, C, H, W)')",),
        layout=(f"checks.dense('{name}', {name})",),
        ready=(f"written, {name} = {name}, layout.readable({name})",) if copied else (),
        after=(f"if {name} is not written:", f"    written.copy_({name})") if copied else (),
    )


def written(name: str, *, like: str = "x") -> Argument:
    """A float32 batch that is written, of the shape and in the memory order of ``like``."""
    check = (f"checks.like('{name}', {name}, {like})",)
    return _tensor("written", name, "Tensor(!)", check=check, layout=(f"checks.same_layout('{name}', {name}, {like})",))


def read(name: str, *, like: str = "x", half: bool = False, optional: bool = False) -> Argument:
    """A batch of the shape of ``like`` that is only read, copied where its memory order is another.

    ``half``: of any type of a gradient, float32 otherwise. ``optional``: None stands for ``like``.
    """
    check = f"checks.like('{name}', {name}, {like}, {'GRAD_TYPES' if half else 'checks.FLOAT'})"
    ready = f"checks.restrided({name}, {like})"
    return _tensor(
        *("read", name, "Tensor?" if optional else "Tensor"),
        check=(f"if {name} is not None:", f"    {check}") if optional else (check,),
        ready=(f"{name} = {like} if {name} is None else {ready}" if optional else f"{name} = {ready}",),
        codes=(f"GRAD_TYPES[{name}.dtype]",) if half else (),
    )


def each(name: str, *, like: str = "x", least: float | None = None) -> Argument:
    """A finite number not below ``least``, or a float32 tensor with one for each image."""
    return Argument(
        kind="each",
        public=(name,),
        schema=f"Tensor? {name}_each, float {name}",
        check=(f"{name}_each, {name} = checks.scalar_or_each('{name}', {name}, {like}, {least})",),
        ready=(f"{name}_each = checks.contiguous({name}_each)",),
        whole=(f"{name} if {name}_each is None else {name}_each",),
        native=(f"checks.address({name}_each)", name),
        launch=(f"{name}_each", name),
    )


def per_image(
    name: str, dtype: torch.dtype, *, like: str = "x", optional: bool = False, lent: bool = False
) -> Argument:
    """A tensor ``(N,)`` that is read, one value for each image."""
    lines = (lend(name), f"checks.an_array('{name}', {name})") if lent else ()
    return _tensor(
        *("per_image", name, "Tensor?" if optional else "Tensor"),
        check=(*lines, f"checks.per_image('{name}', {name}, {like}, {dtype})"),
        ready=(f"{name} = checks.contiguous({name})",),
        dtype=dtype,
    )


def counts(name: str, columns: int, *, like: str = "x") -> Argument:
    """Numbers for each image ``(N, columns)`` int64 that are added to, or None."""
    check = (f"checks.per_image('{name}', {name}, {like}, torch.int64, {columns})",)
    return _tensor("counts", name, "Tensor(!)?", check=check, layout=(f"checks.writable_rows('{name}', {name})",))


def number(name: str) -> Argument:
    """A finite number."""
    check = f"checks.finite('{name}', {name})"
    return Argument.as_it_is((name,), kind="number", public=(name,), schema=f"float {name}", check=(check,))


def pixel_range() -> Argument:
    """Two numbers ``lo <= hi``."""
    names = ("lo", "hi")
    check = "checks.pixel_range(lo, hi)"
    return Argument.as_it_is(names, kind="pixel_range", public=names, schema="float lo, float hi", check=(check,))


def choice(name: str, codes: Mapping[str, int]) -> Argument:
    """One of a few words, which the kernels know by a code."""
    known = f"{name.upper()}_CODES"
    return Argument(
        kind="choice",
        public=(name,),
        schema=f"str {name}",
        check=(f"checks.one_of('{name}', {name}, {known})",),
        whole=(name,),
        native=(f"{known}[{name}]",),
        launch=(f"{known}[{name}]",),
        uses={known: codes},
    )


def key(*, like: str = "x", lent: bool = False, optional: bool = False) -> Argument:
    """What random numbers are drawn from: ``seed``, ``ids``, ``tick`` and ``layer``.

    ``optional``: none are drawn where ``ids`` is None.
    """
    parts = ("seed", "ids", "tick") if lent else ()
    own = "ids, seed_at, seed, tick_each, tick, layer"
    checked, schema = f"random_key.for_batch({like}, seed, ids, tick, layer)", random_key.SCHEMA
    if optional:
        checked = f"random_key.NO_KEY if ids is None else {checked}"
        schema = schema.replace("Tensor ids", "Tensor? ids")
    return Argument(
        kind="key",
        public=("seed", "ids", "tick", "layer"),
        schema=schema,
        check=(*map(lend, parts), f"{own} = {checked}"),
        ready=("ids, tick_each = checks.contiguous(ids), checks.contiguous(tick_each)",),
        whole=(f"*random_key.whole({own})",),
        native=(f"*random_key.numbers({own})",),
        launch=("ids", "seed_at", "tick_each", "seed", "tick", "random_key.tick_step(tick_each)", "layer"),
    )


def feature_map(name: str, form: str, *, least: int, most: int | None = None) -> Argument:
    """A batch of any type of a gradient that is only read, with ``least`` to ``most`` dimensions.

    Copied where it is neither contiguous nor channels-last.
    """
    check = f"checks.batch('{name}', {name}, GRAD_TYPES, {least}, '{form}', {most})"
    ready = (f"{name} = layout.readable({name})",)
    return _tensor("feature_map", name, "Tensor", check=(lend(name), check), ready=ready)


def rows(name: str, dtype: torch.dtype, *, like: str | None = None, form: str = "(N, k)", least: int = 0) -> Argument:
    """A matrix that is only read, of the shape and on the device of ``like``, or with at least so many columns.

    Copied where the elements of a row do not lie side by side.
    """
    if like is None:
        shape, check = "(None, None)", f"checks.columns('{name}', {name}, {least}, '{form}')"
    else:
        shape, check = f"{like}.shape", f"checks.on_device('{name}', {name}, {like}, '{like}')"
    array = (lend(name), f"checks.an_array('{name}', {name})")
    return _tensor(
        *("rows", name, "Tensor"),
        check=(*array, f"checks.rows('{name}', {name}, {dtype}, {shape})", check),
        ready=(f"{name} = checks.row_major({name})",),
        codes=(f"{name}.stride(0)",),
        dtype=dtype,
    )


def result(name: str = "out", *, code_of: str | None = None) -> Argument:
    """Where among the others the kernels take a result, and behind it the code of the type of ``code_of``."""
    code = () if code_of is None else (f"GRAD_TYPES[{code_of}.dtype]",)
    return Argument(kind="result", native=(f"{name}.data_ptr()", *code), launch=(name,))


def lend(name: str) -> str:
    """A line of ``check`` that makes an array into a tensor; an operation that writes lends all its arrays itself."""
    return f"{name} = foreign.borrow('{name}', {name}, written=False)"


def _tensor(kind: str, name: str, schema: str, *, codes: tuple[str, ...] = (), **lines: Any) -> Argument:
    """A tensor; ``codes`` follow its address among the arguments of a compiled function."""
    address = f"checks.address({name})" if "?" in schema else f"{name}.data_ptr()"
    parts: dict[str, Any] = {"whole": (name,), "native": (address, *codes), "launch": (name,), **lines}
    return Argument(kind=kind, public=(name,), schema=f"{schema} {name}", **parts)
