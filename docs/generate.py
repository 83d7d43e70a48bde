"""The generated pages: attack families from the catalogue, commands from the command line, and the API from its names.

They are written into ``docs/generated`` when Sphinx starts, and are no part of the repository.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer
from families import FAMILIES, REFERENCES, Family, family_key

import fastadv
from fastadv.attacks.registry import Entry
from fastadv.cli import app

MODULES = {
    "fastadv.attacks": "Attacks, goals and budgets",
    "fastadv.surrogates": "Surrogates",
    "fastadv.detection": "Detection",
    "fastadv.defences": "Defences and threat models",
    "fastadv.recognition": "Verification and identification",
    "fastadv.data": "Data sets and images",
    "fastadv.distributed": "Attacks on Ray",
    "fastadv.models": "Networks",
    "fastadv.ops": "Fused operations",
    "fastadv.compat.torchattacks": "The classes of torchattacks",
}

# what public functions return, and nobody makes
EXTRA = {"fastadv.attacks": ("fastadv.attacks.registry.Entry",)}


def write_all(folder: Path) -> None:
    """Write every generated page, and remove those that an earlier version wrote."""
    pages = {**attack_pages(), **command_pages(), **api_pages()}
    for old in folder.rglob("*.md"):
        if old.relative_to(folder).as_posix() not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _toctree(names: list[str]) -> str:
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *names, "```", ""])


# attacks


def attack_pages() -> Mapping[str, str]:
    """One page a family, and a page with all names."""
    families: dict[str, list[Entry]] = {family.key: [] for family in FAMILIES}
    for entry in fastadv.attacks.list():
        families[family_key(entry)].append(entry)
    pages = {f"attacks/{f.key}.md": _family(f, families[f.key]) for f in FAMILIES}
    titles = {f.key: f.title for f in FAMILIES}
    rows = [
        [f"`{e.name}`", e.what, _norm(e.norm), e.level, "{doc}`" + f"{titles[key]} <{key}>`"]
        for key, entries in families.items()
        for e in entries
    ]
    text = (
        "# Attacks\n\n"
        f"{len(rows)} attacks have a name. `fa.attack(name, model, images, ...)` and `fastadv attack NAME` run them; "
        "`fa.attacks.list()` lists them.\n\n"
        + _table(["attack", "what it does", "norm", "goal of its paper is on", "page"], rows)
        + "\nAn attack takes any goal that its loss allows; the fourth column says what its paper attacks.\n\n"
    )
    return {"attacks/index.md": text + _toctree([f.key for f in FAMILIES]), **pages}


def _family(family: Family, entries: list[Entry]) -> str:
    machine = f"fastadv.attacks.{family.machine}"
    rows = [[f"`{e.name}`", e.what, _norm(e.norm), e.source] for e in entries]
    sources = " ".join(e.source for e in entries)
    parts = [
        f"# {family.title}\n\n{family.what}\n\n$$\n{family.formula}\n$$\n\n{family.symbols}\n",
        f"## When to use it\n\n{family.use}\n",
        f"## Example\n\n```python run\n{family.example}```\n",
        "## Attacks of this family\n\n" + _table(["attack", "what it does", "norm", "source"], rows),
        "Below are their arguments and defaults. Where a default is `None`, the attack chooses the value by the rule "
        "that its text or its class gives.\n",
        *(_attack(e) for e in entries),
        "## Sources\n\n" + "".join(f"- {text}\n" for name, text in REFERENCES.items() if name in sources),
        "## Settings\n\nEvery attack above takes the fields of its class as arguments too, in Python by their names "
        f"and on the command line as `--set NAME=VALUE`. {{py:class}}`{machine}` lists the fields, and says what the "
        "papers leave open and what we chose.\n",
    ]
    return "\n".join(parts)


def _attack(entry: Entry) -> str:
    text = entry.make.__doc__ or ""
    about = re.split(r"\n\n(?:Args|Source):?", text)[0].replace("``", "`").replace("**choice**:", "Our choice:")
    call = f"fa.attacks.{entry.make.__name__}({', '.join(_given(*item) for item in entry.defaults.items())})"
    return f"### {entry.name}\n\n{about}\n\n```python\n{call}\n```\n"


def _given(name: str, value: Any) -> str:
    if value is inspect.Parameter.empty:
        return f"{name}=..."
    if isinstance(value, float) and value < 1 and (value * 255).is_integer():
        return f"{name}={value * 255:.0f} / 255"
    return f"{name}={value!r}"


def _norm(norm: str) -> str:
    return {"linf": "L∞", "l2": "L2", "l0": "L0"}[norm]


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


# commands


def command_pages() -> Mapping[str, str]:
    """One page a command, with those below it, and a page with all."""
    root = typer.main.get_command(app)
    commands: Mapping[str, Any] = root.commands  # type: ignore[attr-defined]
    pages = {
        f"commands/{name}.md": "\n".join(_command(command, f"fastadv {name}", 1)) for name, command in commands.items()
    }
    rows = [[f"{{doc}}`fastadv {name} <{name}>`", _escaped(_first_line(c.help))] for name, c in commands.items()]
    own = "\n".join(_parameter(p) for p in root.params if not getattr(p, "hidden", False))
    text = f"# Commands\n\n{_table(['command', 'what it does'], rows)}\n{_escaped(root.epilog or '')}\n\n{own}\n"
    return {"commands/index.md": text + _toctree(list(commands)), **pages}


def _command(command: Any, path: str, depth: int) -> Iterator[str]:
    yield f"{'#' * depth} {path}\n"
    for part in (command.help or "").split("\n\n"):
        example = re.fullmatch(r"([A-Z][a-z ]*): (fastadv .*)", " ".join(part.split()))
        shell = example[2].replace("; then ", "\n") if example else ""
        yield f"{example[1]}:\n\n```sh\n{shell}\n```\n" if example else f"{_escaped(part)}\n"
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(parameter)
    for panel, parameters in panels.items():
        yield f"**{panel}**\n"
        yield from (_parameter(p) for p in parameters)
    for name, below in getattr(command, "commands", {}).items():
        yield from _command(below, f"{path} {name}", depth + 1)


def _parameter(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    kind = _kind(parameter)
    if parameter.param_type_name == "argument":
        names = parameter.name.upper()
    elif kind is not bool:
        names += " " + ("NAME" if issubclass(kind, Enum) else {Path: "PATH", int: "N", float: "X"}.get(kind, "TEXT"))
    help_ = _escaped(parameter.help or "")
    choices = list(kind) if issubclass(kind, Enum) else []
    if 0 < len(choices) < 20:
        help_ += " One of " + ", ".join(f"`{c.value}`" for c in choices) + "."
    default = getattr(parameter.default, "value", parameter.default)
    if parameter.required:
        help_ += " Required."
    elif isinstance(default, str | int | float) and default is not False and "(default" not in help_:
        help_ += f" Default: `{default:g}`." if isinstance(default, float) else f" Default: `{default}`."
    if parameter.multiple and "several times" not in help_:
        help_ += " Can be given several times."
    return f"`{names}`\n: {help_}\n"


def _kind(parameter: Any) -> type:
    """The type of one value of an option."""
    annotation = parameter.type_descriptor.annotation
    inner = get_args(annotation)
    return inner[0] if inner else annotation


def _first_line(text: str | None) -> str:
    return (text or "").split("\n\n")[0]


def _escaped(text: str) -> str:
    """Text of a help as Markdown: its special characters as they are, and options as code."""
    text = " ".join(text.split()).replace("\\[", "[")  # as rich has it
    text = re.sub(r"([\\*_<>\[\]|$])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", text)


# API


def api_pages() -> Mapping[str, str]:
    """One page a module; a name that several modules offer is described once, in its own."""
    homes: dict[int, str] = {}
    pages = {}
    for module, title in MODULES.items():
        pages[f"api/{module}.md"] = _module(module, title, homes)
    pages["api/fastadv.md"] = _module("fastadv", "Main functions and classes", homes)
    rows = [["{doc}`fastadv <fastadv>`", "Main functions and classes"]]
    rows += [[f"{{doc}}`{module} <{module}>`", title] for module, title in MODULES.items()]
    text = f"# Python reference\n\n{_table(['module', 'what is in it'], rows)}\n"
    return {"api/index.md": text + _toctree(["fastadv", *MODULES]), **pages}


def _module(name: str, title: str, homes: dict[int, str]) -> str:
    module = importlib.import_module(name)
    lines, elsewhere = [], []
    for public in sorted(module.__all__, key=str.lower):
        value = getattr(module, public)
        if inspect.ismodule(value) or public == "__version__":
            continue
        full = f"{name}.{public}"
        if id(value) in homes:
            elsewhere.append([f"`{full}`", f"{{py:obj}}`{homes[id(value)]}`"])
            continue
        documented = inspect.isclass(value) or inspect.isfunction(value)
        if documented:
            homes[id(value)] = full
        if inspect.isclass(value):
            lines += [f".. autoclass:: {full}", "   :members:", "   :special-members: __call__", ""]
        elif inspect.isfunction(value):
            lines += [f".. autofunction:: {full}", ""]
        else:
            lines += [f".. py:data:: {full}", ""]
    lines += [line for full in EXTRA.get(name, ()) for line in (f".. autoclass:: {full}", "   :members:", "")]
    parts = [f"# {name}\n\n{title}.\n"]
    if elsewhere:
        parts.append(_table(["name", "described as"], elsewhere))
    parts.append("\n".join(["````{eval-rst}", *lines, "````", ""]))
    return "\n".join(parts)
