"""What ``--help`` prints: a line an option where it fits, in the groups of the options, without PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

WIDTH = 120  # of the widest page
_LEFT = 23  # of an option with its value
_REST = "Options"
_HYPHEN = "\N{NON-BREAKING HYPHEN}"


def write_options(params: Sequence[Any], formatter: Any) -> None:
    """The arguments and options of a command, by their groups; those that are required are in the usage."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        argument = param.param_type_name == "argument"
        if getattr(param, "hidden", False) or param.name == "help":
            continue
        group = getattr(param, "rich_help_panel", None) or ("Arguments" if argument else _REST)
        left = _argument(param) if argument else _option(param)
        groups.setdefault(group, []).append((left, _text(param)))
    if not groups:
        return
    rows = [row for group in groups.values() for row in group]
    formatter.write_paragraph()
    width = min(max(len(left) for left, _ in rows), _LEFT)
    for group, lines in groups.items():
        formatter.write_heading(group)
        formatter.indent()
        _write(formatter, [(left.ljust(width), text) for left, text in lines])
        formatter.dedent()


def usage(params: Sequence[Any]) -> list[str]:
    """The arguments, the options that are required, and a place for the others."""
    arguments = [_argument(param) for param in params if param.param_type_name == "argument"]
    needed = [_option(param) for param in params if param.param_type_name == "option" and param.required]
    return [*arguments, *needed, "[OPTIONS]"]


def write_commands(group: TyperGroup, ctx: typer.Context, formatter: Any) -> None:
    """The commands of a group, with the first sentence of each."""
    found = [(name, group.get_command(ctx, name)) for name in group.list_commands(ctx)]
    formatter.write_paragraph()
    formatter.write_heading("Commands")
    formatter.indent()
    _write(formatter, [(name, (command.help or "").split("\n\n")[0]) for name, command in found if command])
    formatter.dedent()


class Group(TyperGroup):
    """A group of commands."""

    def format_help_text(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """What they do."""
        write_text(self.help, formatter)

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Its options and its commands."""
        write_options(self.get_params(ctx), formatter)
        write_commands(self, ctx, formatter)


def group(help: str, **more: Any) -> typer.Typer:
    """A group that prints its page where no command is called."""
    plain: Any = {"no_args_is_help": True, "pretty_exceptions_enable": False, "rich_markup_mode": None}
    return typer.Typer(cls=Group, help=help, **plain, **more)


def write_text(text: str | None, formatter: Any) -> None:
    """What a command does."""
    formatter.write_paragraph()
    formatter.indent()
    formatter.write_text(_unbroken(text))
    formatter.dedent()
    _restore(formatter)


def _write(formatter: Any, rows: Sequence[tuple[str, str]]) -> None:
    formatter.write_dl([(left, _unbroken(text)) for left, text in rows], col_max=_LEFT)
    _restore(formatter)


def _unbroken(text: str | None) -> str:
    """The text with hyphens at which no line ends: they are parts of options and names."""
    return inspect.cleandoc(text or "").replace("-", _HYPHEN)


def _restore(formatter: Any) -> None:
    formatter.buffer[:] = [part.replace(_HYPHEN, "-") for part in formatter.buffer]


def _argument(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _option(param: Any) -> str:
    names = ", ".join(sorted(param.opts, key=len))
    return names if param.is_flag else f"{names} {param.metavar or 'TEXT'}"


def _text(param: Any) -> str:
    """The help text, with the default where it does not say it itself."""
    text, default = (param.help or "").strip(), param.default
    if isinstance(default, Enum):
        default = default.value
    shown = isinstance(default, (str, int, float, Path)) and not isinstance(default, bool) and str(default) != ""
    if shown and "(default" not in text:
        number = f"{default:g}" if isinstance(default, float) else default
        return f"{text.removesuffix('.')} (default: {number})."
    return text
