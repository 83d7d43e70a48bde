"""Weights files: read without running code, checked completely before a single weight is changed."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastadv.core.errors import Error

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_TORCH_SUFFIXES = (".pt", ".pth")
_SHOWN = 3


class CheckpointError(Error, ValueError):
    """A weights file is missing, broken, unsafe, or does not fit the model."""


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read named tensors from a file, without executing anything in it.

    A `{"state_dict": ...}` wrapper and a `module.` prefix on every key (left by data-parallel training) are
    removed.

    Args:
        path: a `.safetensors`, `.pt` or `.pth` file.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        CheckpointError: if the file is missing, truncated, of another format, holds code, or holds no
            tensors.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a directory" if file.is_dir() else "does not exist"
        raise CheckpointError(f"weights: {file} {what}; expected a .safetensors, .pt or .pth file")
    suffix = file.suffix.lower()
    if suffix == ".safetensors":
        try:
            return _unprefixed(load_file(file))
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"weights: {file} is not a whole safetensors file (truncated or damaged?): {error}"
            ) from error
    if suffix in _TORCH_SUFFIXES:
        return _unprefixed(_unwrapped(_torch_load(file), file))
    raise CheckpointError(f"weights: {file} has the suffix {suffix!r}; expected .safetensors, .pt or .pth")


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `state` into `model`, strictly: every name and every shape has to fit, and every number be finite.

    The model is changed only after everything was checked. Names that end in `num_batches_tracked` may be
    missing: they count training batches, and nothing reads them in evaluation mode.

    Args:
        model: receives the weights.
        state: tensors by parameter name.
        source: where they come from, for the error.

    Raises:
        CheckpointError: with the number and the first of the missing, unexpected, misshapen and non-finite
            names.
    """
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted]
    shared = [k for k in wanted if k in state]
    misshapen = [
        f"{k} (expected {tuple(wanted[k].shape)}, got {tuple(state[k].shape)})"
        for k in shared
        if wanted[k].shape != state[k].shape
    ]
    mistyped = [
        f"{k} (expected {wanted[k].dtype}, got {state[k].dtype})"
        for k in shared
        if wanted[k].is_floating_point() != state[k].is_floating_point()
    ]
    problems = [
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed("misshapen", misshapen),
        _listed("of the wrong type", mistyped),
    ]
    if any(problems):
        raise CheckpointError(f"weights: {source} does not fit the model: {'; '.join(p for p in problems if p)}")
    broken = [k for k in shared if state[k].is_floating_point() and not bool(state[k].isfinite().all())]
    if broken:
        raise CheckpointError(f"weights: {source} holds NaN or infinity: {_listed('non-finite', broken)}")
    model.load_state_dict(dict(state), strict=False)


def _listed(word: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return f"{len(names)} {word}: {', '.join(names[:_SHOWN])}{more}"


def _torch_load(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript file warns before it is refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # weights_only refuses every global but tensors, and reports damage with the same exception.
        text = str(error)
        if "GLOBAL" in text or "Unsupported class" in text or "REDUCE" in text:
            raise CheckpointError(
                f"weights: {file} holds more than tensors, and reading it would run code; it was not read. "
                "Save the state_dict alone, best as .safetensors"
            ) from error
        raise CheckpointError(f"weights: {file} is not a torch checkpoint (damaged?)") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"weights: {file} is not a whole torch checkpoint (truncated or damaged?): {first}"
        ) from error


def _unwrapped(content: Any, file: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"weights: {file} holds a {type(content).__name__}; expected a non-empty dict of tensors by name"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"weights: {file} holds a {type(value).__name__} under {key!r}; expected tensors by name"
            )
    return dict(content)


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not state:
        raise CheckpointError("weights: the file holds no tensors")
    prefix = "module."
    if all(key.startswith(prefix) for key in state):
        return {key[len(prefix) :]: value for key, value in state.items()}
    return state
