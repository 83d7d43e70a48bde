"""``fastadv detect``: fit, evaluate and use detectors of adversarial faces."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastadv.cli.checks import Checked
from fastadv.cli.detect_tables import print_cells, print_evaluation
from fastadv.cli.options import AsJson, Batch, Data, Device, Fresh, Landmarks, ModelName, Prec, Precision, Seed, Weights
from fastadv.cli.show import percent, print_notices, progress_bars, table
from fastadv.data import FaceSource, SyntheticFaces
from fastadv.data.files import write_atomically
from fastadv.detection import FitConfig, load_detector
from fastadv.engine import Engine
from fastadv.runs import settle
from fastadv.training import HeadConfig
from fastadv.workflows import detect as fitting
from fastadv.workflows import detect_evaluate as evaluating
from fastadv.workflows import detect_page, detect_plan, inputs
from fastadv.workflows.detect_score import score_folder
from fastadv.workflows.detect_study import HEAD, HEAD_EPOCHS, HEAD_LR, STUDY, StudyConfig
from fastadv.workflows.train import SYNTHETIC

detect = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Tell adversarial faces from natural ones: fit detectors on attacks, evaluate them, score a folder.",
)

Network = Annotated[ModelName, typer.Option(help="The network that is attacked and watched.")]


class SplitBy(str, Enum):
    images = "images"
    people = "people"


Names = Annotated[
    Path | None, typer.Option(help="Only these images: a text file, identity/file a line. Default: all of the data.")
]
People = Annotated[int, typer.Option(min=3, help="With --data synthetic: people.")]
PerPerson = Annotated[int, typer.Option(min=1, help="With --data synthetic: images of each.")]
FacesSeed = Annotated[int, typer.Option(min=0, help="With --data synthetic: which people.")]

_SHOWN = 20  # flagged faces of a folder on the screen
_DATA_HELP = "A folder of identities, LFW, an InsightFace .bin, .tar shards, or 'synthetic'."
Faces = Annotated[Path, typer.Option("--data", help=_DATA_HELP)]


@detect.command(cls=Checked)
def fit(
    data: Faces,
    model: Network,
    out: Annotated[
        Path, typer.Option(help="The study's folder: attacks, detectors, figures; an unfinished one goes on.")
    ],
    weights: Weights = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, NAME:STEPS, NAME@EPS or NAME:STEPS@EPS, such as bim:30@0.03 or mi-fgsm@8/255, with options of "
            "its own after commas: cw-l2,search_steps=3. Give several; each is run targeted and not."
        ),
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="A folder of 'fastadv attack' to fit on too; give several.")
    ] = None,
    natural: Annotated[int, typer.Option(help="Images of each person that stay as they are.")] = 10,
    attacked: Annotated[int, typer.Option(help="Images of each person to attack.")] = 10,
    validate: Annotated[float, typer.Option(help="Share of them that stops the fit and sets the thresholds.")] = 0.15,
    test: Annotated[float, typer.Option(help="Share of them that 'detect evaluate' measures.")] = 0.35,
    split_by: Annotated[
        SplitBy,
        typer.Option(
            help="What is shared out between fit, validation and test: every person's images, or the people, so that "
            "the detectors have met nobody of the test."
        ),
    ] = SplitBy.images,
    names: Names = None,
    identities: People = 100,
    per_identity: PerPerson = 24,
    faces_seed: FacesSeed = 3,
    layer: Annotated[
        list[str] | None, typer.Option(help="A layer to tap; give several. Default: the network's blocks.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="JSON list: who each logit of the network's own head is.")
    ] = None,
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Train a class head although the network has one.")
    ] = False,
    head_epochs: Annotated[int, typer.Option(min=1, help="Of the class head's training.")] = HEAD_EPOCHS,
    head_lr: Annotated[float, typer.Option(help="First learning rate of the class head.")] = HEAD_LR,
    epochs: Annotated[int, typer.Option(min=1, help="Of a detector's fit, at most.")] = 150,
    lr: Annotated[float, typer.Option(help="First learning rate of a detector.")] = 1e-3,
    landmarks: Landmarks = None,
    seed: Seed = 0,
    batch: Batch = None,
    precision: Prec = Precision.fp32,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Fit {LSTM, MLP} x {medoids, centroids} x {L2, cosine} on natural faces and on what attacks make of them.

    Of every person some images stay natural, some are attacked, the rest trains a class head (where the network has
    none) and represents the person. Attacks are made once: the same command goes on where it was stopped, and with
    another --epochs or --lr it fits the detectors anew on the same images.

    Example: fastadv detect fit --data lfw/ --names ids10.txt --model mobilefacenet --weights FILE --attack bim:10@0.03
    --attack mi-fgsm@0.03 --attack cw-l2:30,search_steps=2 --natural 4 --attacked 2 --out study/
    """
    face_model = inputs.open_model(model.value, weights, device=device)
    source = _faces(data, names, face_model.input_size[0], landmarks, identities, per_identity, faces_seed)
    config = StudyConfig(
        attacks=tuple(detect_plan.parse_attack(text) for text in attack or ()),
        runs=tuple(str(folder) for folder in run or ()),
        natural=natural,
        attacked=attacked,
        validate=validate,
        test=test,
        split_by=split_by.value,
        layers=tuple(layer) if layer else None,
        new_head=new_head,
        classes=None if classes is None else detect_plan.read_classes(classes),
        seed=seed,
    )
    engine = settle(Engine(batch=batch, precision=precision.value), face_model, out, mark=STUDY)
    begin = time.perf_counter()
    with progress_bars(quiet=as_json) as progress:
        made = fitting.fit_folder(
            config,
            source,
            face_model,
            path=out,
            engine=engine,
            fitting=FitConfig(epochs=epochs, lr=lr),
            head=HeadConfig(epochs=head_epochs, lr=head_lr, seed=seed % 2**63),
            weights=weights,
            landmarks=landmarks,
            fresh=fresh,
            progress=progress,
        )
    seconds = time.perf_counter() - begin
    described = json.loads((out / fitting.FITTED).read_bytes())
    if as_json:
        print(json.dumps({**described, "seconds": round(seconds, 3)}))
        return
    groups = list(made.detectors[0].aucs)
    rows = [
        (found.configuration.label, str(found.best), *(f"{found.aucs[g]:.3f}" for g in groups))
        for found in made.detectors
    ]
    console = Console()
    console.print(table("AUC on the images that validate", rows, ("detector", "epoch", *groups)))
    print_cells(described["cells"])
    console.print(
        f"natural images classified rightly: {percent(made.accuracy)}; {seconds:.0f} s",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"best: {out / 'detectors' / made.best.configuration.label}.safetensors",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if (out / HEAD).is_file():
        console.print(
            f"the network with its new class head, for --weights: {out / HEAD}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    print_notices(made.notices)


@detect.command(cls=Checked)
def evaluate(
    study: Annotated[Path, typer.Argument(help="The folder that 'fastadv detect fit' wrote.")],
    data: Faces,
    model: Network,
    weights: Weights = None,
    unseen: Annotated[
        list[str] | None,
        typer.Option(help="An attack that no detector was fitted on, written as for 'fit'; give several."),
    ] = None,
    unseen_run: Annotated[
        list[Path] | None, typer.Option(help="A folder of 'fastadv attack' with more of them; give several.")
    ] = None,
    adaptive: Annotated[
        list[str] | None,
        typer.Option(help="An attack, written likewise, by one who knows the best detector; give several."),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Of the detector's logit in that attacker's loss. Default: 0.1, 1, 10.")
    ] = None,
    knn_layer: Annotated[str | None, typer.Option(help="Layer of the kNN score. Default: the last.")] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Neighbours of the kNN score. Default: as many as a person has images.")
    ] = None,
    dimensions: Annotated[int, typer.Option(min=1, help="Of its PCA, at most.")] = 256,
    names: Names = None,
    identities: People = 100,
    per_identity: PerPerson = 24,
    faces_seed: FacesSeed = 3,
    landmarks: Landmarks = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure a study's detectors on images, attacks and attackers that they have not met; tables, ROC and a page.

    AUC with bootstrap intervals by attack, targeted and untargeted; attacks never seen; attackers who know the
    detector; the kNN score; the field's yardsticks; and each finding of the papers checked.

    Example: fastadv detect evaluate study/ --data lfw/ --names ids10.txt --model mobilefacenet --weights FILE
    --unseen knn-df:60@5/255 --adaptive pgd:10@0.03
    """
    config = evaluating.EvaluateConfig(
        unseen=tuple(detect_plan.parse_attack(text) for text in unseen or ()),
        unseen_runs=tuple(str(folder) for folder in unseen_run or ()),
        adaptive=tuple(detect_plan.parse_attack(text) for text in adaptive or ()),
        weights=tuple(weight) if weight else (0.1, 1.0, 10.0),
        knn_layer=knn_layer,
        k=k,
        dimensions=dimensions,
    )
    face_model = inputs.open_model(model.value, weights, device=device)
    source = _faces(data, names, face_model.input_size[0], landmarks, identities, per_identity, faces_seed)
    begin = time.perf_counter()
    with progress_bars(quiet=as_json) as progress:
        found = evaluating.evaluate_folder(study, source, face_model, config, progress=progress)
    seconds = time.perf_counter() - begin
    if as_json:
        plain = json.loads((study / fitting.EVALUATION).read_bytes())
        print(json.dumps({**plain, "seconds": round(seconds, 3), "report": str(detect_page.render(study))}))
        return
    print_evaluation(found)
    print_cells(json.loads((study / fitting.EVALUATION).read_bytes())["cells"])
    page = detect_page.render(study)
    Console().print(f"{seconds:.0f} s; open {page}", highlight=False, markup=False, soft_wrap=True)


@detect.command(cls=Checked)
def score(
    detector: Annotated[Path, typer.Argument(help="A file of detectors/ that 'fastadv detect fit' wrote.")],
    data: Data,
    model: Network,
    weights: Weights = None,
    rate: Annotated[
        float | None, typer.Option(help="False-alarm rate whose threshold flags: 0.001, 0.01 or 0.05. Default: 0.01.")
    ] = 0.01,
    equal_error: Annotated[bool, typer.Option("--eer", help="Flag at the threshold of the equal error rate.")] = False,
    out: Annotated[Path | None, typer.Option(help="A CSV file: name,score,flagged.")] = None,
    landmarks: Landmarks = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Say of every face of a folder how adversarial it looks.

    Example: fastadv detect score study/detectors/lstm-medoid-cosine.safetensors --data faces/ --model mobilefacenet
    --weights FILE
    """
    fitted = load_detector(detector, device=device)
    face_model = inputs.open_model(model.value, weights, device=device)
    source = inputs.open_faces(data, size=face_model.input_size[0], landmarks=landmarks)
    with progress_bars(quiet=as_json) as progress:
        found = score_folder(source, face_model, fitted, rate=None if equal_error else rate, progress=progress)
    if out is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("name", "score", "flagged"))
        writer.writerows((face.name, f"{face.score:.6g}", int(face.flagged)) for face in found.faces)
        write_atomically(out, text.getvalue().encode())
    if as_json:
        faces = [{**asdict(face), "score": face.score if math.isfinite(face.score) else None} for face in found.faces]
        print(json.dumps({"threshold": found.threshold, "flagged": found.flagged, "faces": faces}))
        return
    flagged = sorted(
        (face for face in found.faces if face.flagged),
        key=lambda face: -face.score if math.isfinite(face.score) else -math.inf,
    )
    rows = [(face.name, f"{face.score:.2f}") for face in flagged[:_SHOWN]]
    console = Console()
    if rows:
        console.print(table(f"flagged, at {found.threshold:.2f} and above", rows, ("face", "score")))
    if len(flagged) > _SHOWN:
        console.print(
            f"and {len(flagged) - _SHOWN} more; --out writes them all", highlight=False, markup=False, soft_wrap=True
        )
    console.print(f"{found.flagged} of {len(found.faces)} faces flagged", highlight=False, markup=False, soft_wrap=True)


def _faces(
    data: Path,
    names: Path | None,
    size: int,
    landmarks: Path | None,
    identities: int,
    per_identity: int,
    seed: int,
) -> FaceSource:
    source: FaceSource
    if str(data) == SYNTHETIC:
        source = SyntheticFaces(identities=identities, per_identity=per_identity, seed=seed, size=size)
    else:
        source = inputs.open_faces(data, size=size, landmarks=landmarks)
    if names is not None:
        source = detect_plan.Selection(source, detect_plan.read_names(names))
    source.check(source.names)
    return source
