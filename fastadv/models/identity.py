"""What decides about a network's outputs: weights, preprocessing, head, structure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.models.face_model import FaceModel


def update_digest(digest: Any, tensor: Tensor, *, name: str = "") -> None:
    """Add a tensor's name, type, shape and bytes to a digest of hashlib."""
    digest.update(f"{name}{' ' * bool(name)}{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def tensors_hash(named: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(named.items()):
        update_digest(digest, value, name=name)
    return digest.hexdigest()


def state_hash(module: nn.Module) -> str:
    """SHA-256 over the names, types and bytes of a module's parameters and buffers.

    The counts of training batches are left out: nothing reads them in evaluation, and a file may lack them.
    """
    return tensors_hash({k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")})


def model_identity(model: FaceModel) -> dict[str, Any]:
    """A model as plain values: equal for models that give equal outputs, whatever file they came from.

    Returns:
        "model": its name; "weights", "head": hashes, "head" None without one; "structure": hash of the modules as
        they print; "mean", "std", "input_size"; "channels" where the network does not take RGB.
    """
    return {
        "model": model.name,
        "weights": state_hash(model.backbone),
        "head": None if model.head is None else state_hash(model.head),
        "structure": _structure(model),
        "mean": [float(value) for value in model.mean.flatten()],
        "std": [float(value) for value in model.std.flatten()],
        "input_size": list(model.input_size),
        **({} if model.channels == "rgb" else {"channels": model.channels}),
    }


def _structure(model: FaceModel) -> str:
    """Of the modules as they print, without addresses in memory, which every process has others of."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", f"{model.backbone}\n{model.head}")
    return hashlib.sha256(text.encode()).hexdigest()
