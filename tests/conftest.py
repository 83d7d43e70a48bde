import os
from collections.abc import Iterator

import torch

if not torch.cuda.is_available():
    # Before any module with a Triton kernel is imported: later it has no effect.
    os.environ.setdefault("TRITON_INTERPRET", "1")

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


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of an empty bucket on an S3 server of this process; its address is in the environment."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: the extra `s3`")
    server = pytest.importorskip("moto.server", reason="moto is not installed: the extra `test`").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()  # one that was made before has another address
        bucket = f"people-{port}"  # moto keeps the buckets of all servers of a process together
        s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)
        yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
