"""``fastadv train``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from fastadv.cli.fields import Changed, takes_groups
from fastadv.cli.names import LossName
from fastadv.cli.options import SYNTHETIC, PrintOptions, TrainedModel, TrainingOptions, TrainingOutput, TrainingRun
from fastadv.core.errors import ArgumentError

if TYPE_CHECKING:
    from fastadv.training import Adversarial

_FINE_LR, _FINE_CLIP = 0.01, 1.0


@takes_groups
def train(
    ctx: typer.Context,
    given: Annotated[TrainingOptions, Changed("identities", min=2), Changed("per_identity", min=1)],
    model: TrainedModel,
    run: TrainingRun,
    output: TrainingOutput,
    printing: PrintOptions,
    loss: Annotated[
        LossName | None, Option(help="Loss: softmax, cosface, arcface, triplet or keep (default: cosface).")
    ] = None,
    head: Annotated[bool, Option("--head", help="Train a class head on the frozen network instead.")] = False,
    epochs: Annotated[
        int | None, Option(help="Number of passes over the images (default: 10; 60 with --head).")
    ] = None,
    batch: Annotated[int | None, Option(help="Images per step (default: 128; 256 with --head).")] = None,
    lr: Annotated[
        float | None, Option(help="Peak learning rate (default: 0.1; 0.01 with --fine-tune; 1e-3 with --head).")
    ] = None,
    clip: Annotated[
        float | None, Option(help="Clip the gradient's norm to this value (default: no clipping; 1 with --fine-tune).")
    ] = None,
    weights: Annotated[
        Path | None, Option(help="Start from these weights; with --head, the weights of the frozen network.")
    ] = None,
    fine_tune: Annotated[
        bool,
        Option(
            "--fine-tune",
            help="Fine-tune the network of --weights: start each class at its mean embedding, keep batch norm "
            "statistics.",
        ),
    ] = False,
    adversarial: Annotated[
        str | None,
        Option(
            help="Attack a share of every batch by NAME[:STEPS][@EPS], NAME one of fim, pgd, ffm and fgsm "
            "(default: no attack; EPS 8/255)."
        ),
    ] = None,
    adversarial_share: Annotated[
        float | None, Option(help="Attack this share of a batch, in (0, 1] (default: 0.5).")
    ] = None,
    pairs: Annotated[
        Path | None,
        Option(help="Validate on the pairs of this CSV file (default: pairs of people left out of the training)."),
    ] = None,
    bf16: Annotated[bool, Option("--bf16", help="Train in bfloat16 mixed precision.")] = False,
) -> None:
    """Train a network, or a class head on a frozen one; 'train denoiser' trains a network that removes noise.

    Example: fastadv train --data faces/ --model synth-resnet --loss arcface --out trained/

    Adversarial training: fastadv train --data faces/ --model mobilefacenet --weights FILE --fine-tune
    --adversarial fim@8/255 --out robust/; then fastadv defend --defence weights:robust/best.safetensors ...
    """
    if ctx.invoked_subcommand is not None:
        if ctx.params["data"] is not None:
            raise ArgumentError(
                f"{ctx.invoked_subcommand}: expected it before all options, got it after; "
                f"fastadv train {ctx.invoked_subcommand} --data ..."
            )
        return
    from fastadv.cli.show import print_next, print_table, print_written, timed
    from fastadv.studies import train as training
    from fastadv.training import HeadConfig, TrainConfig

    usual: HeadConfig | TrainConfig = HeadConfig() if head else TrainConfig()
    epochs = usual.epochs if epochs is None else epochs
    batch = usual.batch if batch is None else batch
    if lr is None:
        lr = _FINE_LR if fine_tune and not head else usual.lr
    attacked = _attacked(adversarial, adversarial_share, fine_tune=fine_tune, head=head)
    trained: Callable[..., tuple[training.HeadSummary | training.TrainSummary, float]] = partial(
        timed,
        quiet=printing.without_bars,
        model=model,
        out=output.out,
        weights=weights,
        **given.images(run.device),
    )
    if head:
        config = HeadConfig(epochs=epochs, batch=batch, lr=lr, seed=run.seed)
        found, _ = trained(training.train_class_head, config=config)
    else:
        settings = TrainConfig(
            loss="cosface" if loss is None else loss.value,
            epochs=epochs,
            batch=batch,
            lr=lr,
            precision="bf16" if bf16 else "fp32",
            seed=run.seed,
            fine_tune=fine_tune,
            clip=_FINE_CLIP if fine_tune and clip is None else clip,
            adversarial=attacked,
        )
        found, _ = trained(training.train_network, config=settings, pairs=pairs, cache=given.cache, fresh=output.fresh)
    described = asdict(found)
    if printing.ends(described):
        return
    rows = [(k, str(v)) for k, v in described.items() if k not in ("history", "best")]
    best = described.get("best") or {}
    rows += [(f"best {k}", f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in best.items()]
    print_table("fastadv train", rows)
    print_written(output.out)
    faces: dict[str, object] = {"data": "FACES"}
    if given.folder != SYNTHETIC:
        faces = {"data": given.folder, **given.same_faces(given.landmarks)}
    if head:
        print_next("attack", "bim", **faces, model=model, weights=found.weights, goal="misclassify", out="run")
    else:
        print_next("verify", **faces, model=model, weights=output.folder / "best.safetensors")


def _attacked(text: str | None, share: float | None, *, fine_tune: bool, head: bool) -> Adversarial | None:
    """The attack of an adversarial training, and whether the options go together."""
    if head and (text is not None or fine_tune):
        given = "--fine-tune" if text is None else "--adversarial"
        raise ArgumentError(
            f"{given}: expected it without --head, got both; a head is trained on a network that stays as it is"
        )
    if text is None:
        if share is not None:
            raise ArgumentError(f"--adversarial-share: expected --adversarial with it, got {share} alone")
        return None
    from fastadv.studies.train import parse_adversarial

    return parse_adversarial(text, share=share)
