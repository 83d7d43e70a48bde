"""Memory that runs out: one error for it, and what the libraries raise instead."""

from __future__ import annotations

import torch

from fastadv.core.errors import Error

# What CPython raises where its own code failed to allocate and forgot to say so.
_FORGOTTEN = ("without exception set", "without setting an exception")
# What PyTorch's allocator on a CPU, the C++ library, oneDNN, Python's threads, CUDA, cuBLAS and cuDNN say in a
# RuntimeError, and the dynamic linker in an ImportError.
_SAID = (
    "can't allocate memory",
    "std::bad_alloc",
    "could not create a primitive",
    "can't start new thread",
    "failed to map segment",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class OutOfMemoryError(Error, torch.OutOfMemoryError):
    """The device has not enough memory, even for one image."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, of a device or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, SystemError):
        return any(text in str(error) for text in _FORGOTTEN)
    if isinstance(error, ImportError) and is_out_of_memory(error.__cause__):  # SciPy's and NumPy's own words for it
        return True
    return isinstance(error, (RuntimeError, ImportError)) and any(text in str(error) for text in _SAID)
