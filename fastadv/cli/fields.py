"""Groups of options: dataclasses whose fields are options, and commands that take them as parameters."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

from fastadv.core.remote import to_path

_Command = TypeVar("_Command", bound=Callable[..., Any])
_AS_DECLARED: Any = object()
_VALUES: dict[type, str] = {int: "N", float: "X", Path: "PATH"}
_WIDEST = 13  # list of choices in the place of a value


class Changed:
    """An option of a group that one command has with other settings; a mark of the group's parameter."""

    def __init__(self, field: str, help: str | None = None, *, default: Any = _AS_DECLARED, **settings: Any) -> None:
        """What is different.

        Args:
            field: The field.
            help: Its help text; None: the group's.
            default: Its default; by default the group's, or none.
            settings: Further arguments of ``typer.Option``.
        """
        self.field, self.default = field, default
        self.settings = settings if help is None else {**settings, "help": help}


class Without:
    """Options of a group that a command does not have; the fields hold their defaults, or None."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields


def takes_groups(command: _Command) -> _Command:
    """A command for Typer in which every parameter that is a dataclass stands for the fields of it.

    A field is declared as a parameter of Typer is, ``Annotated[int, typer.Option(...)] = 0``. The dataclass's ``panel``
    names the part of the help that its options are in. A parameter ``Annotated[Group, Changed(...), Without(...)]`` has
    the group's options but for these.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        group, *marks = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        if isinstance(group, type) and is_dataclass(group):
            options = list(_expanded(group, marks))
            names = [option.name for option in options]
            needed = {field.name for field in fields(group) if field.default is MISSING}
            groups[name] = partial(group, **dict.fromkeys(needed.difference(names))), names
            parameters += options
        else:
            annotation = hints[name]
            if marks:
                annotation = Annotated[group, _with_metavar(marks[0], group)]
            parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def expanded(**values: Any) -> Any:
        values = {name: _placed(value) for name, value in values.items()}
        built = {
            name: build(**{option: values.pop(option) for option in names}) for name, (build, names) in groups.items()
        }
        return command(**values, **built)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded  # type: ignore[return-value]


def _placed(value: Any) -> Any:
    """The path of a URL where Typer has made a plain one of it."""
    if isinstance(value, list):
        return [_placed(each) for each in value]
    return to_path(value) if isinstance(value, Path) else value


def _with_metavar(declared: Any, kind: Any) -> Any:
    """A copy of a parameter's declaration with the word that stands for its value in the help."""
    made = copy.copy(declared)
    kinds = [part for part in (get_args(kind) or (kind,)) if part is not type(None)]
    kinds = [part for outer in kinds for part in (get_args(outer) or (outer,))]
    word = next((word for known, word in _VALUES.items() if issubclass(kinds[0], known)), "TEXT")
    if issubclass(kinds[0], Enum):
        choices = "|".join(str(choice.value) for choice in kinds[0])
        word = choices if len(choices) <= _WIDEST else "NAME"
    if made.metavar is None and isinstance(made, OptionInfo):
        made.metavar = word
    return made


def _expanded(group: type, marks: list[Any]) -> Iterator[inspect.Parameter]:
    """A parameter for each option of a group that a command has."""
    left_out = {field for mark in marks if isinstance(mark, Without) for field in mark.fields}
    changed = {mark.field: mark for mark in marks if isinstance(mark, Changed)}
    hints = get_type_hints(group, include_extras=True)
    own = inspect.get_annotations(group)
    for field in sorted(fields(group), key=lambda field: field.name not in own):  # a base's options come last
        if field.name in left_out:
            continue
        mark = changed.get(field.name, Changed(field.name))
        kind, declared = get_args(hints[field.name])
        option = _with_metavar(declared, kind)
        vars(option).update({"rich_help_panel": group.panel, **mark.settings})  # type: ignore[attr-defined]
        default = field.default if mark.default is _AS_DECLARED else mark.default
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=Annotated[kind, option],
        )
