"""Names on the command line: of attacks and networks, checked when they are given, the nearest one proposed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import typer

from fastadv.cli.networks import NETWORKS
from fastadv.core.content import is_onnx
from fastadv.core.errors import ArgumentError
from fastadv.core.nearest import meant

# of the library, which a test compares: its own lists are behind PyTorch
LossName = Enum("LossName", {n: n for n in ("softmax", "cosface", "arcface", "triplet", "keep")}, type=str)  # type: ignore[misc]
_IDENTIFIED = ("identify-as", "misidentify")
IdentifyGoal = Enum("IdentifyGoal", {n: n for n in _IDENTIFIED}, type=str)  # type: ignore[misc]
_GOALS = ("evade", "impersonate", "match", *_IDENTIFIED, "classify-as", "misclassify")
Goal = Enum("Goal", {n: n for n in _GOALS}, type=str)  # type: ignore[misc]


class Metric(str, Enum):
    cosine, euclidean = "cosine", "euclidean"


@dataclass(frozen=True, kw_only=True)
class Names:
    """The names of one kind of things, ``fastadv <kind>s`` lists them, and the parameters that take such a name.

    Attributes:
        kind: Of the things.
        listed: Their names.
        files: The suffixes of files that an option takes in place of a name.
    """

    kind: str
    listed: Callable[[], list[str]]
    files: tuple[str, ...] = ()

    def known(self, name: str | None) -> str | None:
        """A name of this kind.

        Raises:
            ArgumentError: There is none such.
        """
        if name is not None and name not in (known := self.listed()):
            raise ArgumentError(
                f"{self.kind}: expected one of 'fastadv {self.kind}s', got {name!r}{meant(name, known)}"
            )
        return name

    def known_or_file(self, name: str | None) -> str | None:
        """A name of this kind, or a file of one of ``files``.

        Raises:
            ArgumentError: It is neither.
        """
        return name if name is not None and name.endswith(self.files) else self.known(name)

    def known_or_onnx(self, name: str | None) -> str | None:
        """A name of this kind, or any file: of one of ``files``, or an ONNX file.

        Raises:
            ArgumentError: It is neither.
        """
        onnx = name is not None and name not in self.listed() and is_onnx(name)
        return name if onnx else self.known_or_file(name)

    def argument(self, help: str, metavar: str = "[NAME]", panel: str | None = None) -> Any:
        """A positional parameter."""
        return typer.Argument(
            metavar=metavar, help=help, rich_help_panel=panel, callback=self.known, autocompletion=self.listed
        )

    def option(self, help: str, *, onnx: bool = False) -> Any:
        """An option; with ``onnx`` an ONNX file may be given too."""
        callback = self.known_or_onnx if onnx else self.known_or_file
        return typer.Option(metavar="NAME", help=help, callback=callback, autocompletion=self.listed)


def _attacks() -> list[str]:
    from fastadv.attacks import CATALOG

    return list(CATALOG)


def _models() -> list[str]:
    return list(NETWORKS)


ATTACKS = Names(kind="attack", listed=_attacks)
MODELS = Names(kind="model", listed=_models, files=(".toml",))


@contextmanager
def refused_choices() -> Iterator[None]:
    """Refuse a value that is not among the few of an option in the form of the other errors.

    Raises:
        ArgumentError: What is expected, and the nearest of it.
    """
    try:
        yield
    except typer.BadParameter as error:
        given, between, choices = error.message.partition(" is not one of ")
        if not between or error.param is None:
            raise
        name, known = given.partition("'")[2].removesuffix("'"), re.findall(r"'([^']*)'", choices)
        option = error.param.opts[0]
        raise ArgumentError(
            f"{option}: expected one of {', '.join(known)}, got {name!r}{meant(name, known)}"
        ) from error
