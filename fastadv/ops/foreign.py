"""NumPy and CuPy arrays as arguments: they share their memory with a tensor for the time of a call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

from fastadv.core.errors import ArgumentError, ArgumentTypeError

T = TypeVar("T")


def is_array(value: object) -> bool:
    """Whether ``value`` is a NumPy or a CuPy array (CuPy is not imported for the question)."""
    return isinstance(value, np.ndarray) or _is_cupy(value)


def call(
    function: Callable[..., Any], names: Sequence[str], values: Sequence[Any], written: Collection[str], *options: Any
) -> None:
    """Call ``function`` with every array of ``values`` lent as a tensor.

    Args:
        function: the public side of an operation.
        names: of the arguments.
        values: tensors, arrays, numbers, words and None.
        written: the names of those that are written: they are never copied.
        options: further arguments.

    Raises:
        ValueError: a written array is read-only or cannot be shared with PyTorch.
    """
    pairs = zip(names, values, strict=True)
    function(*[borrow(name, value, written=name in written) for name, value in pairs], *options)
    for device in sorted({value.device.id for value in values if _is_cupy(value)}):
        _hand_back_stream(device)


def borrow(name: str, value: Any, *, written: bool) -> Any:
    """``value`` as a tensor on the same memory where it is an array, else ``value``.

    Raises:
        ValueError: it is to be written, and is read-only or cannot be shared.
    """
    if value is None or isinstance(value, (Tensor, int, float)):
        return value  # the common case first: torch.compile cannot trace the question that follows
    if _is_cupy(value):
        return torch.utils.dlpack.from_dlpack(value)
    if not isinstance(value, np.ndarray):
        return value
    if value.flags.writeable:
        try:
            return torch.from_numpy(value)
        except (
            TypeError,
            ValueError,
        ) as error:  # negative strides, a foreign byte order, a type PyTorch lacks
            if written:
                raise ArgumentError(
                    f"{name}: expected an array that PyTorch can share, got one that it cannot ({error})"
                ) from error
    elif written:
        raise ArgumentError(f"{name}: expected a writable array, since it is written in place, got a read-only one")
    return _copied(name, value)


def borrow_each(name: str, values: Any) -> Any:
    """A sequence with every array in it lent as a tensor to read; what is no list or tuple as it is."""
    if not isinstance(values, (list, tuple)):
        return values
    return [borrow(f"{name}[{i}]", value, written=False) for i, value in enumerate(values)]


def give_back(value: Tensor, like: object) -> Any:
    """A new tensor as a NumPy or CuPy array on the same memory, where ``like`` is one."""
    if isinstance(like, np.ndarray):
        return value.detach().numpy()
    if not _is_cupy(like):
        return value
    import cupy

    value = value.detach()
    theirs = _hand_back_stream(like.device.id)  # type: ignore[attr-defined]
    if value.is_cuda:
        value.record_stream(theirs)  # when CuPy drops it, its memory is not used again before CuPy's work is done
    return cupy.from_dlpack(value)


def _copied(name: str, value: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise ArgumentTypeError(f"{name}: expected a dtype that PyTorch has, got {value.dtype}") from error


def _is_cupy(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "cupy"


def _hand_back_stream(device: int) -> torch.cuda.Stream:
    """CuPy's current stream of the device of an array, after it was made to wait for PyTorch's."""
    # DLPack made PyTorch's stream wait for CuPy's; the way back is ours to order.
    import cupy

    with cupy.cuda.Device(device):
        pointer = cupy.cuda.get_current_stream().ptr
    # 0 and 1 are CUDA's default stream, which is PyTorch's too; an ExternalStream of 0 would be any stream of its pool.
    if pointer in (0, 1):
        theirs = torch.cuda.default_stream(device)
    else:
        theirs = torch.cuda.ExternalStream(pointer, device=device)
    theirs.wait_stream(torch.cuda.current_stream(device))
    return theirs
