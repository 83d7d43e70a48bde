"""``fastadv attacks``: what the names of attacks stand for."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastadv.cli.fields import takes_groups
from fastadv.cli.names import ATTACKS
from fastadv.cli.options import AsJson

if TYPE_CHECKING:
    from fastadv.attacks.registry import Entry

GOALS = {
    "impersonate": "verified as the target (the default of most attacks)",
    "evade": "no longer verified as oneself",
    "match": "the target's features at --layer (the default of df)",
    "identify-as": "nearest to the target's template in a gallery (the default of knn-df)",
    "misidentify": "nearest to the template of another person than oneself",
    "classify-as": "the target's class of the network's class head",
    "misclassify": "another class than before",
}
_OPTIONS = {
    "eps": "--eps",
    "steps": "--steps",
    "rate": "--drop-rate",
    "weights": "--ensemble-weights",
    "margin": "--margin",
    "confidence": "--margin",
    "stop_at_success": "--stop-at-success",
}
_NORMS = {"linf": "L-inf", "l2": "L2", "l0": "L0"}


@dataclass(frozen=True, kw_only=True)
class Described:
    """An attack as ``fastadv attacks NAME`` shows it."""

    name: str
    what: str
    family: str
    norm: str
    level: str
    source: str
    parameters: dict[str, str | None]
    settings: dict[str, str]
    description: str


@takes_groups
def attacks(
    name: Annotated[
        str | None, ATTACKS.argument("Show this attack's formula, parameters and defaults (default: list all).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the attacks by family, with norm, level and paper; 'fastadv attacks NAME' describes one."""
    from fastadv.attacks import CATALOG
    from fastadv.cli.show import print_columns, print_next

    if as_json:
        entries = CATALOG.values() if name is None else [CATALOG[name]]
        print(json.dumps([asdict(_described(entry)) for entry in entries]))
        return
    if name is not None:
        _print_attack(_described(CATALOG[name]))
        ensemble = "synth-resnet" if CATALOG[name].ensemble else None
        print_next("attack", name, data="FACES", model="synth-vgg", ensemble=ensemble, threshold=0.3, out="run")
        return
    families: dict[str, list[Entry]] = {}
    for entry in CATALOG.values():
        families.setdefault(_family(entry), []).append(entry)
    for family, entries in families.items():
        rows = [(e.name, _NORMS[e.norm], e.level, e.what, e.source) for e in entries]
        print_columns(family, rows, ("name", "norm", "level", "what it does", "paper"))
    print_columns("Goals (--goal)", list(GOALS.items()), ("name", "reached when the face is"))
    print_next("attacks", "fim")


def _family(entry: Entry) -> str:
    """The heading that an attack stands under."""
    if entry.family == "noise":
        return "Noise, without a gradient"
    if not entry.eps or entry.defaults["eps"] is None:
        return "Smallest perturbation, without --eps"
    if entry.ensemble or entry.masks or entry.name.split("-")[0] in ("di", "ti", "s"):
        return "Transferable: surrogates and ensembles"
    if entry.level in ("features", "gallery"):
        return "Deep features"
    return "One step" if entry.family == "one-step" else "Iterative"


def _described(entry: Entry) -> Described:
    from fastadv.attacks.options import options_of

    parameters = {name: _value(name, value) for name, value in entry.defaults.items() if name != "others"}
    recipe = None if entry.ensemble else entry.make()
    settings: dict[str, str] = {}
    formula = ""
    if recipe is not None:
        machine = recipe.attack
        settings = {n: _value(n, getattr(machine, n, None)) or "none" for n in options_of(recipe)}
        parameters = {name: settings.get(name) if value is None else value for name, value in parameters.items()}
        formula = inspect.cleandoc(type(machine).__doc__ or "").split("\n\nAttributes:")[0]
    text = inspect.cleandoc(entry.make.__doc__ or "")
    return Described(
        name=entry.name,
        what=entry.what,
        family=_family(entry),
        norm=entry.norm,
        level=entry.level,
        source=entry.source,
        parameters=parameters,
        settings={name: value for name, value in settings.items() if name not in parameters},
        description=f"{text}\n\n{formula}".strip(),
    )


def _value(name: str, value: Any) -> str | None:
    """A default as the command line takes it; None where the attack chooses it."""
    if value is None or value is inspect.Parameter.empty:
        return None
    if isinstance(value, float):
        levels = round(value * 255, 6)
        return f"{levels:g}/255" if name in ("eps", "step_size", "first") and levels.is_integer() else f"{value:g}"
    return str(value)


def _print_attack(described: Described) -> None:
    from fastadv.cli.show import print_columns, print_line

    paper = f"{_NORMS[described.norm]}, {described.level}; {described.source}"
    print_line(f"{described.name}: {described.what} ({paper})\n\n{described.description}\n")
    rows = [
        (_OPTIONS.get(name, f"--set {name}="), value or "chosen by the attack")
        for name, value in (*described.parameters.items(), *described.settings.items())
    ]
    print_columns("Parameters", rows, ("option", "default"))
