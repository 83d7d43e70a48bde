"""A recipe: how to move, and what is differentiated on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastadv.attacks.attack import Attack
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentTypeError
from fastadv.surrogates import Surrogate


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An attack on a surrogate of the model. The verdict is always the bare model's.

    Where the attack stops at success, it is the surrogate (of an ensemble: the attacked model's own part) that says so.

    Attributes:
        attack: The state machine.
        surrogate: What it moves on; the bare model unless something is given.
    """

    attack: Attack[Any]
    surrogate: Surrogate = field(default_factory=Surrogate)

    @property
    def name(self) -> str:
        """The attack's name."""
        return self.attack.name


def as_recipe(moves: Attack[Any] | Recipe) -> Recipe:
    """The recipe itself, or an attack on the bare model.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(moves, Recipe) and (isinstance(moves, type) or not callable(getattr(moves, "tick", None))):
        if isinstance(moves, str):
            hint = f"; use attacks.by_name({moves!r})"
        else:
            hint = "; call it" if callable(moves) else ""
        raise ArgumentTypeError(f"attack: expected an attack or a Recipe, got {brief(moves)}{hint}")
    return moves if isinstance(moves, Recipe) else Recipe(attack=moves)
