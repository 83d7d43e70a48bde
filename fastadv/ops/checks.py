"""Checks of the arguments of operations: each error names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError

Named = tuple[tuple[str, Tensor | None], ...]

_NO_DISPATCH = Tensor.__torch_dispatch__

#: Element types of a gradient and their codes in the compiled kernels.
GRAD_TYPES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: What has to be float32.
FLOAT = (torch.float32,)


def tensor(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a tensor of the ordinary form."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: expected a torch.Tensor, like x, got {type(value).__name__}")
    strided(name, value)


def an_array(name: str, value: object) -> None:
    """Raise TypeError unless ``value``, which an array was made into a tensor for, is one of the ordinary form."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: expected a torch.Tensor or a NumPy or CuPy array, got {type(value).__name__}")
    strided(name, value)


def strided(name: str, value: Tensor) -> None:
    """Raise TypeError where a tensor is sparse, nested or of another form that has no strides."""
    if value.layout is not torch.strided or value.is_nested:
        came = "a nested tensor" if value.is_nested else f"one of layout {value.layout}".replace("torch._", "torch.")
        raise ArgumentTypeError(f"{name}: expected an ordinary tensor of layout torch.strided, got {came}")


def has_memory(value: Tensor) -> bool:
    """Whether the elements lie where ``data_ptr()`` says, as they are.

    Those of a view that negates do not, nor those of sparse tensors, FakeTensors and others that only PyTorch's
    dispatcher understands: what passes it by has to ask.
    """
    if type(value) is not Tensor and type(value).__torch_dispatch__ is not _NO_DISPATCH:
        return False
    if value.is_neg() or value.is_nested:
        return False
    try:
        return value.data_ptr() != 0 or value.numel() == 0
    except RuntimeError:
        return False


def in_memory(name: str, value: Tensor) -> Tensor:
    """``value``, which is only read, as a tensor that :func:`has_memory`: itself, or a copy of a view that negates."""
    strided(name, value)
    if value.is_neg():
        value = value.resolve_neg()
    if has_memory(value):
        return value
    came = f"a {type(value).__name__} on {value.device} without"
    raise ArgumentTypeError(f"{name}: expected a tensor with memory of its own, got {came}")


def batch(
    name: str, value: Tensor, types: Collection[torch.dtype], least: int, form: str, most: int | None = None
) -> None:
    """Raise unless ``value`` is a tensor of one of the types with ``least`` to ``most`` dimensions, as in ``form``."""
    an_array(name, value)
    of_type(name, value, types)
    if value.dim() < least or (most is not None and value.dim() > most):
        raise ArgumentError(f"{name}: expected a batch {form}, got shape {tuple(value.shape)}")


def like(name: str, value: Tensor, x: Tensor, types: Collection[torch.dtype] = FLOAT) -> None:
    """Raise unless ``value`` has the shape and device of ``x`` and one of the types."""
    tensor(name, value)
    if value.shape != x.shape:
        raise ArgumentError(f"{name}: expected shape {tuple(x.shape)}, the shape of x, got {tuple(value.shape)}")
    of_type(name, value, types)
    on_device(name, value, x)


def of_type(name: str, value: Tensor, types: Collection[torch.dtype]) -> None:
    """Raise TypeError unless ``value`` is of one of the types."""
    if value.dtype not in types:
        raise ArgumentTypeError(f"{name}: expected dtype {in_words(types)}, got {value.dtype}")


def tensor_of(name: str, value: object, types: Collection[torch.dtype]) -> None:
    """Raise TypeError unless ``value`` is a tensor of one of the types."""
    if not isinstance(value, Tensor) or value.dtype not in types:
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentTypeError(f"{name}: expected a tensor of {in_words(types)}, got {came}")


def in_words(names: Iterable[object]) -> str:
    """``a, b or c``."""
    *others, last = map(str, names)
    return f"{', '.join(others)} or {last}" if others else last


def one_of(name: str, value: str, known: Collection[str]) -> None:
    """Raise ValueError unless ``value`` is one of the known words."""
    if value not in known:
        raise ArgumentError(f"{name}: expected {in_words(map(repr, known))}, got {brief(value)}")


def finite(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number."""
    if not -float("inf") < value < float("inf"):
        raise ArgumentError(f"{name}: expected a finite number, got {brief(value)}")


def refuse_negated(written: Named) -> None:
    """Raise ValueError for the first tensor that is a view that negates."""
    for name, value in written:
        if value is not None and value.is_neg():
            raise ArgumentError(
                f"{name}: expected a tensor to write into, got a view that negates (the imaginary part of a "
                "conjugate); pass resolve_neg() of it"
            )


def refuse_gradients(op: str, written: Named, read: Named) -> None:
    """Raise RuntimeError for the first tensor that requires grad."""
    without = ", or call it under torch.no_grad()"
    for does, tensors, more in (("writes into", written, ""), ("reads", read, without)):
        for name, value in tensors:
            if value is not None and value.requires_grad:
                raise RuntimeError(
                    f"{op} {does} {name}, which requires grad, and has no derivative; pass a detached tensor{more}"
                )


def on_device(name: str, value: Tensor, x: Tensor, like: str = "x") -> None:
    """Raise unless ``value`` is where ``x``, which is called ``like``, is."""
    if value.device != x.device:
        raise ArgumentError(f"{name}: expected {x.device}, the device of {like}, got {value.device}")


def per_image(name: str, value: Tensor | None, x: Tensor, dtype: torch.dtype, columns: int | None = None) -> None:
    """Raise unless ``value`` is None or has shape ``(N,)``, or ``(N, columns)``, and the dtype."""
    if value is None:
        return
    tensor(name, value)
    if value.dtype != dtype:
        raise ArgumentTypeError(f"{name}: expected dtype {dtype}, got {value.dtype}")
    shape = (x.shape[0],) if columns is None else (x.shape[0], columns)
    if value.shape != shape:
        raise ArgumentError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
    on_device(name, value, x)


def scalar_or_each(
    name: str, value: float | Tensor, x: Tensor, least: float | None = None
) -> tuple[Tensor | None, float]:
    """Split a number, or one number per image, into ``(tensor or None, float)``.

    Args:
        name: of the argument.
        value: a finite float not below ``least``, or a float32 tensor ``(N,)``; the values of a tensor are
            not looked at, since that would wait for the device.
        x: the images.
        least: the smallest float allowed; None: any.
    """
    if isinstance(value, Tensor):
        per_image(name, value, x, torch.float32)
        return value, 0.0
    number = float(value)
    if not -float("inf") < number < float("inf") or (least is not None and number < least):
        expected = "a finite number" if least is None else f"a finite number >= {least:g}"
        raise ArgumentError(f"{name}: expected {expected}, or a float32 tensor (N,), got {brief(value)}")
    return None, number


def pixel_range(lo: float, hi: float) -> None:
    """Raise unless ``lo <= hi``."""
    if not lo <= hi:
        raise ArgumentError(f"lo, hi: expected lo <= hi, got {brief(lo)} and {brief(hi)}")


def dense(name: str, x: Tensor) -> None:
    """Raise ValueError unless the elements of ``x`` fill their memory, one image after the other.

    Contiguous and channels-last batches do, and so does any other order of the dimensions inside an image.
    """
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride != expected:
            raise _not_dense(name, x)
        expected *= size
    if x.shape[0] > 1 and x.stride(0) * x.shape[0] != x.numel():
        raise _not_dense(name, x)


def _not_dense(name: str, x: Tensor) -> ArgumentError:
    return ArgumentError(
        f"{name}: expected a dense batch, one image after the other (contiguous or channels-last), "
        f"since it is written in place, got shape {tuple(x.shape)} and strides {x.stride()}"
    )


def same_layout(name: str, value: Tensor, x: Tensor) -> None:
    """Raise ValueError unless ``value``, which is written, lies in memory as ``x`` does."""
    if value.stride() == x.stride():
        return
    strides = zip(value.stride(), x.stride(), x.shape, strict=True)
    if any(a != b for a, b, n in strides if n > 1):
        raise ArgumentError(
            f"{name}: expected strides {x.stride()}, the layout of x, since it is written in place (make it "
            f"with torch.empty_like(x) or zeros_like(x)), got {value.stride()}"
        )


def tensors(name: str, values: object, expected: str) -> list[Tensor]:
    """``values`` as a list, or an error unless it is a sequence of one tensor or more, all on one device."""
    if not isinstance(values, (list, tuple)):
        raise ArgumentTypeError(f"{name}: expected a sequence of {expected}, got {type(values).__name__}")
    if not values:
        raise ArgumentError(f"{name}: expected a sequence of one or more {expected}, got none")
    for i, value in enumerate(values):
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(f"{name}[{i}]: expected a torch.Tensor, got {type(value).__name__}")
        strided(f"{name}[{i}]", value)
        on_device(f"{name}[{i}]", value, values[0], f"{name}[0]")
    return list(values)


def rows(name: str, value: Tensor, dtype: torch.dtype, shape: tuple[int | None, int | None]) -> None:
    """Raise unless ``value`` is two-dimensional with the dtype and the sizes that are not None."""
    if value.dtype != dtype:
        raise ArgumentTypeError(f"{name}: expected dtype {dtype}, got {value.dtype}")
    wrong = value.dim() != 2 or any(want not in (None, size) for want, size in zip(shape, value.shape, strict=True))
    if wrong:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ArgumentError(f"{name}: expected shape ({expected}), got {tuple(value.shape)}")


def columns(name: str, value: Tensor, least: int, form: str) -> None:
    """Raise ValueError unless a matrix has at least so many columns."""
    if value.shape[1] < least:
        raise ArgumentError(f"{name}: expected shape {form} with {form[-2]} >= {least}, got {tuple(value.shape)}")


def row_major(value: Tensor) -> Tensor:
    """``value``, which is only read, with the elements of a row side by side: itself, or a copy."""
    return value if value.stride(1) == 1 or value.shape[1] == 1 else value.contiguous()


def restrided(value: Tensor, x: Tensor) -> Tensor:
    """``value``, which is only read, in the memory order of ``x``: itself, or a copy."""
    if value.stride() == x.stride():
        return value
    return torch.empty_strided(x.shape, x.stride(), dtype=value.dtype, device=value.device).copy_(value)


def not_shared(written: Named, read: Named) -> None:
    """Raise ValueError when the memory of a written tensor overlaps that of another argument.

    From the first byte to the last. A written tensor was checked to be dense: nothing lies between its elements.
    """
    seen: list[tuple[int, int, str]] = []
    for name, value in written:
        if value is None:
            continue
        begin = value.data_ptr()
        end = begin + value.nbytes
        for first, last, other in seen:
            if begin < last and first < end:
                raise _shared(other, name)
        if begin < end:
            seen.append((begin, end, name))
    for name, value in read:
        if value is None:
            continue
        begin = value.data_ptr()
        for first, last, other in seen:
            # The end of what begins behind need not be known.
            if begin < last and (first <= begin or first < begin + _reach(value)) and value.numel():
                raise _shared(other, name)


def _reach(value: Tensor) -> int:
    """Bytes from the first to the last one."""
    if value.is_contiguous():
        return value.nbytes
    return (1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))) * value.itemsize


def _shared(name: str, other: str) -> ArgumentError:
    return ArgumentError(f"{name}, {other}: expected separate tensors, got shared memory; clone one")


def address(value: Tensor | None) -> int:
    """Where the data is; 0 for None."""
    return 0 if value is None else value.data_ptr()


def contiguous(value: Tensor | None) -> Tensor | None:
    """A read-only argument as one row; None stays None."""
    return None if value is None else value.contiguous()


def writable_rows(name: str, value: Tensor | None) -> None:
    """Raise ValueError unless ``value``, which is written, is contiguous."""
    if value is not None and not value.is_contiguous():
        raise ArgumentError(f"{name}: expected a contiguous tensor, since it is written, got strides {value.stride()}")
