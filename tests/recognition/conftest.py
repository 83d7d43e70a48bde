"""Real faces and weights for the tests marked `faces`."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("FASTADV_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / "lfw").is_dir() or not (root / "weights").is_dir():
        pytest.skip(f"no faces and weights at {root}; set FASTADV_DATA")
    return root
