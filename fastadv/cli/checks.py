"""What every command checks before it does anything: numbers, the device, the folders, the optional packages."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperCommand

from fastadv.cli.help_page import usage, write_options, write_text
from fastadv.cli.names import refused_choices
from fastadv.core.errors import ArgumentError
from fastadv.core.extras import require_extra
from fastadv.core.remote import is_remote, to_path

_MOST = 2**31 - 1  # of a count: what no array, fold or step number can pass
_SEEDS = ("seed", "faces_seed")
_RATES = ("far", "false_alarm", "rate")
_FILES = ("score", "report", "export", "calibrate", "explain")  # commands whose --out is a file
_WITH_FIGURES = ("verify", "identify", "explain")
_WITH_PAGES = ("transfer", "defend", "evaluate", "demo", "run")


def _figures(values: Mapping[str, Any]) -> tuple[str, str] | None:
    return None if values.get("out") is None else ("report", "--out")


def _named(extra: str, command: str) -> Callable[[Mapping[str, Any]], tuple[str, str] | None]:
    return lambda values: (extra, command)


def _losses(values: Mapping[str, Any]) -> tuple[str, str] | None:
    loss = values.get("loss")
    if values.get("data") is None or values.get("head"):  # a sub-command, or no loss of the kind
        return None
    name = "cosface" if loss is None else str(loss.value)
    return None if name in ("softmax", "keep") else ("train", f"--loss {name}")


def _onnx(values: Mapping[str, Any]) -> tuple[str, str] | None:
    return ("onnx", "--out") if str(values.get("out", "")).endswith(".onnx") else None


_NEEDS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, str] | None]] = MappingProxyType(
    {
        **dict.fromkeys(_WITH_FIGURES, _figures),
        **{name: _named("report", name) for name in _WITH_PAGES},
        "report": _named("report", "report"),
        "serve": _named("serve", "serve"),
        "train": _losses,
        "export": _onnx,
    }
)
"""The extra that a command needs, given its options, and the argument that needs it."""


class Checked(TyperCommand):
    """A command whose arguments are checked as a whole before it runs."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """The arguments, none of them empty."""
        check_texts(args)
        with refused_choices():
            return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """What a call needs."""
        return usage(self.params)

    def format_help_text(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """What it does."""
        write_text(self.help, formatter)

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """The options, by their groups."""
        write_options(self.get_params(ctx), formatter)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Check, and run."""
        check(str(self.name), ctx.params)
        return super().invoke(ctx)


def check_texts(args: Sequence[str]) -> None:
    """Refuse an empty argument: an unset variable of a shell, which would be the current folder.

    Raises:
        ArgumentError: With the option before it.
    """
    for k, text in enumerate(args):
        option, equals, value = text.partition("=")
        if not text or (equals and not value and option.startswith("--")):
            name = option if equals else (args[k - 1] if k and args[k - 1].startswith("-") else "argument")
            raise ArgumentError(f"{name}: expected a value, got an empty text")


def check(command: str, values: Mapping[str, Any]) -> None:
    """Refuse what no command could work with.

    Args:
        command: Its name.
        values: Of its parameters, by their Python names.

    Raises:
        ArgumentError: A number is not finite or of another size, the device is not there, a place to write to is
            taken, cannot be written, or lies in the data.
        MissingPackageError: What the command needs after its work is not installed.
    """
    for name, value in values.items():
        _check_number(name, value)
    given = values.get("device")
    for device in given if isinstance(given, (list, tuple)) else (given,):
        if device not in (None, "cpu"):
            from fastadv.models import open_device

            open_device(device, argument="--device")
    to_url = command == "attack" and values.get("ray") is not None
    for name in ("out", "cache"):
        if values.get(name) is not None and not (to_url and is_remote(to_path(values[name]))):
            _check_place(f"--{name}", Path(values[name]), file=name == "out" and command in _FILES)
            if command != "report":
                _check_apart(f"--{name}", Path(values[name]), "--data", values.get("data"))
                _check_apart(f"--{name}", Path(values[name]), "PHOTOS", values.get("photos"))
    needed = _NEEDS.get(command, lambda values: None)(values)
    for need in (needed, None if values.get("ray") is None else ("ray", "--ray")):
        if need is not None:
            require_extra(*need)


def _check_number(name: str, value: Any) -> None:
    option = f"--{name.replace('_', '-')}"
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ArgumentError(f"{option}: expected a finite number, got {number}")
        if name in _RATES and isinstance(number, int | float) and not 0 < number < 1:
            raise ArgumentError(f"{option}: expected a rate between 0 and 1, such as 0.01, got {number:g}")
        if isinstance(number, int) and name not in _SEEDS and abs(number) > _MOST:
            raise ArgumentError(f"{option}: expected a number of at most {_MOST}, got {number}")


def _check_place(option: str, path: Path, *, file: bool) -> None:
    """Refuse a place that cannot be written to."""
    if is_remote(to_path(path)):
        hint = "" if file else "; 'fastadv attack --ray' writes to a URL"
        raise ArgumentError(f"{option}: expected a local {'file' if file else 'folder'}, got {to_path(path)}{hint}")
    try:
        if file and path.is_dir():
            raise ArgumentError(f"{option}: expected a file to write, got the folder {path}")
        if file and not path.parent.is_dir():
            raise ArgumentError(f"{option}: expected a file in a folder that exists, got {path}")
        if not file and path.exists() and not path.is_dir():
            raise ArgumentError(f"{option}: expected a folder, got the file {path}")
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        there = there.parent if there.is_file() and file else there
        if not there.is_dir():
            raise ArgumentError(f"{option}: expected a folder, got {path}, which is below the file {there}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ArgumentError(
                f"{option}: expected a folder that can be written, got {path}; check the permissions of {there}"
            )
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL byte
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{option}: expected a path, got {str(path)!r}: {error}") from error


def _check_apart(option: str, path: Path, name: str, data: Any) -> None:
    """Refuse a place inside the data, whose images would be read as data by the next call, and the reverse."""
    if data is None or not Path(data).exists():
        return
    there, source = path.resolve(), Path(data).resolve()
    if there == source or source in there.parents:
        raise ArgumentError(f"{option}: expected a folder outside of {name} {data}, got {path}")
    if there in source.parents:
        raise ArgumentError(f"{option}: expected a folder that does not hold {name} {data}, got {path}")
