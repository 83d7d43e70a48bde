"""A template by its name or from a user's own file."""

from __future__ import annotations

import os

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.nearest import meant
from fastadv.core.places import is_file
from fastadv.core.templates import TEMPLATES, Template
from fastadv.data.names import read_lines


def open_template(text: str | os.PathLike[str]) -> Template:
    """A template by its name, or from a file: width and height of the crop, then five points x y.

    The twelve numbers stand in any lines, with blanks between them; what follows a ``#`` is skipped.

    Raises:
        ValueError: There is no such name or file, or it does not hold a template.
    """
    if text in TEMPLATES:
        return TEMPLATES[str(text)]
    if not is_file(text):
        known = (*TEMPLATES, "a file")
        raise ArgumentError(f"template: expected one of {', '.join(known)}, got {str(text)!r}{meant(str(text), known)}")
    lines = read_lines(text, "template", ArgumentError)
    words = [word for line in lines for word in line.partition("#")[0].split()]
    try:
        numbers = [float(word) for word in words]
        width, height = (int(word) for word in words[:2])
    except ValueError:
        numbers, width, height = [], 0, 0
    if len(numbers) != 12:
        raise ArgumentError(
            f"{os.fspath(text)}: expected width and height of the crop, then five points x y, 12 numbers, got "
            f"{brief(' '.join(words))}"
        )
    return Template(points=tuple(zip(numbers[2::2], numbers[3::2], strict=True)), size=(height, width))
