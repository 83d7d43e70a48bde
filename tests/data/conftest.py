"""Real faces for the tests marked `faces`; the content of a run that nothing disturbs."""

from pathlib import Path

import pytest
from given_data import data_folder
from run_files import CONFIG, NAMES, content, write

from fastadv.data import RunFolder


@pytest.fixture(scope="session")
def lfw_root() -> Path:
    return data_folder("lfw") / "lfw"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "run"
    with RunFolder.open(path, CONFIG) as run:
        write(run, NAMES)
        run.finish(NAMES)
    return content(path)
