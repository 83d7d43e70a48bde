"""``fastadv detect explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastadv.cli.fields import takes_groups
from fastadv.cli.guarding import GuardOptions, Network
from fastadv.cli.options import PrintOptions
from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_atomically

_SHOWN = 16  # layers on the screen


@takes_groups
def explain(
    image: Annotated[Path, typer.Argument(help="Image file, an aligned face.")],
    given: Network,
    detector: GuardOptions,
    printing: PrintOptions,
    claimed: Annotated[str | None, typer.Option(help="Identity that the image claims to show; see --gallery.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a figure of the contributions to this SVG file.")] = None,
) -> None:
    """Print what each layer contributes to the score of an image.

    The contributions are integrated gradients from the mean of natural images to this one (Sundararajan et al. 2017):
    they add up to the difference of the two scores. The two numbers that contribute most have a column each: distances
    to two classes, or two of the five numbers of the reading 'relative', of one distance or of either ('l2+cosine').

    Example: fastadv detect explain face.png --model synth-vgg --detector detector.safetensors --out why.svg
    """
    from fastadv.cli.show import print_line, print_table, print_written
    from fastadv.report.explanation import explanation_svg
    from fastadv.studies.detection.explain import explain_image

    if out is not None and out.suffix != ".svg":
        raise ArgumentError(f"--out: expected a name that ends in .svg, got {out}")
    guard, words = detector.open(given)
    made = explain_image(image, guard, claimed=claimed)
    why, leading = made.explanation, made.leading
    if out is not None:
        title = f"{image.name}: score {why.score:.3g}, of the natural mean {why.baseline:.3g}"
        write_atomically(out, explanation_svg(why.layers, why.by_layer, leading, title=title).encode())
    if printing.ends({**made.described(), "threshold": guard.threshold, "threshold_from": words}):
        return
    order = sorted(range(len(why.layers)), key=lambda k: -abs(why.by_layer[k]))[:_SHOWN]
    rows = [
        (
            why.layers[k],
            f"{why.by_layer[k]:+.3g}",
            *(f"{values[k]:+.3g}" for _, values in leading),
            why.others[k],
        )
        for k in sorted(order)
    ]
    print_table(
        "contributions to the score",
        rows,
        ("layer", "all", *(name for name, _ in leading), "nearest other class"),
    )
    p_value = "" if made.p_value is None else f", p-value {made.p_value:.3g}"
    verdict = "flagged" if made.flagged else "not flagged"
    print_line(f"score {why.score:.4g}{p_value}: {verdict}, from score {guard.threshold:.4g} on ({words})")
    print_line(
        f"own class {why.own}; score of the natural mean {why.baseline:.4g}; numerical error {why.remainder:.1g}"
    )
    print_written(out)
