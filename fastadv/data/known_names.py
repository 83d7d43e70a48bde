"""Names that a source of faces must have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastadv.core.errors import UnknownNameError
from fastadv.data import names

if TYPE_CHECKING:
    from fastadv.data.faces import FaceSource


def require(source: FaceSource, wanted: Iterable[str]) -> None:
    """Checks that a source has every one of the names.

    Raises:
        KeyError: With the number of the missing ones and the first few.
    """
    missing = [name for name in dict.fromkeys(wanted) if name not in source]
    if missing:
        meant = hint(source, missing[0])
        raise UnknownNameError(f"names: expected some of the {len(source)} images, got {names.several(missing)}{meant}")


def hint(source: FaceSource, name: str) -> str:
    """What a name that a source lacks may have meant."""
    found = source.find(name)
    if found is None and "/" in name:  # with the folders above the source
        found = source.find("/".join(name.replace("\\", "/").split("/")[-2:]))
    if found is None:
        return f"; they are named like {names.shown(source.names[0])}" if len(source) and "/" not in name else ""
    form = " (in the Unicode form NFC)" if names.canonical(name) != name else ""
    return f"; {names.shown(found)} is{form}"
