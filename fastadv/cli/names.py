"""Names on the command line: of attacks and networks, checked when they are given, the nearest one proposed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import Enum

import typer

from fastadv.cli.networks import NETWORKS
from fastadv.core.errors import ArgumentError

# of the library, which a test compares: its own lists are behind PyTorch
LossName = Enum("LossName", {n: n for n in ("softmax", "cosface", "arcface", "triplet", "keep")}, type=str)  # type: ignore[misc]
_IDENTIFIED = ("identify-as", "misidentify")
IdentifyGoal = Enum("IdentifyGoal", {n: n for n in _IDENTIFIED}, type=str)  # type: ignore[misc]
_GOALS = ("evade", "impersonate", "match", *_IDENTIFIED, "classify-as", "misclassify")
Goal = Enum("Goal", {n: n for n in _GOALS}, type=str)  # type: ignore[misc]


def attack_names() -> list[str]:
    """Every attack."""
    from fastadv.attacks import CATALOG

    return list(CATALOG)


def model_names() -> list[str]:
    """Every network."""
    return list(NETWORKS)


def hint(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name: the nearest right one, if there is one."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def known_attack(name: str | None) -> str | None:
    """The name of an attack.

    Raises:
        ArgumentError: There is no such attack.
    """
    if name is not None and name not in (known := attack_names()):
        raise ArgumentError(f"attack: expected one of 'fastadv attacks', got {name!r}{hint(name, known)}")
    return name


def known_model(name: str | None) -> str | None:
    """The name of a network.

    Raises:
        ArgumentError: There is no such network.
    """
    if name is not None and name not in (known := model_names()):
        raise ArgumentError(f"model: expected one of 'fastadv models', got {name!r}{hint(name, known)}")
    return name


def refuse_choice(error: typer.BadParameter) -> None:
    """Refuse a value that is not among the few of an option in the form of the other errors.

    Raises:
        ArgumentError: What is expected, and the nearest of it.
    """
    given, between, choices = error.message.partition(" is not one of ")
    if between and error.param is not None:
        name, known = given.partition("'")[2].removesuffix("'"), re.findall(r"'([^']*)'", choices)
        option = error.param.opts[0]
        raise ArgumentError(f"{option}: expected one of {', '.join(known)}, got {name!r}{hint(name, known)}") from error
