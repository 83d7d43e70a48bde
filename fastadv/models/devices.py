"""Where tensors go: one check of a device for every command and call."""

from __future__ import annotations

import torch

from fastadv.core.errors import ArgumentError

KINDS = ("cpu", "cuda")
"""What fastadv runs on."""


def open_device(device: torch.device | str, *, argument: str = "device") -> torch.device:
    """The device of a name, once it is sure that this machine has it.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, or such a ``torch.device``.
        argument: What the message calls it.

    Raises:
        ValueError: The text names no device, one of a kind that fastadv does not run on, or one that is not there.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise ArgumentError(f"{argument}: expected {_offered()}, got {str(device)!r}") from None
    if found.type not in KINDS or (found.type == "cpu" and found.index not in (None, 0)):
        raise ArgumentError(f"{argument}: expected {_offered()}, got {str(device)!r}")
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise ArgumentError(f"{argument}: expected {_offered()}, got {str(device)!r}; {_reason()}")
    return found


def _offered() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return "cpu"
    return "cpu or cuda" if count == 1 else f"cpu, cuda or cuda:0 to cuda:{count - 1}"


def _reason() -> str:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"this machine shows {count} CUDA device{'s' if count > 1 else ''} to PyTorch"
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    return "PyTorch sees no CUDA device: look at nvidia-smi and CUDA_VISIBLE_DEVICES"
