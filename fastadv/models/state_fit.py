"""Which tensors of a checkpoint are a network's: found by the names and sizes that fit, not by a list of wrappers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastadv.models.tensor_content import CheckpointError

HEAD = "class_head."
Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
_DEPTH = 6  # of dicts in dicts
_GROUPS = 10_000
_HOLDERS = (Mapping, list, tuple)
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
        outside: tensors of the same dict that are not the network's, by the file's names.
        prefix: what precedes the network's names in the file; "" if nothing does.
        path: the keys that lead to the dict in the file.
        heads: tensors of the same dict that look like a classifier of the training, by the file's names; left out.
    """

    state: dict[str, Tensor]
    names: dict[str, str]
    outside: dict[str, Tensor]
    prefix: str
    path: tuple[str, ...]
    heads: dict[str, Tensor] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where the tensors are, for a message."""
        path = ".".join((*self.path, self.prefix.rstrip("."))).strip(".")
        return repr(path) if path else "the file itself"


def groups(content: Any) -> list[Group]:
    """The dicts of tensors in a checkpoint, also those in other dicts and lists; other values are left out.

    Raises:
        CheckpointError: there are too many.
    """
    found: list[Group] = []
    seen: set[int] = set()
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    while waiting:
        path, value = waiting.popleft()
        if id(value) in seen or not isinstance(value, _HOLDERS):
            continue
        seen.add(id(value))
        listed = not isinstance(value, Mapping)
        parts = value if isinstance(value, Mapping) else {str(k): item for k, item in enumerate(value)}
        texts = {key: item for key, item in parts.items() if isinstance(key, str)}
        state = {key: item for key, item in texts.items() if isinstance(item, Tensor)}
        if state and not listed:
            found.append(Group(path=path, state=state))
            if len(found) > _GROUPS:
                raise CheckpointError(f"weights: expected at most {_GROUPS:,} dicts of tensors in a file, got more")
        if len(path) < _DEPTH:
            waiting.extend(((*path, key), item) for key, item in texts.items() if isinstance(item, _HOLDERS))
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
    and the prefix under which names and sizes fit are taken. Beside all of the network's tensors the dict may hold the
    classifier of the training (:func:`_is_head`), which is left out. Where none fits, the best is given, for
    ``load_weights`` to name what is wrong.

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
    fits = [_without_head(fit, wanted) for group in found for fit in _fits(group, wanted, rename)]
    exact = [fit for fit in fits if is_exact(fit, wanted)]
    for other in exact[1:]:
        if not _same(exact[0].state, other.state):
            raise CheckpointError(
                f"weights: expected one state that fits the model, got {source} with two, {exact[0].place} "
                f"and {other.place}; save one alone"
            )
    return exact[0] if exact else max(fits, key=lambda fit: (matching(fit, wanted), -len(fit.outside)))


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
    unexpected = sized({called.get(k, k): v for k, v in state.items() if k not in wanted} | dict(outside or {}))
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


def is_exact(fit: FittedState, wanted: Mapping[str, Tensor]) -> bool:
    """Whether a state is a network's, whole and with nothing else."""
    own = {k: v for k, v in fit.state.items() if not k.startswith(HEAD)}
    return not problems(wanted, own, outside=fit.outside)


def _without_head(fit: FittedState, wanted: Mapping[str, Tensor]) -> FittedState:
    """The fit without a classifier that lies beside all of the network's tensors."""
    others = [key for key in fit.state if key not in wanted and not key.startswith(HEAD)]
    extra = {fit.names[key]: fit.state[key] for key in others} | fit.outside
    kept = {key: value for key, value in fit.state.items() if key not in others}
    own = {key: value for key, value in kept.items() if key in wanted}
    if not extra or problems(wanted, own) or not _is_head(extra, _features(wanted)):
        return fit
    return replace(fit, state=kept, outside={}, heads=extra)


def _features(wanted: Mapping[str, Tensor]) -> int:
    """How many features a network gives: as many as its last layer has outputs."""
    return next((value.shape[0] for value in reversed([*wanted.values()]) if value.dim()), 0)


def _is_head(extra: Mapping[str, Tensor], features: int) -> bool:
    """Whether tensors may be a classifier of the training on the features, whatever its name and kind.

    Its weights are matrices of (classes, features) or the transpose; beside them there are single numbers (a scale, a
    margin, running means) and one number a class. Further layers, which would change the features, are none of these.
    """
    matrices = [tuple(value.shape) for value in extra.values() if value.dim() == 2 and features in value.shape]
    classes = {rows if columns == features else columns for rows, columns in matrices}
    return all(
        (value.dim() == 2 and features in value.shape)
        or value.numel() == 1
        or (value.dim() == 1 and value.shape[0] in classes)
        for value in extra.values()
    )


def matching(fit: FittedState, wanted: Mapping[str, Tensor]) -> int:
    """How well a state fits: a point for each of the network's names, and one for its size."""
    return sum(1 + (fit.state[k].shape == v.shape) for k, v in wanted.items() if k in fit.state)


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        value.shape == second[key].shape and value.dtype == second[key].dtype and torch.equal(value, second[key])
        for key, value in first.items()
    )


def sized(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors, each with its size."""
    return [f"{name} {_size(value)}" for name, value in tensors.items()]


def _size(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _of_type(wanted: Tensor, got: Tensor) -> bool:
    plain = got.layout == torch.strided and not got.is_meta and not got.is_quantized
    return plain and wanted.is_floating_point() == got.is_floating_point() and wanted.is_complex() == got.is_complex()


def _kind(tensor: Tensor) -> str:
    if tensor.layout != torch.strided:
        return f"a sparse {tensor.dtype}"
    return "no values" if tensor.is_meta else str(tensor.dtype)
