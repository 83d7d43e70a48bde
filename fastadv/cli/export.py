"""``fastadv detect export``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fastadv.cli.fields import takes_groups
from fastadv.cli.guarding import GuardOptions, Network
from fastadv.cli.options import PrintOptions


@takes_groups
def export(
    given: Network,
    detector: GuardOptions,
    printing: PrintOptions,
    out: Annotated[Path, typer.Option(help="Write this file: .onnx, or .pt2 for torch.export.")],
) -> None:
    """Export a network and its detector as one graph for other runtimes, and compare its outputs with the original's.

    Example: fastadv detect export --model synth-vgg --detector detector.safetensors --out guard.onnx
    """
    from fastadv.cli.show import print_next, print_table
    from fastadv.detection.export import export_guard

    guard, words = detector.open(given)
    made = export_guard(guard, out)
    if printing.ends({**asdict(made), "path": str(made.path), "threshold": guard.threshold, "threshold_from": words}):
        return
    rows = [
        ("format", made.format),
        ("size", f"{made.size / 2**20:.1f} MiB"),
        ("threshold", f"{guard.threshold:.4g} ({words})"),
        ("largest difference of an embedding", f"{made.embeddings:.1g}"),
        ("of a score", f"{made.scores:.1g}"),
    ]
    if made.logits is not None:
        rows.append(("of a logit", f"{made.logits:.1g}"))
    rows.append(("written to", str(made.path)))
    print_table("fastadv detect export", rows)
    print_next("serve", model=given.model, weights=given.weights, detector=detector.detector)
