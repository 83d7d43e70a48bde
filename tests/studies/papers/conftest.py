"""The recipes of a paper at scale "smoke", run once for all tests."""

import functools

import pytest

from fastadv.studies.papers.catalog import find_recipes
from fastadv.studies.papers.recipe import Setup
from fastadv.studies.papers.run import run_recipes

SMOKE = Setup(scale="smoke", data=None, networks=())


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The folder of a paper's recipes, by the first word of their names."""

    @functools.cache
    def run(paper):
        out = tmp_path_factory.mktemp(paper) / "out"
        run_recipes(find_recipes([paper]), SMOKE, out)
        return out

    return run
