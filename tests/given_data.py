"""Real faces, photographs and weights."""

import os
from pathlib import Path

import pytest


def data_folder(*needed: str) -> Path:
    """The folder of `FASTADV_DATA`; a test is skipped where a part of it is not there."""
    root = Path(os.environ.get("FASTADV_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    for name in needed:
        if not (root / name).exists():
            pytest.skip(f"no {name} in {root} (set FASTADV_DATA)")
    return root
