"""Every recipe of every paper runs at scale "smoke", on synthetic faces and shipped networks, and its page is drawn."""

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fastadv.report.pages.study import claim_rows, read_results, render, table_rows
from fastadv.studies.papers.catalog import RECIPES, find_recipes
from fastadv.studies.papers.recipe import Setup
from fastadv.studies.papers.run import run_recipes

PAPERS = tuple(dict.fromkeys(recipe.paper for recipe in RECIPES.values()))


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_recipes_run_at_smoke_and_give_the_papers_rows(paper, smoke):
    recipes, out = find_recipes([paper]), smoke(paper)
    folders = [out / recipe.name for recipe in recipes]
    for recipe, folder in zip(recipes, folders, strict=True):
        found = read_results(folder)
        rows = list(table_rows(found))
        assert rows
        if recipe.printed is not None:
            ours = {row["name"] for study in found["found"] for row in study["table"]["rows"]}
            assert set(recipe.printed.rows) <= ours, recipe.name
        verdicts = [verdict for _, _, verdict, _ in claim_rows(found)]
        assert len(verdicts) == len(recipe.claims) * len(found["found"])
        assert set(verdicts) <= {"pass", "fail", "undecided"}
        assert render(folder).stat().st_size > 1000
    before = {folder: (folder / "results.json").read_bytes() for folder in folders}
    run_recipes(recipes, Setup(scale="smoke", data=None, networks=()), out)
    assert {folder: (folder / "results.json").read_bytes() for folder in folders} == before
