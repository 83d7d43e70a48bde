"""``fastadv serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastadv.cli.guarding import DetectorFile, FalseAlarm, GuardPrecision, Threshold, open_guard
from fastadv.cli.options import Device, Model, Weights
from fastadv.cli.show import errors
from fastadv.workflows.detect_plan import read_classes


def serve(
    model: Model,
    detector: DetectorFile,
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of the machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any free one.")] = 8000,
    threshold: Threshold = None,
    false_alarm: FalseAlarm = None,
    classes: Annotated[
        Path | None, typer.Option(help="JSON list: who each logit is, such as classes.json of 'detect fit'.")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Images in one forward pass, at most.")] = 16,
    max_wait_ms: Annotated[float, typer.Option(help="How long an image may wait for others to join it.")] = 5.0,
    max_queue: Annotated[int, typer.Option(help="Images that may wait, and requests that may be open.")] = 256,
    max_images: Annotated[int, typer.Option(help="In one request.")] = 32,
    max_mib: Annotated[float, typer.Option(help="Of one request.")] = 8.0,
    precision: Annotated[GuardPrecision, typer.Option(help="Of the backbone.")] = GuardPrecision.fp32,
    device: Device = "cpu",
) -> None:
    """Answer HTTP: aligned faces in; embedding, class and whether the face looks adversarial out.

    What 'fastadv detect fit' wrote is served by --detector study/detectors/NAME.safetensors, and where it trained a
    class head, --weights study/head.safetensors --classes study/classes.json.

    Example: fastadv serve --model synth-vgg --detector detector.safetensors

    Then: curl --data-binary @face.png -H 'Content-Type: image/png' http://127.0.0.1:8000/v1/faces
    """
    from fastadv.detection.service import ServiceConfig
    from fastadv.detection.service import serve as answer

    config = ServiceConfig(
        max_batch=max_batch,
        max_wait=max_wait_ms / 1e3,
        max_queue=max_queue,
        max_images=max_images,
        max_bytes=round(max_mib * 2**20),
    )
    names = None if classes is None else read_classes(classes)
    guard = open_guard(
        model.value,
        weights,
        detector,
        threshold=threshold,
        false_alarm=false_alarm,
        precision=precision.value,
        device=device,
    )

    def started(address: str) -> None:
        errors.print(f"listening on {address}; Ctrl-C stops", highlight=False, soft_wrap=True)

    answer(guard, config, classes=names, host=host, port=port, started=started)
    errors.print("stopped; every open request was answered", highlight=False)
