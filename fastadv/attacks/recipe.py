"""A recipe: an update rule for images, and the surrogate on which it takes gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastadv.attacks.attack import Attack
from fastadv.attacks.budget import Budget
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentTypeError
from fastadv.core.numbers import show_eps
from fastadv.surrogates import Surrogate


@dataclass(frozen=True, repr=False)
class Recipe:
    """An attack and its surrogate: the argument of every function that attacks. ::

        fa.attacks.pgd(eps=8 / 255)                                   # a named one
        fa.Recipe(Mine(budget=fa.Linf(8 / 255)))                      # one with a state machine of your own
        dataclasses.replace(fa.attacks.fim(), surrogate=Surrogate())  # a named one on another surrogate

    The reported success is always that of the bare model, and an attack that stops at success, or looks for the
    smallest change, tests it there too, in the precision of the gradients.

    Args:
        attack: The update rule, a state machine; it has the other settings, such as ``recipe.attack.step_size``.
        surrogate: What gradients are taken on (default: the bare model).

    Raises:
        TypeError: ``attack`` is not a state machine, or ``surrogate`` is not a ``Surrogate``.
    """

    attack: Attack[Any]
    surrogate: Surrogate = field(default_factory=Surrogate, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.attack, type) or not _moves(self.attack):
            own = isinstance(self.attack, Recipe)
            shown = repr(self.attack) if own else brief(self.attack)
            hint = "; use dataclasses.replace(recipe, surrogate=...)" if own else _way_over(self.attack)
            raise ArgumentTypeError(f"attack: expected a state machine such as SignGradient(...), got {shown}{hint}")
        if not isinstance(self.surrogate, Surrogate):
            raise ArgumentTypeError(f"surrogate: expected a Surrogate, got {brief(self.surrogate)}")

    def __repr__(self) -> str:
        """One line: the name, the budget, the largest number of steps, and the parts of the surrogate."""
        said = [repr(self.name), self.budget.norm if self.budget.is_ball else "smallest change"]
        if self.budget.is_ball:
            said[-1] += f" {show_eps(self.budget.eps)}"
        said.append(f"{self.steps} step{'' if self.steps == 1 else 's'}")
        said += [type(part).__name__ for part in vars(self.surrogate).values() if part is not None]
        return f"Recipe({', '.join(said)})"

    @property
    def name(self) -> str:
        """The attack's name."""
        return self.attack.name

    @property
    def budget(self) -> Budget:
        """The set of allowed images; ``budget.eps`` is the radius where it is a ball."""
        return self.attack.budget

    @property
    def steps(self) -> int:
        """The largest number of steps per image."""
        return self.attack.steps


def check_recipe(attack: object) -> Recipe:
    """Return ``attack`` if it is a recipe.

    Raises:
        TypeError: It is not; the message says how to make a recipe of it.
    """
    if isinstance(attack, Recipe):
        return attack
    kind = attack if isinstance(attack, type) else type(attack)
    hint = f"; write Recipe({kind.__name__}(...))" if _moves(attack) else _way_over(attack)
    raise ArgumentTypeError(f"attack: expected a Recipe, got {brief(attack)}{hint}")


def _moves(attack: object) -> bool:
    """Whether ``attack`` is a state machine, or the class of one."""
    return callable(getattr(attack, "tick", None))


def _way_over(attack: object) -> str:
    if isinstance(attack, str):
        return f"; use attacks.by_name({attack!r})"
    return "; call it" if callable(attack) else ""
