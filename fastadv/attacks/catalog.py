"""The named attacks of the papers: a recipe each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from fastadv.attacks import minimal_catalog, optimisation_catalog, sign_catalog, transferable
from fastadv.attacks.recipe import Recipe
from fastadv.attacks.registry import Entry, collect
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.nearest import meant
from fastadv.models import FaceModel

_TABLES = (sign_catalog, transferable, optimisation_catalog, minimal_catalog)


class _Catalog(Mapping[str, Entry]):
    """The entries of the recipes that ``fastadv.attacks`` exports, by name: those of the tables above first.

    What is public is registered: the names are read when the first one is asked for, since this file is below them.
    """

    @cached_property
    def _entries(self) -> Mapping[str, Entry]:
        package = sys.modules["fastadv.attacks"]
        recipes = [made for made in map(vars(package).get, package.__all__) if hasattr(made, "entry")]
        return collect(*dict.fromkeys((*_TABLES, *(sys.modules[made.__module__] for made in recipes))))

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


CATALOG = _Catalog()


def listed() -> tuple[Entry, ...]:
    """Every named attack: its name, one line, family, norm, level, paper, and what it takes."""
    return tuple(CATALOG.values())


def by_name(
    name: str,
    *,
    eps: float | None = None,
    steps: int | None = None,
    rate: float | None = None,
    others: Sequence[FaceModel] = (),
    weights: Sequence[float] | None = None,
    **fields: Any,
) -> Recipe:
    """The named attack with its paper's parameters, or the given ones.

    Args:
        name: One of ``CATALOG``.
        eps: Radius of the budget, pixels in [0, 1]; not of an attack that looks for the smallest perturbation.
        steps: Of an iterative attack.
        rate: The drop rate of a DFANet recipe.
        others: Further models of an ensemble.
        weights: Of the ensemble, the attacked model's first.
        fields: Other plain fields of its state machine, such as ``stop_at_success=True``.

    Raises:
        TypeError: The attack has no such field.
        ValueError: The name is not known, or something is given that the attack does not take, or is missing.
    """
    if not isinstance(name, str) or name not in CATALOG:
        raise ArgumentError(
            f"attack: expected a name in fastadv.attacks.list(), got {brief(name)}{meant(name, CATALOG)}"
        )
    entry = CATALOG[name]
    if eps is not None and not entry.eps:
        raise ArgumentError(f"eps: expected none, since {name} looks for the smallest perturbation, got {eps}")
    if steps is not None and not entry.steps:
        one = "makes one step" if entry.eps else "has no number of steps to choose"
        raise ArgumentError(f"steps: expected none, since {name} {one}, got {steps}")
    if rate is not None and not entry.masks:
        raise ArgumentError(f"rate: expected none, since {name} has no masks, got {rate}")
    if bool(others) != entry.ensemble:
        wanted = "at least one other model" if entry.ensemble else "none"
        raise ArgumentError(f"others: expected {wanted} with {name}, got {[m.name for m in others]}")
    if weights is not None and not entry.ensemble:
        raise ArgumentError(f"weights: expected an attack on several models, got {list(weights)} for {name}")
    given: dict[str, Any] = {"eps": eps, "steps": steps, "rate": rate, "weights": weights}
    given = {key: value for key, value in given.items() if value is not None} | fields
    return entry.make(**given, others=others) if entry.ensemble else entry.make(**given)
