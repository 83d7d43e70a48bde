"""``fastadv defend``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from fastadv.cli.fields import Changed, takes_groups
from fastadv.cli.options import Decided, InputOptions, OutputOptions, PairOptions, PrintOptions, RunOptions

FORMS = (
    "mean[:SIZE], gauss[:SIZE[:SIGMA]], median[:SIZE], bits[:BITS], jpeg[:QUALITY[:GRADIENT]], resize-pad[:SMALLEST], "
    "noise2clean[:FILE], A+B, one(A|B), selective[:LAYERS[:SHARE]], weights:FILE, "
    "attack(NAME[:STEPS][@EPS])[:START[:THRESHOLD]], known(...) with the same arguments, for queries known to be "
    "attacked, or pair(NAME[:STEPS][@EPS])[:both|gallery|query]"
)  # of fastadv.studies.defences.plan, which a test compares


@takes_groups
def defend(
    given: InputOptions,
    defence: Annotated[
        list[str],
        Option(help=f"Evaluate this defence, such as mean:3 or jpeg:20; may be given several times. Forms: {FORMS}."),
    ],
    pairs: PairOptions,
    run: RunOptions,
    output: Annotated[
        OutputOptions,
        Changed("out", "Write images, defences.json and report.html to this folder; continue an unfinished run."),
    ],
    printing: PrintOptions,
    attack: Annotated[
        list[str] | None,
        Option(
            help="Run this attack, NAME[:STEPS][@EPS][,FIELD=VALUE], such as fim:20@8/255; may be given several times."
        ),
    ] = None,
    copy: Annotated[
        list[Path] | None,
        Option(
            help="Evaluate every defence on this attacked copy of the faces too, such as one of 'fastadv talfw'; "
            "may be given several times."
        ),
    ] = None,
    threat: Annotated[
        list[str] | None,
        Option(
            help="Evaluate this attacker: zero (unaware of the defence), perfect[:SAMPLES] (white-box) or "
            "adaptive[:SAMPLES] (white-box, evades --detector too); may be given several times (default: zero and "
            "perfect)."
        ),
    ] = None,
    detector: Annotated[
        Path | None, Option(help="Detector that the adaptive attacker evades, a file of 'fastadv detect fit'.")
    ] = None,
    false_alarm: Annotated[
        float | None,
        Option(
            help="Set the detector's threshold at this false-alarm rate (default: 0.01; the equal error rate where "
            "the detector was not calibrated for 0.01)."
        ),
    ] = None,
    threshold: Decided = None,
    sweep: Annotated[
        list[float] | None,
        Option(
            help="Run the attacks that look for the smallest change at this cosine threshold too, to compare "
            "impersonation with anonymisation; may be given several times."
        ),
    ] = None,
    black_box: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Measure the confidence of this second network, NAME or NAME=WEIGHTS, on clean, attacked and "
            "defended images.",
        ),
    ] = None,
) -> None:
    """Evaluate defences against unaware, white-box and adaptive attackers.

    Both images of a pair pass through the defence. The first one is attacked: to match in pairs of different people,
    not to match in pairs of one person. From an attacked --copy both images are read. The defended verifier decides at
    its own thresholds from clean pairs, or at --threshold. Signs of masked gradients are listed below the table.

    Example: fastadv defend --data lfw/ --model mobilefacenet --weights FILE --defence mean:3 --defence jpeg:20
    --attack ffm --attack fim:20 --limit 300 --out study/
    """
    from fastadv.cli.show import print_next, print_notes, print_notices, print_opened, print_table, timed
    from fastadv.report.pages import defences as defend_page
    from fastadv.studies.defences import results as defend_results
    from fastadv.studies.defences.folder import DefencePlan, defend_folder

    plan = DefencePlan(
        inputs=run.inputs(given, output),
        defences=defence,
        attacks=attack or (),
        threats=threat or ("zero", "perfect"),
        copies=copy or (),
        detector=detector,
        false_alarm=false_alarm,
        pairs=pairs.choice(),
        threshold=threshold,
        sweep=sweep or (),
        black_box=black_box,
    )
    study, seconds = timed(defend_folder, plan, quiet=printing.without_bars)
    described = defend_results.describe(study)
    page = defend_page.render(output.folder)
    if printing.ends({**described, "seconds": round(seconds, 3), "report": str(page)}):
        return
    title = f"{given.model}, {described['pairs']} pairs"
    print_table(f"{title}, clean", defend_page.clean_rows(described), defend_page.CLEAN)
    print_notes(defend_page.clean_notes(described))
    print_table(f"{title}, attacked", defend_page.attacked_rows(described), defend_page.ATTACKED)
    print_table(f"{title}, by goal", defend_page.within_rows(described), defend_page.WITHIN)
    print_notes(defend_page.NORMS_NOTES)
    if described["sweep"]:
        print_table(f"{title}, over the threshold", defend_page.sweep_rows(described), defend_page.SWEEP)
    if described["black_box"]:
        rows = defend_page.confidence_rows(described)
        print_table(defend_page.confidence_title(described), rows, defend_page.CONFIDENCE)
    print_notices(defend_page.flag_lines(described))
    print_opened(page, seconds)
    if detector is None:
        print_next("train", **{**given.again, "data": "FACES"}, fine_tune=True, adversarial="fim@8/255", out="robust")
    else:
        print_next("serve", model=given.model, weights=given.weights, detector=detector)
