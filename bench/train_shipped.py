"""Trains the networks that the package ships, and puts their weights into `fastadv/weights`.

    python -m bench.train_shipped --runs RUNS

Everything goes to RUNS; what was interrupted goes on, what is finished is not done again. About 15 minutes of one core.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from fastadv.studies.train import train_class_head, train_network
from fastadv.training import HeadConfig, TrainConfig

PEOPLE, IMAGES, SEED = 1500, 16, 1
CONFIGS = {
    "synth-vgg": TrainConfig(loss="softmax", epochs=4, batch=128, lr=0.1, seed=SEED, checkpoint_steps=50),
    "synth-mobile": TrainConfig(
        loss="cosface", margin=0.2, epochs=5, batch=128, lr=0.1, seed=SEED, checkpoint_steps=50
    ),
    "synth-shuffle": TrainConfig(
        loss="triplet", margin=0.5, epochs=6, batch=160, lr=0.1, seed=SEED, checkpoint_steps=50
    ),
    "synth-resnet": TrainConfig(
        loss="arcface", margin=0.3, epochs=5, batch=128, lr=0.1, seed=SEED, checkpoint_steps=50
    ),
}
WITH_HEAD = "synth-vgg"
WEIGHTS = Path(__file__).resolve().parents[1] / "fastadv" / "weights"


def tell(stage: str, done: int, total: int) -> None:
    if done == total or done % 50 == 0:
        print(f"{stage}: {done}/{total}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="decoded faces; default RUNS/faces")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the weights' bits depend on it
    runs = arguments.runs
    for name, config in CONFIGS.items():
        print(name, flush=True)
        summary = train_network(
            data="synthetic",
            model=name,
            out=runs / name,
            config=config,
            identities=PEOPLE,
            per_identity=IMAGES,
            cache=arguments.cache or runs / "faces",
            half=True,
            progress=tell,
        )
        print(summary.best, flush=True)
        made = runs / name / "half.safetensors"
        if name == WITH_HEAD:
            head = train_class_head(
                data="synthetic",
                model=name,
                weights=runs / name / "best.safetensors",
                out=runs / f"{name}-head",
                config=HeadConfig(seed=3),
                half=True,
                progress=tell,
            )
            print(head, flush=True)
            made = runs / f"{name}-head" / "head.safetensors"
        WEIGHTS.mkdir(exist_ok=True)
        shutil.copyfile(made, WEIGHTS / f"{name}.safetensors")


if __name__ == "__main__":
    main()
