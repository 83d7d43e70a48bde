"""Weights that come with the package: `fastadv/weights/<name>.safetensors`."""

from __future__ import annotations

from importlib.resources import as_file, files

from torch import Tensor

from fastadv.models.checkpoints import CheckpointError, read_state_dict


def shipped_state(name: str) -> dict[str, Tensor]:
    """The shipped weights of an architecture.

    They were trained on synthetic faces by `fastadv.training` (docs/training.md has the commands and the accuracy).
    Convolutions and linear layers are stored in float16, which halves the file and rounds each weight by at most 2^-11
    of itself; the models hold and compute them in float32.

    Args:
        name: Of the architecture.

    Raises:
        CheckpointError: The package lacks the file, or it is damaged.
    """
    with as_file(files("fastadv") / "weights" / f"{name}.safetensors") as path:
        if not path.is_file():
            raise CheckpointError(
                f"weights: expected the package's file {path}, got no such file; install fastadv again"
            )
        return read_state_dict(path)
