"""An attack by its text, such as ``fim``, ``fim:20``, ``fim:20@8/255`` or ``dfanet-fim:200@10/255,rate=0.0125``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastadv.attacks.catalog import CATALOG, by_name
from fastadv.attacks.options import with_options
from fastadv.attacks.recipe import Recipe
from fastadv.core.errors import ArgumentError
from fastadv.core.numbers import parse_eps, parse_settings, parse_steps, show_eps
from fastadv.models import FaceModel
from fastadv.surrogates import Ensemble

FORM = "NAME[:STEPS][@EPS][,FIELD=VALUE...]"
ONE_STEP, ITERATIVE, NOISE = "one-step", "iterative", "noise"
_RATE = "rate"  # a field of the surrogate, not of the attack


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """An attack of the catalogue with some of its parameters; ``parse_attack(str(spec))`` is ``spec``.

    Attributes:
        name: Of the catalogue; not of an attack on an ensemble, whose networks have no text.
        steps: Of an iterative attack; None: the recipe's own.
        eps: Radius of its budget, pixels in [0, 1]; None: the recipe's own.
        settings: Further fields by name, as text (``fastadv.attacks.options``), and ``rate``, the drop rate of a
            DFANet attack.

    Raises:
        ValueError: The attack is not known, works on several networks, or does not take what is given.
    """

    name: str
    steps: int | None = None
    eps: float | None = None
    settings: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", tuple((str(name), str(value)) for name, value in self.settings))
        if self.name in CATALOG and CATALOG[self.name].ensemble:
            raise ArgumentError(
                f"attack: expected one that works on a single network, got {self.name!r}, which works on several"
            )
        self.recipe()

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        """``"bim"``, ``"bim:30"``, ``"bim:30@8/255"``, ``"cw-l2,search_steps=3"``."""
        steps = "" if self.steps is None else f":{self.steps}"
        more = "".join(f",{name}={value}" for name, value in self.settings)
        return f"{self.name}{steps}{'' if self.eps is None else f'@{show_eps(self.eps)}'}{more}"

    @property
    def label_without_eps(self) -> str:
        """The label without the radius, for results at several radii."""
        return replace(self, eps=None).label

    @property
    def on_logits(self) -> bool:
        """Whether the paper moves on logits; else on embeddings."""
        return CATALOG[self.name].level == "logits"

    @property
    def family(self) -> str:
        """``"one-step"``, ``"iterative"`` or ``"noise"``."""
        family = CATALOG[self.name].family
        return ONE_STEP if family == ITERATIVE and self.recipe().steps == 1 else family

    @property
    def rate(self) -> float | None:
        """The drop rate, or None for the paper's."""
        text = dict(self.settings).get(_RATE)
        try:
            return None if text is None else float(text)
        except ValueError:
            raise ArgumentError(f"rate: expected a number in (0, 1), got {text!r}") from None

    @property
    def radius(self) -> float | None:
        """The radius of its budget, or None where it looks for the smallest perturbation."""
        budget = self.recipe().budget
        return budget.eps if budget.is_ball else None

    def without(self, setting: str) -> AttackSpec:
        """The same without one of its further fields."""
        return replace(self, settings=tuple(each for each in self.settings if each[0] != setting))

    def recipe(self, *, eps: float | None = None, steps: int | None = None, others: Sequence[FaceModel] = ()) -> Recipe:
        """The attack itself.

        Args:
            eps: Radius where the text says none.
            steps: Number of steps where the text says none and the attack takes one.
            others: Further networks, whose mean gradient it follows.

        Raises:
            ValueError: The attack does not take what is given.
        """
        if self.name in CATALOG and not CATALOG[self.name].steps:
            steps = None
        made = by_name(
            self.name,
            eps=eps if self.eps is None else self.eps,
            steps=steps if self.steps is None else self.steps,
            rate=self.rate,
        )
        made = with_options(made, settings={name: value for name, value in self.settings if name != _RATE})
        if not others:
            return made
        return replace(made, surrogate=replace(made.surrogate, ensemble=Ensemble(others=tuple(others))))


def parse_attack(text: str, *, argument: str = "attack") -> AttackSpec:
    """An attack from its text.

    Args:
        text: ``NAME[:STEPS][@EPS][,FIELD=VALUE...]``, such as ``bim:30@8/255`` or ``cw-l2,search_steps=3``.
        argument: What messages call it.

    Raises:
        ValueError: The text is not of that form, or the attack is not known or does not take what is given.
    """
    numbers, *settings = text.split(",")
    head, at, eps = numbers.partition("@")
    name, colon, steps = head.partition(":")
    if name not in CATALOG:
        known = ", ".join(name for name, entry in CATALOG.items() if not entry.ensemble)
        raise ArgumentError(f"{argument}: expected {FORM} with a name of {known}, got {text!r}")
    count = parse_steps(steps) if colon else None
    if colon and count is None:
        raise ArgumentError(f"{argument}: expected a whole number of at least 1 for the steps, got {text!r}")
    return AttackSpec(
        name=name,
        steps=count,
        eps=parse_eps(eps) if at else None,
        settings=tuple(parse_settings(settings).items()),
    )


def check_attacks(attacks: Sequence[AttackSpec]) -> None:
    """Refuse a list that names an attack twice.

    Raises:
        ValueError: It does.
    """
    labels = [spec.label for spec in attacks]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ArgumentError(f"attack: expected each one once, got {twice[0]} twice")
