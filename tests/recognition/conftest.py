"""Real faces and weights for the tests marked `faces`."""

from pathlib import Path

import pytest
from given_data import data_folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    return data_folder("lfw", "weights")
