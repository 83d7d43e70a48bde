"""Options of an attack by their names, as a command line has them: fields of its state machine and its surrogate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from fastadv.attacks.recipe import Recipe
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.nearest import meant
from fastadv.core.numbers import whole

_READ = ("int", "float", "bool", "str")
_NOT_FREE = ("name", "backend")  # what reports call it, and how it is computed: no part of the attack
_MARGINS = ("margin", "confidence")
# what other libraries call an option
_ELSEWHERE = {
    **dict.fromkeys(("alpha", "eps_step", "abs_stepsize", "lr"), ("step_size", "learning_rate")),
    **dict.fromkeys(("decay", "mu"), ("momentum",)),
    **dict.fromkeys(("kappa", "conf"), ("confidence", "margin")),
    **dict.fromkeys(("max_iter", "n_iter", "nb_iter", "iters", "num_steps"), ("steps", "inner_steps")),
    **dict.fromkeys(("early_stop", "return_early"), ("stop_at_success", "abort_early")),
}
_INNER = "attack"  # the field of an attack that runs another one
_OF_SURROGATE = {"gamma": "skip"}  # options that are a field of a part of the surrogate


def options_of(recipe: Recipe) -> dict[str, str]:
    """The names of an attack's plain fields, and what each takes: ``"int"``, ``"float | None"``, ..., by name.

    An attack that runs another one has that one's options too, and a surrogate with a skip gradient has ``gamma``.
    """
    parts = {name: "float" for name, part in _OF_SURROGATE.items() if getattr(recipe.surrogate, part) is not None}
    return dict(sorted({**_options(recipe.attack), **parts}.items()))


def _options(attack: Any) -> dict[str, str]:
    inner = _options(getattr(attack, _INNER)) if hasattr(attack, _INNER) else {}
    own = {f.name: str(f.type) for f in fields(attack) if f.name not in _NOT_FREE}
    return dict(sorted({**inner, **{n: kind for n, kind in own.items() if _plain(kind)}}.items()))


def _plain(kind: str) -> bool:
    return kind.removesuffix(" | None") in _READ


def with_options(
    recipe: Recipe,
    *,
    stop: bool = False,
    margin: float | None = None,
    settings: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe with other values in the fields of its attack, and of its surrogate.

    Args:
        recipe: The attack.
        stop: Finish an image at its first success.
        margin: How far beyond the border of the goal a success must be: the margin, or the confidence of C&W.
        settings: Values as text by the names of ``options_of``; "none" where a field takes it, and numbers also as
            fractions: ``{"search_steps": "9", "first": "1/255"}``.

    Raises:
        ValueError: The attack has no such field, the text is no value of its type, or the value is out of range.
    """
    known = options_of(recipe)
    changes: dict[str, Any] = {}
    if stop:
        if "stop_at_success" not in known:
            raise ArgumentError(
                f"stop_at_success: expected False with {recipe.name}, which decides itself when to stop, got True"
            )
        changes["stop_at_success"] = True
    if margin is not None:
        name = next((n for n in _MARGINS if n in known), None)
        if name is None:
            raise ArgumentError(f"margin: expected none with {recipe.name}, which has no such option, got {margin:g}")
        changes[name] = margin
    for name, text in (settings or {}).items():
        if name not in known:
            raise ArgumentError(f"set: expected an option of {recipe.name} ({', '.join(known)}), got {name!r}")
        changes[name] = _value(recipe.name, name, known[name], text)
    return _changed(recipe, changes)


def with_fields(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """The recipe with other values in the plain fields of its state machine.

    Args:
        recipe: What is changed.
        given: Values by the names of ``options_of``.

    Raises:
        ArgumentTypeError: There is no such field.
        ValueError: A value is out of range.
    """
    known = options_of(recipe)
    for name in given:
        if name not in known:
            theirs = next((n for n in _ELSEWHERE.get(name, ()) if n in known), name)
            raise ArgumentTypeError(
                f"{name}: expected an option of {recipe.name} ({', '.join(known)}), got {name!r}{meant(theirs, known)}"
            )
    return _changed(recipe, given)


def _changed(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    own, surrogate = dict(given), recipe.surrogate
    for name, part in _OF_SURROGATE.items():
        held = getattr(surrogate, part)
        if name in own and held is not None:
            surrogate = replace(surrogate, **{part: replace(held, **{name: own.pop(name)})})
    return replace(recipe, attack=_replaced(recipe.attack, own), surrogate=surrogate) if given else recipe


def _replaced(attack: Any, changes: Mapping[str, Any]) -> Any:
    own = {f.name for f in fields(attack)}
    here = {name: value for name, value in changes.items() if name in own}
    inner = {name: value for name, value in changes.items() if name not in own}
    if inner and is_dataclass(getattr(attack, _INNER, None)):
        here[_INNER] = _replaced(getattr(attack, _INNER), inner)
    return replace(attack, **here)


def _value(attack: str, name: str, kind: str, text: str) -> Any:
    bare = kind.removesuffix(" | None")
    if bare != kind and text.lower() == "none":
        return None
    if bare == "str":
        return text
    if bare == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if bare == "int" and (number := whole(text.removeprefix("-"))) is not None:
        return -number if text.startswith("-") else number
    if bare == "float":
        value = _number(text)
        if math.isfinite(value):
            return value
    raise ArgumentError(f"{name} of {attack}: expected a value of the type {kind}, got {text!r}")


def _number(text: str) -> float:
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        return math.nan
