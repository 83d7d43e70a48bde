"""Real faces for the tests marked `faces`; the content of a run that nothing disturbs."""

import os
from pathlib import Path

import pytest
from run_files import CONFIG, NAMES, content, write

from fastadv.data import RunFolder


@pytest.fixture(scope="session")
def lfw_root() -> Path:
    root = Path(os.environ.get("FASTADV_DATA", Path(__file__).parents[3] / "shared" / "data")) / "lfw"
    if not root.is_dir():
        pytest.skip(f"no faces at {root}; set FASTADV_DATA")
    return root


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        run.finish(NAMES)
    return content(path)
