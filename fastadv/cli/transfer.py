"""``fastadv transfer``."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastadv.cli.options import AsJson, Batch, Data, Device, Fresh, Landmarks, Prec, Precision, Seed
from fastadv.cli.show import percent, print_notes, print_notices, progress_bars, table
from fastadv.core.errors import ArgumentError
from fastadv.core.numbers import parse_counts, parse_eps, parse_folds, show_eps
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.recognition import PairedDifference
from fastadv.report.pages import transfer as transfer_page
from fastadv.runs import RunIdentity, UsedFaces, inputs, list_hash, settle
from fastadv.studies.transfer import measure as transferring
from fastadv.studies.transfer import plan as transfer_plan
from fastadv.studies.transfer import results
from fastadv.studies.transfer import untargeted as comparing


def transfer(
    data: Data,
    network: Annotated[
        list[str], typer.Option(help="Add a network to the study, NAME or NAME=WEIGHTS; give at least two.")
    ],
    method: Annotated[
        list[str],
        typer.Option(
            help="Run this attack, NAME[:STEPS]\\[,FIELD=VALUE], such as fim:13 or dfanet-fim,rate=0.05; may be given "
            "several times."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Write images, transfer.json and report.html to this folder; continue an unfinished run."),
    ],
    surrogate: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack this network, or an ensemble A+B; may be given several times (default: each network)."
        ),
    ] = None,
    untargeted: Annotated[
        bool,
        typer.Option(
            "--untargeted", help="Attack half of the images untargeted and compare ROC curves; allows --method gd-uap."
        ),
    ] = False,
    eps: Annotated[str, typer.Option(help="Largest L-infinity norm of a perturbation, pixels in [0, 1].")] = "10/255",
    steps: Annotated[
        int, typer.Option(min=1, help="Number of steps of iterative methods given without :STEPS.")
    ] = 1500,
    at: Annotated[str | None, typer.Option(help="Measure after these numbers of steps too, such as 13,50,200.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Attack this many pairs of different people.")] = 10000,
    images: Annotated[
        int, typer.Option(min=1, help="Draw the pairs from this many sources and as many targets.")
    ] = 100,
    far: Annotated[float, typer.Option(help="Set every network's threshold at this false accept rate.")] = 1e-3,
    verification: Annotated[
        Path | None,
        typer.Option(
            help="Measure the thresholds on the pairs of this CSV file (first,second,same) instead of LFW's pairs.txt."
        ),
    ] = None,
    folds: Annotated[str | None, typer.Option(help="Use only these folds for the thresholds, for example 1-5.")] = None,
    landmarks: Landmarks = None,
    seed: Seed = 0,
    batch: Batch = None,
    precision: Prec = Precision.fp32,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Attack pairs on each surrogate network and evaluate the images on all networks: a matrix of hit rates.

    Source and target images show different people. Pairs that no network accepts when clean are attacked so that
    the surrogate accepts them. A hit is an attacked pair that a network accepts, at its own threshold for --far.

    Example: fastadv transfer --data lfw/ --network mobilefacenet=M.safetensors --network edgeface_xs=E.safetensors
    --method fim:13 --method dfanet-fim --pairs 64 --images 64 --steps 300 --out study/
    """
    radius = parse_eps(eps)
    kinds = [m if untargeted and m == transfer_plan.UNIVERSAL else transfer_plan.parse_method(m) for m in method]
    checkpoints = () if at is None else parse_counts("at", at)
    chosen_folds = None if folds is None else parse_folds(folds)
    if untargeted and (surrogate is None or len(surrogate) != 1 or at is not None):
        raise ArgumentError(
            f"untargeted: expected one --surrogate and no --at, got {len(surrogate or ())} surrogates"
            f"{'' if at is None else ' and --at'}"
        )
    models = _open_networks(network, device)
    (size,) = {m.input_size for m in models.values()}
    source = inputs.open_faces(data, size=size[0], landmarks=landmarks)
    listed = inputs.open_pairs(source, file=verification, folds=chosen_folds, option="--verification")
    if untargeted:
        comparing.check_plan(models, surrogate=(surrogate or [""])[0], methods=kinds, eps=radius, steps=steps)
    else:
        transfer_plan.check_plan(
            models,
            surrogates=surrogate or list(models),
            methods=[m for m in kinds if not isinstance(m, str)],
            eps=radius,
            steps=steps,
            at=checkpoints,
            pairs=pairs,
            images=images,
        )
        transfer_plan.draw_images(source, images, seed=seed)  # so many people are there
        transfer_plan.check_far(far, listed)
    engine = settle(Engine(batch=batch, precision=precision.value), next(iter(models.values())), out)
    surrogates = surrogate or list(models)
    used = {n for p in listed for n in (p.first, p.second)}
    if not untargeted:
        used.update(name for names in transfer_plan.draw_images(source, images, seed=seed) for name in names)
    identity = RunIdentity.of(
        "transfer",
        models=models,
        attacks={
            kind.label: kind.recipe(eps=radius, steps=steps, others=()) for kind in kinds if not isinstance(kind, str)
        },
        engine=engine,
        seed=seed,
        faces=UsedFaces(source=source, names=sorted(used), landmarks=landmarks),
        out=out,
        rules={
            "untargeted": untargeted,
            "surrogates": surrogates,
            "methods": method,
            "eps": radius,
            "steps": steps,
            "verification": list_hash(listed),
            **({} if untargeted else {"at": list(checkpoints), "pairs": pairs, "images": images, "far": far}),
        },
    )
    begin = time.perf_counter()
    verdicts: list[tuple[str, str, str, str, PairedDifference]] = []
    if untargeted:
        with identity.open(out, fresh=fresh) as folder, progress_bars(quiet=as_json) as progress:
            compared = comparing.untargeted(
                source,
                listed,
                models,
                surrogate=surrogates[0],
                methods=kinds,
                eps=radius,
                steps=steps,
                folder=folder,
                seed=seed,
                engine=engine,
                progress=progress,
            )
            comparing.save(compared, folder)
        described = comparing.describe(compared)
        rows: list[tuple[str, ...]] = [
            (r["method"], r["network"], percent(r["auc"]), percent(r["eer"]), percent(r["tar_at_far_1e2"]))
            for r in described["rows"]
        ]
        header: tuple[str, ...] = ("attack", "network", "AUC", "EER", "TAR at FAR 1 %")
        title = f"{described['pairs']} pairs, one image of most attacked on {surrogates[0]}"
        notes = described["notes"]
    else:
        chosen = [m for m in kinds if not isinstance(m, str)]
        with identity.open(out, fresh=fresh) as folder, progress_bars(quiet=as_json) as progress:
            verifiers = {
                name: transfer_plan.calibrate(source, listed, model, far=far, progress=progress)
                for name, model in models.items()
            }
            study = transferring.transfer(
                source,
                verifiers,
                surrogates=surrogates,
                methods=chosen,
                eps=radius,
                steps=steps,
                at=checkpoints,
                pairs=pairs,
                images=images,
                folder=folder,
                seed=seed,
                engine=engine,
                progress=progress,
            )
            results.save(study, folder)
        described = results.describe(study)
        rows = [(c.surrogate, c.method, *(percent(study.hit_rate(c, name)) for name in models)) for c in study.cells]
        verdicts = list(results.verdicts(study))
        header, title = ("surrogate", "method", *models), f"hit rates, {len(study.pairs)} pairs"
        before = {name: int(study.met(name).sum()) for name in models}
        notes = [f"met before: {', '.join(f'{n} of {len(study.pairs)} ({name})' for name, n in before.items())}"]
    page = transfer_page.render(out, source=source)
    seconds = time.perf_counter() - begin
    if as_json:
        print(json.dumps({**described, "seconds": round(seconds, 3), "report": str(page)}))
        return
    console = Console()
    console.print(table(f"{title}, eps {show_eps(radius)}", rows, header))
    print_notes(notes)
    compared_rows = [
        (method, base, f"{surrogate} → {target}", f"{100 * found.difference:+.1f} %", f"{found.p:.2g}", found.verdict)
        for surrogate, target, method, base, found in verdicts
    ]
    if compared_rows:
        columns = ("method", "against", "networks", "difference", "p", "verdict")
        console.print(table("against the method that it adds to, after as many steps", compared_rows, columns))
    print_notices(tuple(described.get("notices", ())))
    console.print(f"{seconds:.0f} s; open {page}", highlight=False, markup=False, soft_wrap=True)


def _open_networks(texts: list[str], device: str) -> dict[str, FaceModel]:
    models: dict[str, FaceModel] = {}
    for text in texts:
        name = text.partition("=")[0]
        if name in models:
            raise ArgumentError(f"network: expected each one once, got {name!r} twice")
        models[name] = inputs.open_named_model(text, device=device)
    if len(models) < 2 or len({m.input_size for m in models.values()}) > 1:
        got = ", ".join(f"{n} {m.input_size}" for n, m in models.items())
        raise ArgumentError(f"network: expected two or more of one input size, got {got}")
    return models
