"""One form of equal values, so that their pickles are equal too."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> Any:
    """The value with its mappings in the order of their keys and equal texts as one object.

    A pickle holds the order of keys and which texts are one object; both depend on whether a state was just made or
    read from a file. Lists, tuples and mappings are copied, anything else is taken as it is.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {canonical(key): canonical(value[key]) for key in sorted(value, key=lambda key: (str(type(key)), key))}
    if isinstance(value, (list, tuple)):
        return type(value)(canonical(each) for each in value)
    return value
