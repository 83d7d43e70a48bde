"""The answer of `fastadv.core.content`: what a file is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

AGAIN = "download it again"
UNPACK = "unpack it first"
AS_STATE = "save the module's state_dict() in the framework that wrote it, best as .safetensors"
SHOWN = 40  # letters of a name in a message


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file is.

    Attributes:
        kind: one word that programs can compare: ``"html"``, ``"torch zip"``, ``"text"``, ``"unknown"``, ...
        what: the same for a message: "an HTML page, as a link that needs a login gives one".
        mend: what to do about it whatever was expected; "" where that is not known.
        weights: what to do about it where network weights were expected.
        names: what its pickle would import, where it is one or holds one.
    """

    kind: str
    what: str
    mend: str = ""
    weights: str = ""
    names: tuple[str, ...] = ()

    def said(self, *, weights: bool = False) -> str:
        """What it is and what to do, for the end of an error message."""
        advice = self.mend or (self.weights if weights else "")
        return f"{self.what}; {advice}" if advice else self.what
