"""How a recipe gets its name: an entry that is written where the recipe is, and collected into the catalogue."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from fastadv.attacks.attack import Attack
from fastadv.attacks.recipe import Recipe

Make = TypeVar("Make", bound=Callable[..., Attack[Any] | Recipe])


@dataclass(frozen=True, kw_only=True)
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

    make: Callable[..., Attack[Any] | Recipe]
    what: str
    level: str
    source: str
    norm: str = "linf"
    gradient: bool = True

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


def named(what: str, *, level: str, source: str, norm: str = "linf", gradient: bool = True) -> Callable[[Make], Make]:
    """Give a recipe its entry; its docstring then ends with the source."""

    def register(make: Make) -> Make:
        make.__doc__ = f"{inspect.cleandoc(make.__doc__ or '')}\n\nSource: {source}.".lstrip()
        entry = Entry(make=make, what=what, level=level, source=source, norm=norm, gradient=gradient)
        vars(make)["entry"] = entry
        return make

    return register


def collect(*modules: ModuleType) -> Mapping[str, Entry]:
    """The entries of the recipes that the modules define, by name, in the order of the text."""
    found = [getattr(v, "entry", None) for m in modules for v in vars(m).values() if inspect.isfunction(v)]
    entries = [entry for entry in found if isinstance(entry, Entry)]
    return MappingProxyType({entry.name: entry for entry in entries})
