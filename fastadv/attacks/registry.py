"""How a recipe gets its name: an entry that is written where the recipe is, and collected into the catalogue."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from fastadv.attacks.attack import Attack
from fastadv.attacks.options import with_fields
from fastadv.attacks.recipe import Recipe


@dataclass(frozen=True, kw_only=True, repr=False)
class Entry:
    """A named attack.

    Attributes:
        make: The recipe, a function of keyword arguments alone.
        what: One line for help texts.
        level: What the paper differentiates: ``"logits"``, ``"embedding"``, ``"features"`` (of any layer) or
            ``"gallery"`` (the templates of known people).
        source: The paper and its equation.
        norm: The norm that eps is measured in; of an attack without eps, that which it makes small.
        gradient: Whether it needs a gradient: noise does not.
    """

    make: Callable[..., Recipe]
    what: str
    level: str
    source: str
    norm: str = "linf"
    gradient: bool = True

    def __repr__(self) -> str:
        """One line: name, what it does, family, norm and paper."""
        return f"{self.name}: {self.what} ({self.family}, {self.norm}; {self.source})"

    @property
    def name(self) -> str:
        """The recipe's name, with hyphens."""
        return self.make.__name__.replace("_", "-")

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the recipe takes, and the paper's values; ``inspect.Parameter.empty`` where it must be given."""
        return {name: p.default for name, p in inspect.signature(self.make).parameters.items()}

    @property
    def steps(self) -> bool:
        """Whether the recipe takes a number of steps."""
        return "steps" in self.defaults

    @property
    def eps(self) -> bool:
        """Whether the recipe takes a radius; an attack that looks for the smallest perturbation does not."""
        return "eps" in self.defaults

    @property
    def masks(self) -> bool:
        """Whether the recipe takes a drop ``rate``."""
        return "rate" in self.defaults

    @property
    def ensemble(self) -> bool:
        """Whether the recipe takes ``others`` and their ``weights``."""
        return "others" in self.defaults

    @property
    def family(self) -> str:
        """``"one-step"``, ``"iterative"`` or ``"noise"``."""
        return ("iterative" if self.steps else "one-step") if self.gradient else "noise"


def named(
    what: str, *, level: str, source: str, norm: str = "linf", gradient: bool = True
) -> Callable[[Callable[..., Attack[Any] | Recipe]], Callable[..., Recipe]]:
    """Make a function that gives a state machine, or a recipe, one that gives a recipe and has an entry.

    It gets its source in the docstring, and takes the plain fields of the state machine as arguments too.
    """

    def register(make: Callable[..., Attack[Any] | Recipe]) -> Callable[..., Recipe]:
        signature = inspect.signature(make)

        @functools.wraps(make)
        def recipe(**given: Any) -> Recipe:
            made = make(**{name: given.pop(name) for name in signature.parameters if name in given})
            return with_fields(made if isinstance(made, Recipe) else Recipe(made), given)

        recipe.__annotations__ = {**make.__annotations__, "return": Recipe}
        vars(recipe)["__signature__"] = signature.replace(return_annotation=Recipe)  # what `help` and the pages show
        recipe.__doc__ = f"{inspect.cleandoc(make.__doc__ or '')}\n\nSource: {source}.".lstrip()
        entry = Entry(make=recipe, what=what, level=level, source=source, norm=norm, gradient=gradient)
        vars(recipe)["entry"] = entry
        return recipe

    return register


def collect(*modules: ModuleType) -> Mapping[str, Entry]:
    """The entries of the recipes that the modules define, by name, in the order of the text."""
    found = [getattr(v, "entry", None) for m in modules for v in vars(m).values() if inspect.isfunction(v)]
    entries = [entry for entry in found if isinstance(entry, Entry)]
    return MappingProxyType({entry.name: entry for entry in entries})
