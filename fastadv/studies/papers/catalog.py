"""All recipes by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fastadv.core.errors import ArgumentError
from fastadv.core.nearest import meant
from fastadv.studies.papers import carrara, massoli, zhong_deng
from fastadv.studies.papers.recipe import StudyRecipe

RECIPES: Mapping[str, StudyRecipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (*massoli.RECIPES, *zhong_deng.RECIPES, *carrara.RECIPES)}
)


def find_recipes(names: Sequence[str]) -> tuple[StudyRecipe, ...]:
    """Recipes by their names; ``"all"``, or a paper's first word for all of its recipes.

    Raises:
        ValueError: There is none such.
    """
    chosen: dict[str, StudyRecipe] = {}
    for name in names:
        found = [r for r in RECIPES.values() if name in ("all", r.paper, r.name)]
        if not found:
            raise ArgumentError(
                f"recipe: expected one of 'fastadv study list', got {name!r}{meant(name, list(RECIPES))}"
            )
        chosen |= {recipe.name: recipe for recipe in found}
    return tuple(chosen.values())
