"""``fastadv train denoiser``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from typer import Option

from fastadv.cli.fields import Changed, takes_groups
from fastadv.cli.options import PrintOptions, TrainingOptions, TrainingOutput, TrainingRun

if TYPE_CHECKING:
    from fastadv.training.noisy_batches import Gain


@takes_groups
def denoiser(
    given: Annotated[
        TrainingOptions,
        Changed(
            "data", "Read images, of faces or not, from the folders of this folder, or generate faces: 'synthetic'."
        ),
        Changed("per_identity", default=10),
    ],
    run: TrainingRun,
    output: TrainingOutput,
    printing: PrintOptions,
    width: Annotated[int, Option(help="Number of feature maps of every inner layer.")] = 64,
    layers: Annotated[int, Option(help="Number of convolutions and deconvolutions together; 30 is RED30.")] = 30,
    stride: Annotated[
        int, Option(help="Stride of the first convolution: 1 (Mao et al. 2016), or 2 for a quarter of the arithmetic.")
    ] = 1,
    sigma_max: Annotated[float, Option(help="Largest standard deviation of the noise, pixels in [0, 1].")] = 0.1,
    sigma_min: Annotated[
        float | None, Option(help="Smallest standard deviation of the noise (default: --sigma-max).")
    ] = None,
    patch: Annotated[int, Option(help="Side of the patches, in pixels.")] = 56,
    size: Annotated[int, Option(help="Side of the images that the patches are cut from, in pixels.")] = 112,
    epochs: Annotated[int, Option(help="Number of passes over the images.")] = 20,
    batch: Annotated[int, Option(help="Images per step.")] = 32,
    lr: Annotated[float, Option(help="Peak learning rate.")] = 1e-3,
    checkpoint_steps: Annotated[
        int | None, Option(help="Save a checkpoint every N steps too, not only after epochs.")
    ] = None,
) -> None:
    """Train a network that removes Gaussian noise, for the defence noise2clean.

    Example: fastadv train denoiser --data photos/ --out denoiser/; then fastadv defend --defence
    noise2clean:denoiser/best.safetensors ...
    """
    from fastadv.cli.show import print_next, print_table, print_written, timed
    from fastadv.studies.train_denoiser import train_noise2clean
    from fastadv.training.denoiser_config import DenoiserConfig

    config = DenoiserConfig(
        width=width,
        layers=layers,
        stride=stride,
        sigma_min=sigma_max if sigma_min is None else sigma_min,
        sigma_max=sigma_max,
        patch=patch,
        epochs=epochs,
        batch=batch,
        lr=lr,
        seed=run.seed,
        checkpoint_steps=checkpoint_steps,
    )
    summary, _ = timed(
        train_noise2clean,
        quiet=printing.without_bars,
        out=output.out,
        config=config,
        size=size,
        cache=given.cache,
        fresh=output.fresh,
        **given.images(run.device),
    )
    described = asdict(summary)
    if printing.ends(described):
        return
    print_table("fastadv train denoiser", [(k, str(v)) for k, v in described.items() if k not in ("history", "best")])
    held = f"PSNR on {summary.held} held-out images, epoch {summary.best.epoch}"
    print_table(held, [_gain(g) for g in summary.best.gains], ("sigma", "noisy", "denoised", "gain"))
    print_written(output.out)
    defence = f"noise2clean:{output.folder / 'best.safetensors'}"
    print_next("defend", data="FACES", model="NAME", defence=defence, attack="fim", out="study")


def _gain(gain: Gain) -> tuple[str, str, str, str]:
    return (f"{gain.sigma:g}", f"{gain.noisy:.2f} dB", f"{gain.denoised:.2f} dB", f"{gain.decibels:+.2f} dB")
