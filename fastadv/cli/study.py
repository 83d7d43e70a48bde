"""``fastadv study``: the tables and figures of papers, measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from fastadv.cli.checks import Checked
from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.help_page import group
from fastadv.cli.options import (
    SYNTHETIC,
    AlignOptions,
    AsJson,
    ClusterOptions,
    Landmarks,
    OutputOptions,
    PrintOptions,
    RunOptions,
)

if TYPE_CHECKING:
    from fastadv.studies.papers.recipe import Setup, StudyRecipe
    from fastadv.studies.papers.run import Planned

study = group("Measure the tables and figures of papers again, with the paper's numbers beside yours.")


class ScaleName(str, Enum):
    smoke, small, paper = "smoke", "small", "paper"


@study.command("list", cls=Checked)
@takes_groups
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes: a table or figure of a paper each."""
    import json

    from fastadv.cli.show import print_columns, print_next
    from fastadv.studies.papers.catalog import RECIPES

    if as_json:
        print(json.dumps([_named(recipe) for recipe in RECIPES.values()]))
        return
    papers: dict[str, list[StudyRecipe]] = {}
    for recipe in RECIPES.values():
        papers.setdefault(recipe.paper, []).append(recipe)
    for paper, recipes in papers.items():
        print_columns(paper, [(r.name, r.title, r.source) for r in recipes], ("name", "what it shows", "source"))
    print_next("study", "run", next(iter(RECIPES)), out="study")


def _named(recipe: StudyRecipe) -> dict[str, object]:
    return {
        "name": recipe.name,
        "source": recipe.source,
        "title": recipe.title,
        "networks": recipe.networks,
        "claims": [claim.statement for claim in recipe.claims],
        "notes": list(recipe.notes),
    }


@study.command(cls=Checked)
@takes_groups
def show(
    name: Annotated[str, typer.Argument(help="Show this recipe, a name of 'fastadv study list'.")],
    as_json: AsJson = False,
) -> None:
    """Show a recipe: the paper's table, the findings that are checked, and what differs from the paper."""
    import json

    from fastadv.cli.show import print_line, print_next, print_notes, print_table
    from fastadv.report.pages.study import header, table_rows
    from fastadv.studies.papers.catalog import find_recipes

    recipes = find_recipes([name])
    tables = [None if recipe.printed is None else recipe.printed.described() for recipe in recipes]
    if as_json:
        print(json.dumps([{**_named(one), "printed": table} for one, table in zip(recipes, tables, strict=True)]))
        return
    for recipe, table in zip(recipes, tables, strict=True):
        print_line(f"{recipe.name}: {recipe.title}\n{recipe.source}\n")
        if table is not None:
            found = {"printed": table, "found": []}
            print_table("as printed", list(table_rows(found)), header(found))
        for claim in recipe.claims:
            print_line(f"finding: {claim.statement}")
        print_notes(recipe.notes)
    print_next("study", "run", name, out="study")


@study.command("run", cls=Checked)
@takes_groups
def run_study(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...", help="Names of 'fastadv study list', the first word of a paper's recipes, or 'all'."
        ),
    ],
    run: Annotated[RunOptions, Without("slots", "success_float")],
    processes: ClusterOptions,
    output: Annotated[
        OutputOptions,
        Changed(
            "out",
            "Write parts and results to this folder; continue an unfinished run.",
            default=Path("fastadv-study"),
        ),
    ],
    printing: PrintOptions,
    photographs: AlignOptions,
    data: Annotated[
        Path | None,
        Option(help="Read faces: a folder, LFW, a .bin (default with --scale smoke: synthetic faces)."),
    ] = None,
    network: Annotated[
        list[str] | None,
        Option(
            metavar="NAME[=FILE]",
            help="Measure this network, with its weights, or ALIAS=NAME:FILE, where ALIAS is a name of your own; may "
            "be given several times.",
        ),
    ] = None,
    pairs: Annotated[
        Path | None, Option(help="Verify the pairs of this CSV file (first,second,same) (default: the data's own).")
    ] = None,
    landmarks: Landmarks = None,
    scale: Annotated[
        ScaleName,
        Option(help="Size of the studies: smoke (seconds), small (minutes), paper (the paper's numbers)."),
    ] = ScaleName.smoke,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print evaluations, time on this machine and disk, and run nothing.")
    ] = False,
) -> None:
    """Run recipes: their studies, the table beside the paper's, its findings checked, and a page of each.

    Parts that several recipes need are run once. The same command continues an interrupted run.

    Example: fastadv study run massoli-table-1 --data lfw/ --network mobilefacenet=FILE --scale small --out study/
    """
    from fastadv.cli.show import print_line, timed
    from fastadv.report.pages import study as study_page
    from fastadv.studies.papers.catalog import find_recipes
    from fastadv.studies.papers.recipe import Setup
    from fastadv.studies.papers.run import run_recipes

    recipes, cluster = find_recipes(names), processes.on(run.device)
    setup = Setup(
        scale=scale.value,
        data=data,
        networks=tuple(network or ()),
        pairs=pairs,
        landmarks=landmarks,
        search=photographs.search(SYNTHETIC if data is None else data, run.device),
        seed=run.seed,
        engine=run.engine,
        device=run.device,
    )
    if dry_run:
        _print_plan(recipes, setup, printing)
        return
    more = {"fresh": output.fresh, "cluster": cluster}
    folders, seconds = timed(run_recipes, recipes, setup, output.folder, quiet=printing.without_bars, **more)
    found = [study_page.read_results(folder) for folder in folders]
    pages = [study_page.render(folder) for folder in folders]
    described = [
        {
            "recipe": one["recipe"],
            "report": str(page),
            "claims": [
                {"statement": statement, "networks": networks, "verdict": verdict}
                for statement, networks, verdict, _ in study_page.claim_rows(one)
            ],
        }
        for one, page in zip(found, pages, strict=True)
    ]
    if printing.ends({"recipes": described, "seconds": round(seconds, 3)}):
        return
    for one, page in zip(found, pages, strict=True):
        _print_found(one)
        print_line(f"open {page}\n")
    print_line(f"{seconds:.0f} s")


def _print_found(found: Mapping[str, Any]) -> None:
    from fastadv.cli.show import print_line, print_notes, print_table
    from fastadv.report.pages import study as study_page

    print_table(f"{found['title']} ({found['source']})", list(study_page.table_rows(found)), study_page.header(found))
    for statement, networks, verdict, number in study_page.claim_rows(found):
        print_line(f"{verdict}: {statement} ({networks}: {number})")
    print_notes(found["notes"])


def _print_plan(recipes: tuple[StudyRecipe, ...], setup: Setup, printing: PrintOptions) -> None:
    from fastadv.cli.show import print_table
    from fastadv.studies.papers.run import plan_recipes

    planned = plan_recipes(recipes, setup)
    if printing.ends({"planned": [asdict(each) for each in planned]}):
        return
    rows = [
        (
            each.recipe,
            f"{each.cost.gradients:,}",
            f"{each.cost.forwards:,}",
            f"{each.cost.images:,}",
            f"{each.seconds / 60:.1f} min",
            f"{each.mebibytes:,.0f} MiB",
        )
        for each in planned
    ]
    print_table(
        f"scale {setup.scale}, at most",
        [*rows, _total(planned)],
        ("recipe", "gradients", "evaluations", "images", "time here", "disk"),
        note="Parts that an earlier recipe has are counted there.",
    )


def _total(planned: Sequence[Planned]) -> tuple[str, ...]:
    minutes, size = sum(each.seconds for each in planned) / 60, sum(each.mebibytes for each in planned)
    return "all", *("",) * 3, f"{minutes:.1f} min", f"{size:,.0f} MiB"
