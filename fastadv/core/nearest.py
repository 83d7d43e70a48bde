"""The nearest known name to a wrong one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is most like another one, whatever its case; or the first that begins with it; or None."""
    names = {_plain(each): each for each in reversed(list(known))}
    asked = _plain(str(name))
    found = [asked] if asked in names else get_close_matches(asked, names, n=1)
    if found:
        return names[found[0]]
    return next((each for plain, each in reversed(names.items()) if asked and plain.startswith(asked)), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def meant(name: object, known: Iterable[str]) -> str:
    """The end of an error: ``"; did you mean 'pgd'?"``, or nothing."""
    found = nearest(name, known)
    return "" if found is None else f"; did you mean {found!r}?"
