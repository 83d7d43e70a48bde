"""``fastadv transfer``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.options import ClusterOptions, InputOptions, OutputOptions, PrintOptions, RunOptions
from fastadv.core.numbers import parse_counts, parse_eps, parse_rates, show_eps

if TYPE_CHECKING:
    from fastadv.studies.transfer import results
    from fastadv.studies.transfer import untargeted as comparing
    from fastadv.studies.transfer.folder import TransferPlan


@takes_groups
def transfer(
    given: Annotated[InputOptions, Without("model", "weights")],
    network: Annotated[
        list[str],
        Option(
            help="Add a network, NAME, NAME=WEIGHTS, FILE.onnx or ALIAS=NAME:WEIGHTS, where ALIAS is a name of your "
            "own; give at least two."
        ),
    ],
    method: Annotated[
        list[str],
        Option(
            help="Run this attack, NAME[:STEPS][,FIELD=VALUE], such as fim:13 or dfanet-fim,rate=0.05; may be given "
            "several times."
        ),
    ],
    run: Annotated[RunOptions, Without("slots", "success_float")],
    processes: ClusterOptions,
    output: Annotated[
        OutputOptions,
        Changed("out", "Write images, transfer.json and report.html to this folder; continue an unfinished run."),
    ],
    printing: PrintOptions,
    surrogate: Annotated[
        list[str] | None,
        Option(help="Attack this network, or an ensemble A+B; may be given several times (default: each network)."),
    ] = None,
    untargeted: Annotated[
        bool,
        Option(
            "--untargeted",
            help="Attack half of the images untargeted and compare ROC curves; allows --method gd-uap[:STEPS] "
            "(default: 40,000 steps).",
        ),
    ] = False,
    eps: Annotated[str, Option(help="Largest L-infinity norm of a perturbation, pixels in [0, 1].")] = "10/255",
    steps: Annotated[int, Option(min=1, help="Number of steps of iterative methods given without :STEPS.")] = 1500,
    at: Annotated[
        str | None, Option(help="Measure after these numbers of steps too, such as 13,50,200 or 1-13,50-200:50.")
    ] = None,
    pairs: Annotated[int, Option(min=1, help="Attack this many pairs of different people.")] = 10000,
    images: Annotated[int, Option(min=1, help="Draw the pairs from this many sources and as many targets.")] = 100,
    far: Annotated[
        str,
        Option(help="Set every network's thresholds at these false accept rates, such as 1e-3,1e-4."),
    ] = "1e-3",
    size: Annotated[
        int | None,
        Option(min=16, help="Attack square crops of this many pixels (default: the first network's size)."),
    ] = None,
    target_set: Annotated[
        list[str] | None,
        Option(help="Average hits and distances over these targets too, NAME=A+B; may be given several times."),
    ] = None,
    verification: Annotated[
        Path | None,
        Option(
            help="Measure the thresholds on the pairs of this CSV file (first,second,same) instead of LFW's pairs.txt."
        ),
    ] = None,
    folds: Annotated[str | None, Option(help="Use only these folds for the thresholds, for example 1-5.")] = None,
) -> None:
    """Attack pairs on each surrogate network and evaluate the images on all networks: a matrix of hit rates.

    Source and target images show different people. Pairs that no network accepts when clean are attacked so that
    the surrogate accepts them. A hit is an attacked pair that a network accepts, at its own threshold for --far.
    Networks of another input size see the attacked crop resized, and are attacked through the resize.

    Example: fastadv transfer --data lfw/ --network mobilefacenet=M.safetensors --network edgeface_xs=E.safetensors
    --method fim:13 --method dfanet-fim --pairs 64 --images 64 --steps 300 --out study/
    """
    from fastadv.cli.show import print_next, print_opened, timed
    from fastadv.report.pages import transfer as transfer_page
    from fastadv.runs.inputs import PairChoice
    from fastadv.studies.transfer.folder import TransferPlan, transfer_folder
    from fastadv.studies.transfer.networks import parse_network

    plan = TransferPlan(
        inputs=run.inputs(given, output),
        networks=network,
        methods=method,
        surrogates=surrogate,
        untargeted=untargeted,
        eps=parse_eps(eps),
        steps=steps,
        at=None if at is None else parse_counts("at", at),
        pairs=pairs,
        images=images,
        far=parse_rates("far", far),
        verification=PairChoice(file=verification, folds=folds, option="--verification"),
        size=size,
        sets=target_set or (),
    )
    cluster = processes.on(run.device)
    found, seconds = timed(transfer_folder, plan, cluster=cluster, quiet=printing.without_bars)
    page = transfer_page.render(output.folder, source=found.source)
    if printing.ends({**found.described(), "seconds": round(seconds, 3), "report": str(page)}):
        return
    if found.untargeted is not None:
        _print_untargeted(found.untargeted, plan)
    elif found.targeted is not None:
        _print_targeted(found.targeted, plan)
    print_opened(page, seconds)
    first, more = parse_network(network[0]), {"pairs": verification, "eps": eps, "out": "talfw"}
    faces = given.same_faces(given.landmarks)
    print_next("talfw", data=given.data, model=first.model, weights=first.weights, **faces, **more)


def _print_untargeted(found: comparing.Untargeted, plan: TransferPlan) -> None:
    from fastadv.cli.show import percent, print_notes, print_notices, print_table
    from fastadv.studies.transfer import untargeted as comparing

    described = comparing.describe(found)
    rows = [
        (r["method"], r["network"], percent(r["auc"]), percent(r["eer"]), percent(r["tar_at_far_1e2"]))
        for r in described["rows"]
    ]
    (surrogate,) = plan.surrogates or ("",)
    title = f"{described['pairs']} pairs, one image of most attacked on {surrogate}, eps {show_eps(plan.eps)}"
    print_table(title, rows, ("attack", "network", "AUC", "EER", "TAR at FAR 1 %"))
    print_notes(described["notes"])
    print_notices(tuple(described.get("notices", ())))


def _print_targeted(found: results.Transfer, plan: TransferPlan) -> None:
    from fastadv.cli.show import percent, print_notes, print_notices, print_table
    from fastadv.studies.transfer import results

    names = list(found.verifiers)
    for far in found.fars:
        rows = []
        for cell in found.cells:
            rows.append((cell.surrogate, cell.method, *(percent(found.hit_rate(cell, n, far=far)) for n in names)))
        title = f"hit rates at FAR {far:g}, {len(found.pairs)} pairs, eps {show_eps(plan.eps)}"
        print_table(title, rows, ("surrogate", "method", *names))
    if found.sets:
        means = results.describe(found)["sets"]
        rows = [(m["surrogate"], m["method"], m["set"], *(percent(f["hit_rate"]) for f in m["by_far"])) for m in means]
        columns = ("surrogate", "method", "targets", *(f"FAR {far:g}" for far in found.fars))
        print_table("mean hit rates over sets of targets", rows, columns)
    before = {name: int(found.met(name).sum()) for name in names}
    print_notes([f"met before: {', '.join(f'{n} of {len(found.pairs)} ({name})' for name, n in before.items())}"])
    compared = [
        (method, base, f"{surrogate} → {target}", f"{100 * one.difference:+.1f} %", f"{one.p:.2g}", one.verdict)
        for surrogate, target, method, base, one in results.verdicts(found)
    ]
    if compared:
        columns = ("method", "against", "networks", "difference", "p", "verdict")
        print_table("against the method that it adds to, after as many steps", compared, columns)
    print_notices(tuple(found.notices()))
