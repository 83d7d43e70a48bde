"""PyTorch's modes that a caller may have switched on, switched off for the time of one computation."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager
from typing import Any

import torch

_PLAIN = ("none", "ieee")  # what multiplies float32 numbers as float32 numbers


class plain_modes(ContextDecorator):  # noqa: N801
    """Compute as in a fresh process, whatever modes the caller has switched on; they are back afterwards.

    Off are `torch.autocast`, inference mode, `no_grad`, a default device, a default type other than float32, and
    reduced precision of float32 products on a CPU (`torch.set_float32_matmul_precision`; `float32_math` does the same
    for CUDA). Each would change the bits of a result, or make an attack fail half-way.

    A generator leaves the context before it yields: the modes of a thread are the caller's between two items.

    Args:
        device: where the computation runs.
        inference: compute in inference mode, instead of with gradients.
    """

    def __init__(self, device: torch.device, *, inference: bool = False) -> None:
        self._device, self._inference = device, inference
        self._within: AbstractContextManager[None] | None = None

    def _recreate_cm(self) -> plain_modes:
        return plain_modes(self._device, inference=self._inference)

    def __enter__(self) -> None:
        kinds = ("cpu",) if self._device.type == "cpu" else ("cpu", self._device.type)
        # a guard's call takes milliseconds, and after a network has been through the caches, each line takes long
        if not _as_wanted(kinds, self._inference):
            self._within = _entered(kinds, self._inference)
            self._within.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        within, self._within = self._within, None
        return None if within is None else within.__exit__(*error)


def _as_wanted(kinds: tuple[str, ...], inference: bool) -> bool:
    if torch.is_inference_mode_enabled() is not inference or not (inference or torch.is_grad_enabled()):
        return False
    if any(map(torch.is_autocast_enabled, kinds)) or _PROCESS.differs():
        return False
    return torch.empty(0).is_cpu  # on the default device


@contextmanager
def _entered(kinds: tuple[str, ...], inference: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled() is not inference:
            stack.enter_context(torch.inference_mode(inference))
        if not inference and not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if _PROCESS.differs():
            stack.enter_context(_PROCESS.plain())
        yield


class _Token:
    """Stands for a computation in flight."""


class _ProcessWide:
    """Settings of the whole process: the first computation in flight changes them, the last one restores them.

    Ctrl-C may come between any two lines: what was set before is noted before it is changed, and forgotten only when
    it is back; a computation that ends without a word is forgotten with its frame, and the next one puts things right.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: weakref.WeakSet[_Token] = weakref.WeakSet()
        self._before: tuple[torch.dtype, list[str]] | None = None

    @staticmethod
    def _products() -> tuple[Any, ...]:
        return (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)  # type: ignore[attr-defined]

    def differs(self) -> bool:
        """Whether a computation must enter `plain`: also while another one holds the settings."""
        if self._before is not None or torch.get_default_dtype() is not torch.float32:
            return True
        matmul, conv = self._products()
        return matmul.fp32_precision not in _PLAIN or conv.fp32_precision not in _PLAIN

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Default type float32, and products of float32 numbers in float32."""
        token = _Token()
        try:
            with self._lock:
                self._inside.add(token)
                if self._before is None:
                    precisions = [product.fp32_precision for product in self._products()]
                    self._before = (torch.get_default_dtype(), precisions)
                torch.set_default_dtype(torch.float32)
                for product in self._products():
                    if product.fp32_precision not in _PLAIN:
                        product.fp32_precision = "ieee"
            yield
        finally:
            with self._lock:
                self._inside.discard(token)
                if not self._inside and self._before is not None:
                    dtype, precisions = self._before
                    torch.set_default_dtype(dtype)
                    for product, precision in zip(self._products(), precisions, strict=True):
                        if product.fp32_precision != precision:
                            product.fp32_precision = precision
                    self._before = None


_PROCESS = _ProcessWide()
