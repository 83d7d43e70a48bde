"""Weights files: read without running code, checked completely before a single weight is changed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from fastadv.core.notices import notify
from fastadv.models.state_fit import FittedState, fitting_state, listed, only_state, problems, sized
from fastadv.models.tensor_content import CheckpointError, read_content

__all__ = ["CheckpointError", "FittedState", "load_weights", "read_fitting_state", "read_state_dict"]


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read named tensors from a file, without executing anything in it.

    The dict of tensors may lie in other dicts, as trainings save it; prefixes of torch's own wrappers (`module.`,
    `_orig_mod.`) on every key are removed. A pickled network is read as its state, a pickled dict of NumPy arrays as
    tensors.

    Args:
        path: a safetensors file, a torch checkpoint or a pickle, whatever its suffix.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        CheckpointError: if the file is missing, truncated, of another kind, would call what could run code, or holds
            no tensors.
    """
    return only_state(read_content(path), source=os.fspath(path))


def read_fitting_state(path: str | os.PathLike[str], backbone: nn.Module) -> FittedState:
    """Read the tensors that are a network's from a file, from whatever dict and under whatever prefix they are.

    Args:
        path: as for `read_state_dict`.
        backbone: the network.

    Raises:
        CheckpointError: as `read_state_dict`; or two different states in the file fit the network.
    """
    return fitting_state(read_content(path), backbone.state_dict(), source=os.fspath(path))


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, fitted: FittedState | None = None
) -> None:
    """Copy `state` into `model`, strictly: every name and every shape has to fit, and every number be finite.

    The model is changed only after everything was checked. Names that end in `num_batches_tracked` may be
    missing: they count training batches, and nothing reads them in evaluation mode.

    Args:
        model: receives the weights.
        state: tensors by parameter name.
        source: where they come from, for the error.
        fitted: how they were found, for the file's own names and what else is there.

    A classifier that was left out (`FittedState.heads`) is said in a notice.

    Raises:
        CheckpointError: with the number and the first of the missing, unexpected, misshapen and non-finite
            names.
    """
    wanted = model.state_dict()
    names = fitted.names if fitted else {}
    wrong = problems(wanted, state, names=names, outside=fitted.outside if fitted else {})
    if wrong:
        under = f"; read under the prefix {fitted.prefix!r}" if fitted and fitted.prefix else ""
        raise CheckpointError(f"weights: expected tensors that fit the model, got others in {source}: {wrong}{under}")
    shared = [k for k in wanted if k in state]
    broken = [k for k in shared if not _is_finite(state[k])]
    if broken:
        raise CheckpointError(
            f"weights: expected finite numbers, got NaN or infinity in {source}: {listed('non-finite', broken)}"
        )
    if fitted and fitted.heads:
        notify(f"weights: {listed('left out', sized(fitted.heads))} in {source}: a classifier of the training")
    model.load_state_dict(dict(state), strict=False)


def _is_finite(value: Tensor) -> bool:
    """Whether all numbers are finite; types of a byte have no test of their own and are widened."""
    if not value.is_floating_point():
        return True
    return bool((value.float() if value.element_size() == 1 else value).isfinite().all())
