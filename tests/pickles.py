"""Pickled values in the forms that files have, and the comparison of states."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAME = "synth-mobile"


FORMS: dict[str, Callable[[Any, Path], None]] = {
    "zip": lambda value, path: torch.save(value, path),
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    **{f"pickle {p}": lambda value, path, p=p: path.write_bytes(pickle.dumps(value, protocol=p)) for p in range(6)},
}


def same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0, msg=key)


def stored(form: str, value: Any, path: Path) -> Path:
    FORMS[form](value, path)
    return path
