"""Trains the denoiser that the package ships, and puts its weights into `fastadv/weights`.

    python -m bench.train_denoiser --runs RUNS

Everything goes to RUNS; what was interrupted goes on, what is finished is not done again. About 8 minutes of one core.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from bench.train_shipped import WEIGHTS, tell
from fastadv.models.red import SHIPPED
from fastadv.studies.train_denoiser import train_noise2clean
from fastadv.training.denoiser_config import DenoiserConfig

PEOPLE, IMAGES = 1000, 10
CONFIG = DenoiserConfig(
    width=24,
    layers=30,
    stride=2,
    sigma_min=0.1,
    sigma_max=0.1,
    patch=48,
    epochs=5,
    batch=8,
    lr=2e-3,
    seed=1,
    checkpoint_steps=250,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the weights' bits depend on it
    out = arguments.runs / SHIPPED
    summary = train_noise2clean(
        data="synthetic",
        out=out,
        config=CONFIG,
        identities=PEOPLE,
        per_identity=IMAGES,
        cache=arguments.runs / "noise-faces",
        half=True,
        progress=tell,
    )
    for gain in summary.best.gains:
        print(f"sigma {gain.sigma:g}: {gain.noisy:.2f} dB noisy, {gain.denoised:.2f} dB denoised", flush=True)
    shutil.copyfile(out / "half.safetensors", WEIGHTS / f"{SHIPPED}.safetensors")


if __name__ == "__main__":
    main()
