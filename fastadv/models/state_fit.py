"""Which tensors of a checkpoint are a network's: found by the names and sizes that fit, not by a list of wrappers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastadv.models.tensor_content import CheckpointError

HEAD = "class_head."
Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
_DEPTH = 6  # of dicts in dicts
_PREFIXES = 3  # tried of each dict: those under which most names fit
_SHOWN = 3
_LONGEST = 160


@dataclass(frozen=True, kw_only=True)
class Group:
    """The tensors of one dict in a checkpoint.

    Attributes:
        path: the keys that lead to the dict.
        state: its tensors by name.
    """

    path: tuple[str, ...]
    state: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class FittedState:
    """Tensors by a network's names.

    Attributes:
        state: the tensors; those of a class head under ``class_head.``.
        names: the network's name of each -> the file's.
        outside: tensors of the same dict that lie outside of the prefix, by the file's names.
        prefix: what precedes the network's names in the file; "" if nothing does.
        path: the keys that lead to the dict in the file.
    """

    state: dict[str, Tensor]
    names: dict[str, str]
    outside: dict[str, Tensor]
    prefix: str
    path: tuple[str, ...]


def groups(content: Any) -> list[Group]:
    """The dicts of tensors in a checkpoint, also those in other dicts; values that are no tensors are left out."""
    found: list[Group] = []
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        path, value = waiting.pop(0)
        if not isinstance(value, Mapping):
            continue
        texts = {key: item for key, item in value.items() if isinstance(key, str)}
        state = {key: item for key, item in texts.items() if isinstance(item, Tensor)}
        if state:
            found.append(Group(path=path, state=state))
        if len(path) < _DEPTH:
            waiting.extend(((*path, key), item) for key, item in texts.items() if isinstance(item, Mapping))
    return found


def what_it_holds(content: Any) -> str:
    """What stands where tensors by name were expected, for an error."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__.lstrip('_')}"
    path: tuple[object, ...] = ()
    while isinstance(content, Mapping) and content and len(path) < _DEPTH:
        key = next((k for k, v in content.items() if isinstance(v, Mapping) and v), next(iter(content)))
        path, content = (*path, key), content[key]
    if isinstance(content, Mapping):
        return "an empty dict"
    return f"a {type(content).__name__.lstrip('_')} under {printed('.'.join(map(str, path)))!r}"


def fitting_state(
    content: Any, wanted: Mapping[str, Tensor], *, source: str, rename: Rename = lambda state: state
) -> FittedState:
    """The tensors of a checkpoint that are a network's.

    Dicts may lie in dicts, and names may have prefixes (``module.``, ``backbone.``, ``_orig_mod.``, several): the dict
    and the prefix under which names and sizes fit are taken. Where none fits, the best is given, for ``load_weights``
    to name what is wrong.

    Args:
        content: of :func:`fastadv.models.tensor_content.read_content`.
        wanted: the network's tensors by name.
        source: where the content comes from, for the error.
        rename: from published names to the network's.

    Raises:
        CheckpointError: there are no tensors, or two different states fit.
    """
    found = groups(content)
    if not found:
        raise CheckpointError(
            f"weights: expected a dict of tensors by name, got {source}, which holds {what_it_holds(content)}"
        )
    fits = [fit for group in found for fit in _fits(group, wanted, rename)]
    exact = [fit for fit in fits if _is_exact(fit, wanted)]
    for other in exact[1:]:
        if not _same(exact[0].state, other.state):
            raise CheckpointError(
                f"weights: expected one state that fits the model, got {source} with two, {_place(exact[0])} "
                f"and {_place(other)}; save one alone"
            )
    return exact[0] if exact else max(fits, key=lambda fit: (_matching(fit, wanted), -len(fit.outside)))


def only_state(content: Any, *, source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint where no network is known: its only dict of tensors, or the largest by far.

    The prefixes that torch's own wrappers leave on every name (``module.``, ``_orig_mod.``) are removed.

    Raises:
        CheckpointError: there are no tensors, or two dicts of as many.
    """
    found = sorted(groups(content), key=lambda group: -len(group.state))
    if not found:
        raise CheckpointError(
            f"weights: expected a dict of tensors by name, got {source}, which holds {what_it_holds(content)}"
        )
    if len(found) > 1 and len(found[0].state) == len(found[1].state) and not _same(found[0].state, found[1].state):
        first, second = ("the file itself" if not g.path else repr(".".join(g.path)) for g in found[:2])
        raise CheckpointError(
            f"weights: expected one dict of tensors, got {source} with two, {first} and {second}; save one alone"
        )
    state = found[0].state
    for _ in range(_DEPTH):
        for prefix in ("module.", "_orig_mod."):
            if all(key.startswith(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def problems(
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    names: Mapping[str, str] | None = None,
    outside: Mapping[str, Tensor] | None = None,
) -> str:
    """What keeps a state from being loaded, with the number and the first of each kind; "" if nothing does.

    Args:
        wanted: the network's tensors by name.
        state: the tensors there are.
        names: the file's names of them, where they differ.
        outside: further tensors, by the file's names.
    """
    called = names or {}
    shared = [k for k in wanted if k in state]
    unexpected = [f"{called.get(k, k)} {_size(v)}" for k, v in state.items() if k not in wanted]
    unexpected += [f"{k} {_size(v)}" for k, v in (outside or {}).items()]
    lists = {
        "missing": [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")],
        "unexpected": unexpected,
        "misshapen": [
            f"{called.get(k, k)} (expected {_size(wanted[k])}, got {_size(state[k])})"
            for k in shared
            if wanted[k].shape != state[k].shape
        ],
        "of the wrong type": [
            f"{called.get(k, k)} (expected {_kind(wanted[k])}, got {_kind(state[k])})"
            for k in shared
            if not _of_type(wanted[k], state[k])
        ],
    }
    return "; ".join(listed(word, found) for word, found in lists.items() if found)


def listed(word: str, found: list[str]) -> str:
    """``"5 missing: a, b, c, ... (2 more)"``."""
    more = f", ... ({len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    return f"{len(found)} {word}: {', '.join(map(printed, found[:_SHOWN]))}{more}"


def printed(text: str) -> str:
    """A name from a file, without what no terminal prints, and not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def _fits(group: Group, wanted: Mapping[str, Tensor], rename: Rename) -> Iterator[FittedState]:
    """The state under each prefix that comes into question; at least one."""
    seen: set[str] = set()
    for outer, base in _unwrapped(group.state):
        renamed: dict[str, Tensor] = {}
        names: dict[str, str] = {}
        twice: dict[str, Tensor] = {}
        for key, value in base.items():
            for new, tensor in rename({key: value}).items():
                if new in renamed:
                    twice[outer + key] = value
                else:
                    renamed[new], names[new] = tensor, outer + key
        for inner in _prefixes(renamed, wanted):
            if outer + inner in seen:
                continue
            seen.add(outer + inner)
            yield _under(inner, outer, renamed, names, twice, group.path)


def _under(
    inner: str,
    outer: str,
    renamed: dict[str, Tensor],
    names: dict[str, str],
    twice: dict[str, Tensor],
    path: tuple[str, ...],
) -> FittedState:
    state = {k[len(inner) :]: v for k, v in renamed.items() if k.startswith(inner)}
    outside = {k: v for k, v in renamed.items() if not k.startswith(inner)}
    called = {k[len(inner) :]: names[k] for k in renamed if k.startswith(inner)}
    if inner == "backbone." and set(outside) == {"head.weight", "head.bias"}:  # the state of a whole FaceModel
        for part in ("weight", "bias"):
            state[HEAD + part], called[HEAD + part] = outside[f"head.{part}"], names[f"head.{part}"]
        outside = {}
    return FittedState(
        state=state,
        names=called,
        outside={names[k]: v for k, v in outside.items()} | twice,
        prefix=outer + inner,
        path=path,
    )


def _unwrapped(state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state, and what is left of it without each further part that all of its names begin with."""
    removed = ""
    yield removed, state
    for _ in range(_DEPTH):
        first = next(iter(state)).partition(".")[0] + "."
        if not all(key.startswith(first) for key in state):
            return
        state = {key[len(first) :]: value for key, value in state.items()}
        removed += first
        yield removed, state


def _prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which most of the network's names occur."""
    counts: Counter[str] = Counter()
    for key in state:
        at = 0
        for _ in range(2 * _DEPTH):
            if key[at:] in wanted:
                counts[key[:at]] += 1
            at = key.find(".", at) + 1
            if not at:
                break
    return [prefix for prefix, _ in counts.most_common(_PREFIXES)] or [""]


def _is_exact(fit: FittedState, wanted: Mapping[str, Tensor]) -> bool:
    own = {k: v for k, v in fit.state.items() if not k.startswith(HEAD)}
    return not problems(wanted, own, outside=fit.outside)


def _matching(fit: FittedState, wanted: Mapping[str, Tensor]) -> int:
    return sum(1 + (fit.state[k].shape == v.shape) for k, v in wanted.items() if k in fit.state)


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        value.shape == second[key].shape and value.dtype == second[key].dtype and torch.equal(value, second[key])
        for key, value in first.items()
    )


def _place(fit: FittedState) -> str:
    return (
        repr(".".join((*fit.path, fit.prefix.rstrip("."))).strip(".")) if fit.path or fit.prefix else "the file itself"
    )


def _size(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _of_type(wanted: Tensor, got: Tensor) -> bool:
    plain = got.layout == torch.strided and not got.is_meta and not got.is_quantized
    return plain and wanted.is_floating_point() == got.is_floating_point() and wanted.is_complex() == got.is_complex()


def _kind(tensor: Tensor) -> str:
    if tensor.layout != torch.strided:
        return f"a sparse {tensor.dtype}"
    return "no values" if tensor.is_meta else str(tensor.dtype)
