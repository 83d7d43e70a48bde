"""Real faces for the tests marked `faces`."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lfw_root() -> Path:
    root = Path(os.environ.get("FASTADV_DATA", Path(__file__).parents[3] / "shared" / "data")) / "lfw"
    if not root.is_dir():
        pytest.skip(f"no faces at {root}; set FASTADV_DATA")
    return root
