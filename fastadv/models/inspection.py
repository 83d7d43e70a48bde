"""What a weights file holds, which of the known architectures it fits, and whether it loads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastadv.core.content import file_content
from fastadv.core.notices import Notice
from fastadv.models.state_fit import FittedState, groups, is_exact, matching, problems, sized, what_it_holds
from fastadv.models.tensor_content import CheckpointError, read_content
from fastadv.models.zoo import fit_to, names, with_content

_LEAST = 0.5  # of an architecture's names and sizes that the nearest one must have


@dataclass(frozen=True, kw_only=True)
class Part:
    """The tensors of one dict of a file, or what else lies below a key.

    Attributes:
        path: the keys that lead there; "" for the file itself.
        tensors: their number.
        numbers: how many they hold.
        types: of them.
        read: whether the network's tensors are among them.
    """

    path: str
    tensors: int
    numbers: int
    types: tuple[str, ...]
    read: bool = False


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A weights file.

    Attributes:
        file: its path.
        form: what it is, in words.
        parts: its tensors.
        networks: the architectures whose tensors it holds, all of them and with their sizes.
        nearest: where there is none: the architecture that it is most like, or None.
        prefix: what precedes the network's names.
        left_out: a classifier beside the network, each tensor with its size.
        loads: whether the first of the networks loads.
        problem: why not; "" where it loads.
    """

    file: str
    form: str
    parts: tuple[Part, ...] = ()
    networks: tuple[str, ...] = ()
    nearest: str | None = None
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    loads: bool = False
    problem: str = ""


def inspect_file(path: str | os.PathLike[str]) -> Inspected:
    """Say what a file is, without running anything in it.

    Args:
        path: of any form and suffix.

    Raises:
        CheckpointError: there is no such file.
    """
    file = Path(path)
    form = file_content(file).what
    try:
        content = read_content(file)
    except CheckpointError as error:
        if not file.is_file():
            raise
        return Inspected(file=str(file), form=form, problem=str(error))
    fits: dict[str, tuple[FittedState, Mapping[str, Tensor]]] = {}
    problem = "its names and sizes are those of no architecture of 'fastadv models'"
    if not groups(content):
        problem = f"weights: expected a dict of tensors by name, got {file}, which holds {what_it_holds(content)}"
    for name in names() if groups(content) else ():
        try:
            fits[name] = fit_to(name, content, source=str(file))
        except CheckpointError as error:  # two states fit
            problem = str(error)
    whole = tuple(name for name, (fit, wanted) in fits.items() if is_exact(fit, wanted))
    best = whole[0] if whole else max(fits, key=lambda name: _share(*fits[name]), default=None)
    if best is None or (not whole and _share(*fits[best]) < _LEAST):
        return Inspected(file=str(file), form=form, parts=_parts(content, None), problem=problem)
    fit, wanted = fits[best]
    if whole:
        problem = _refusal(best, content, str(file))
    else:
        problem = f"of {best} {problems(wanted, fit.state, names=fit.names, outside=fit.outside)}"
    return Inspected(
        file=str(file),
        form=form,
        parts=_parts(content, fit),
        networks=whole,
        nearest=None if whole else best,
        prefix=fit.prefix,
        left_out=tuple(sized(fit.heads)),
        loads=not problem,
        problem=problem,
    )


def _share(fit: FittedState, wanted: Mapping[str, Tensor]) -> float:
    """The share of a network's names and sizes that a state has."""
    return matching(fit, wanted) / (2 * len(wanted))


def _refusal(name: str, content: Any, source: str) -> str:
    """Why a network does not load; "" where it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            with_content(name, content, source=source)
    except CheckpointError as error:
        return str(error)
    return ""


def _parts(content: Any, fit: FittedState | None) -> tuple[Part, ...]:
    """The dicts of tensors by name; and by key of the file what lies in other forms, as the state of an optimiser."""
    named = groups(content)
    parts = [
        _part(".".join(group.path), group.state.values(), read=fit is not None and group.path == fit.path)
        for group in named
    ]
    known = {id(tensor) for group in named for tensor in group.state.values()}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        others = [tensor for tensor in _tensors(value) if id(tensor) not in known]
        if others:
            parts.append(_part(str(key), others))
    return tuple(parts)


def _part(path: str, tensors: Iterable[Tensor], *, read: bool = False) -> Part:
    listed = list(tensors)
    return Part(
        path=path,
        tensors=len(listed),
        numbers=sum(tensor.numel() for tensor in listed),
        types=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in listed})),
        read=read,
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in dicts and lists, each once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
