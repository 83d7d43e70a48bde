"""``fastadv detect``: fit, evaluate and use detectors of adversarial faces."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from fastadv.cli.checks import Checked
from fastadv.cli.detect_options import FaceOptions, NaturalOptions, StudyInput
from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.help_page import group
from fastadv.cli.options import ClusterOptions, Device, OutputOptions, PrintOptions, RunOptions

detect = group("Detect adversarial faces: fit detectors on attacks, evaluate, calibrate, explain and export them.")


class SplitBy(str, Enum):
    people, images = "people", "images"


class Reading(str, Enum):
    raw, relative, both = "raw", "relative", "both"


class AdaptiveGoal(str, Enum):
    of_class, verifier = "class", "verifier"


@detect.command(cls=Checked)
@takes_groups
def fit(
    given: StudyInput,
    faces: FaceOptions,
    how: Annotated[RunOptions, Without("slots")],
    processes: ClusterOptions,
    output: Annotated[
        OutputOptions,
        Changed("out", "Write the study to this folder: attacks, detectors, figures; continue an unfinished one."),
    ],
    printing: PrintOptions,
    naturals: NaturalOptions,
    attack: Annotated[
        list[str] | None,
        Option(
            help="Fit on this attack: NAME, NAME:STEPS, NAME@EPS or NAME:STEPS@EPS, such as bim:30@0.03, "
            "with its options after commas, such as cw-l2,search_steps=3; may be given several times. Each is run "
            "targeted and untargeted."
        ),
    ] = None,
    run: Annotated[
        list[Path] | None,
        Option(help="Fit on the images of this folder of 'fastadv attack' too; may be given several times."),
    ] = None,
    natural: Annotated[int, Option(help="Keep this many images of each person natural.")] = 10,
    attacked: Annotated[int, Option(help="Attack this many images of each person.")] = 10,
    validate: Annotated[
        float,
        Option(help="Stop the fit and set the thresholds on this share of the people, or images: see --split-by."),
    ] = 0.15,
    test: Annotated[float, Option(help="Keep this share of the people, or images, for 'detect evaluate'.")] = 0.35,
    split_by: Annotated[
        SplitBy,
        Option(
            help="Divide the people between fit, validation and test, so that nobody is in two of them, or the images "
            "of every person."
        ),
    ] = SplitBy.people,
    layer: Annotated[
        list[str] | None, Option(help="Read this layer; may be given several times (default: the network's blocks).")
    ] = None,
    classes: Annotated[
        Path | None, Option(help="Read the name of each logit of the network's own head from this JSON list.")
    ] = None,
    new_head: Annotated[bool, Option("--new-head", help="Train a class head although the network has one.")] = False,
    head_epochs: Annotated[int, Option(min=1, help="Train the class head for this many epochs.")] = 300,
    head_lr: Annotated[float, Option(help="Initial learning rate of the class head.")] = 0.1,
    epochs: Annotated[int, Option(min=1, help="Fit each detector for at most this many epochs.")] = 150,
    lr: Annotated[float, Option(help="Initial learning rate of a detector.")] = 1e-3,
    reading: Annotated[
        Reading,
        Option(
            help="Give the detector the distances to all classes (raw; Massoli et al. 2021), or five numbers for each "
            "distance, relative to the class that the class head chooses or the image claims (relative), or fit "
            "detectors of both."
        ),
    ] = Reading.both,
) -> None:
    """Fit detectors, {lstm, mlp, linear} x {medoid, centroid} x {l2, cosine, l2+cosine}, on natural and attacked faces.

    'linear' is a logistic regression, 'l2+cosine' the mean of the scores of a network for each distance, 'mlp+linear'
    (with l2+cosine) the mean of an MLP's and a logistic regression's scores; --reading raw leaves these out.

    Some images of every person stay natural and some are attacked; the others represent the person, and train a class
    head where the network has none. Changed images (noise, blur, JPEG), noise with the norm of the attacks, and people
    outside the classes are natural examples too. The attacks are run once: the same command continues an interrupted
    study, and with another --epochs or --lr it fits new detectors on the same images.

    Example: fastadv detect fit --data lfw/ --names ids10.txt --model mobilefacenet --weights FILE --attack bim:10@0.03
    --attack mi-fgsm@0.03 --attack cw-l2:30,search_steps=2 --natural 4 --attacked 2 --out study/
    """
    from fastadv.attacks.spec import parse_attack
    from fastadv.cli.detect_tables import print_cells
    from fastadv.cli.show import (
        percent,
        print_line,
        print_next,
        print_notices,
        print_table,
        print_written,
        progress_bars,
        timed,
    )
    from fastadv.detection import FitConfig
    from fastadv.studies.detection import fit as fitting
    from fastadv.studies.detection import plan as detect_plan
    from fastadv.studies.detection.configurations import CONFIGURATIONS
    from fastadv.studies.detection.study import HEAD, StudyConfig
    from fastadv.training import HeadConfig

    cluster = processes.on(how.device)
    with progress_bars(quiet=printing.without_bars) as progress:
        source, face_model = faces.open(given, how.device, output.folder, fresh=output.fresh, progress=progress)
    config = StudyConfig(
        attacks=tuple(parse_attack(text) for text in attack or ()),
        runs=tuple(str(folder) for folder in run or ()),
        natural=natural,
        attacked=attacked,
        validate=validate,
        test=test,
        split_by=split_by.value,
        controls=naturals.controls(),
        also_natural=naturals.folders,
        outside=naturals.outside,
        layers=tuple(layer) if layer else None,
        new_head=new_head,
        classes=None if classes is None else detect_plan.read_classes(classes),
        seed=how.seed,
    )
    out = output.folder
    made, seconds = timed(
        fitting.fit_folder,
        config,
        source,
        face_model,
        quiet=printing.without_bars,
        path=out,
        engine=how.engine,
        configurations=tuple(c for name, own in CONFIGURATIONS.items() if reading.value in (name, "both") for c in own),
        fitting=FitConfig(epochs=epochs, lr=lr),
        head=HeadConfig(epochs=head_epochs, lr=head_lr, start="means", seed=how.seed % 2**63),
        weights=given.weights,
        landmarks=given.landmarks,
        fresh=output.fresh,
        cluster=cluster,
    )
    described = json.loads((out / fitting.FITTED).read_bytes())
    if printing.ends({**described, "seconds": round(seconds, 3)}):
        return
    groups = list(made.detectors[0].aucs)
    rows = [
        (found.configuration.label, str(found.best), *(f"{found.aucs[g]:.3f}" for g in groups))
        for found in made.detectors
    ]
    print_table("AUC on the images that validate", rows, ("detector", "epoch", *groups))
    print_cells(described["cells"])
    print_line(f"natural images classified rightly: {percent(made.accuracy)}; {seconds:.0f} s")
    print_line(f"best: {fitting.detector_file(out, made.best.configuration.label)}")
    head = out / HEAD if (out / HEAD).is_file() else None
    if head is not None:
        print_line(f"the network with its new class head, for --weights: {head}")
    print_notices(made.notices)
    print_written(out)
    print_next("detect", "evaluate", out, **given.again, **faces.again)


@detect.command(cls=Checked)
@takes_groups
def evaluate(
    study: Annotated[Path, typer.Argument(help="Folder of a study, the --out of 'fastadv detect fit'.")],
    given: StudyInput,
    faces: FaceOptions,
    printing: PrintOptions,
    naturals: Annotated[
        NaturalOptions,
        Without("outside"),
        Changed(
            "control",
            "Count false alarms on natural images with this change, written as for 'fit'; may be given several times, "
            "or none (default: eight changes that are not in the default of 'fit').",
        ),
        Changed("also_natural", "Count false alarms on the aligned faces of this folder; may be given several times."),
    ],
    unseen: Annotated[
        list[str] | None,
        Option(
            help="Evaluate on this attack, which no detector was fitted on, written as for 'fit'; may be given "
            "several times."
        ),
    ] = None,
    unseen_run: Annotated[
        list[Path] | None,
        Option(
            help="Evaluate on this folder of 'fastadv attack' too, which no detector was fitted on; may be given "
            "several times."
        ),
    ] = None,
    adaptive: Annotated[
        list[str] | None,
        Option(
            help="Run this attack, written as for 'fit', white-box against the best detector; may be given "
            "several times."
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        Option(
            help="Weight of the detector's logit in the loss of --adaptive; may be given several times "
            "(default: 0.1, 1, 10)."
        ),
    ] = None,
    adaptive_goal: Annotated[
        AdaptiveGoal,
        Option(
            help="What --adaptive must reach besides passing the detector: a class of the class head (or of the "
            "nearest class mean), or a verifier's decision: accepted as the target, or refused as oneself."
        ),
    ] = AdaptiveGoal.of_class,
    adaptive_far: Annotated[
        float | None,
        Option(
            help="With --adaptive-goal verifier: set its threshold at this false accept rate on the study's natural "
            "images (default: 0.001)."
        ),
    ] = None,
    adaptive_threshold: Annotated[
        float | None,
        Option(help="With --adaptive-goal verifier: its threshold, a cosine similarity, in place of a rate."),
    ] = None,
    transfer_from: Annotated[
        list[Path] | None,
        Option(
            help="Try the images of --adaptive in this folder too, an evaluated study of another network on the same "
            "faces; may be given several times."
        ),
    ] = None,
    knn_layer: Annotated[
        list[str] | None,
        Option(
            help="Compute the kNN score at this layer; may be given several times (default: the detectors' layers)."
        ),
    ] = None,
    k: Annotated[
        int | None, Option(min=1, help="Number of neighbours of the kNN score (default: the images of a person).")
    ] = None,
    dimensions: Annotated[
        str,
        Option(
            help="Reduce the features of the kNN score by PCA to this many components, or to this share of the layer's "
            "channels; a share gives at most a tenth of the indexed images."
        ),
    ] = "0.25",
    device: Device = "cpu",
) -> None:
    """Evaluate a study's detectors on images that they were not fitted on, and write a page with tables and ROC curves.

    Reports the AUC and detection rates with intervals for each attack, targeted and untargeted, against natural
    images and against noise of the same L2 norm; attacks that the detectors were not fitted on; false alarms on
    changed images, people outside the classes and other sources; attacked images that were blurred or compressed;
    adaptive attackers; the kNN score; Mahalanobis distance, LID and deep kNN for comparison; and which claims of the
    papers hold.

    Example: fastadv detect evaluate study/ --data lfw/ --names ids10.txt --model mobilefacenet --weights FILE
    --unseen knn-df:60@5/255 --adaptive pgd:10@0.03
    """
    from fastadv.attacks.spec import parse_attack
    from fastadv.cli.detect_tables import print_cells, print_evaluation
    from fastadv.cli.show import print_next, print_opened, progress_bars, timed
    from fastadv.core.numbers import parse_number
    from fastadv.report.pages import detection as detect_page
    from fastadv.studies.detection import evaluate as evaluating
    from fastadv.studies.detection.controls import UNSEEN
    from fastadv.studies.detection.fit import detector_file
    from fastadv.studies.detection.study import HEAD

    config = evaluating.EvaluateConfig(
        unseen=tuple(parse_attack(text) for text in unseen or ()),
        unseen_runs=tuple(str(folder) for folder in unseen_run or ()),
        adaptive=tuple(parse_attack(text) for text in adaptive or ()),
        weights=tuple(weight) if weight else (0.1, 1.0, 10.0),
        transfer_from=tuple(str(folder) for folder in transfer_from or ()),
        adaptive_goal=adaptive_goal.value,
        adaptive_far=adaptive_far,
        adaptive_threshold=adaptive_threshold,
        knn_layers=tuple(knn_layer or ()),
        k=k,
        dimensions=parse_number("dimensions", dimensions),
        controls=UNSEEN if (chosen := naturals.controls()) is None else chosen,
        also_natural=naturals.folders,
    )
    with progress_bars(quiet=printing.without_bars) as progress:
        source, face_model = faces.open(given, device, study, progress=progress)
    made, seconds = timed(evaluating.evaluate_folder, study, source, face_model, config, quiet=printing.without_bars)
    found, page = evaluating.describe(made, config), detect_page.render(study)
    if printing.ends({**found, "seconds": round(seconds, 3), "report": str(page)}):
        return
    print_evaluation(found)
    print_cells(found["cells"])
    print_opened(page, seconds)
    best = detector_file(study, found["best"])
    head = study / HEAD  # a relative detector reads the choices of the class head
    weights = head if head.is_file() else given.weights
    print_next("detect", "score", best, data="FACES", model=given.model, weights=weights)
