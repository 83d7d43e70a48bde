import os
from collections.abc import Iterator

import torch

if not torch.cuda.is_available():
    # Before any module with a Triton kernel is imported: later it has no effect.
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from forks import POSSIBLE, Forks
from hypothesis import settings

# a loaded machine is slow, not wrong
settings.register_profile("no-clock", deadline=None)
settings.load_profile("no-clock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes of the command line that start in milliseconds."""
    if not POSSIBLE or torch.cuda.is_available():
        pytest.skip("needs fork and /proc, and no CUDA device, which a fork would break")
    with Forks() as made:
        yield made


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many times the usual rounds a test marked `slow` takes: `FASTADV_ROUNDS`."""
    return int(os.environ.get("FASTADV_ROUNDS", "1"))
