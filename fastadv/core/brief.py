"""Values as error messages show them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from numbers import Number

_LONGEST = 120


def brief(value: object) -> str:
    """A value in one short line: of a tensor or an array its shape and type, of a network its class.

    A plain value is shown as ``repr`` does, tuples, lists, dicts and dataclasses with what they hold, and what is too
    long is cut.
    """
    try:
        text = _brief(value)
    except (ValueError, RecursionError):  # an integer of too many digits, or lists in lists
        text = f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _brief(value: object) -> str:
    kind = type(value).__name__
    if value is None or isinstance(value, (str, bytes, type, Number)):
        return repr(value)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"a {kind} of {dtype} of shape {tuple(shape)}"
    if type(value) in (tuple, list):
        parts = ", ".join(map(_brief, value))  # type: ignore[call-overload]
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"  # type: ignore[arg-type]
    if type(value) is dict:
        return "{" + ", ".join(f"{_brief(key)}: {_brief(part)}" for key, part in value.items()) + "}"
    if is_dataclass(value):
        return f"{kind}({', '.join(f'{f.name}={_brief(getattr(value, f.name))}' for f in fields(value) if f.repr)})"
    text = repr(value)
    return kind if "\n" in text or "tensor(" in text or "array(" in text else text
