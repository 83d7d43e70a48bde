"""A call recorded once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

from fastadv.models.memory import is_out_of_memory

Result = TypeVar("Result")


class Captured(Generic[Result]):
    """Replays one recorded call, on the current stream; it returns the tensors of the recording, filled anew.

    The tensors that the call reads and writes must stay where they are. Recording runs the call a few times before
    (libraries choose algorithms and allocate then), so it must leave what it works on alone at that time: the attack
    engine records while every slot is idle.
    """

    def __init__(
        self,
        call: Callable[[], Result],
        *,
        warmup: int = 3,
        pool: Any | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Record, on the current device.

        Args:
            call: what to record.
            warmup: how often it runs before.
            pool: memory to share with other recordings, which must never run at the same time
                (``torch.cuda.graph_pool_handle()``); None for memory of its own.
            stream: of the current device, where it is recorded; None for a new one.
        """
        side = stream or torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warmup):
                call()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # The outer context: a recording that fails leaves its own stream the current one.
        with torch.cuda.stream(torch.cuda.current_stream()):
            try:
                # "thread_local": what other threads do meanwhile, such as allocating, neither fails nor ends it.
                # Never on PyTorch's own stream for it: that is one for all threads, and of one device.
                with torch.cuda.graph(self._graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    self._result = call()
            except RuntimeError as error:
                # The end of a recording that ran out of memory raises an error of its own, which does not say so.
                if is_out_of_memory(error.__context__):
                    raise error.__context__ from None  # type: ignore[misc]
                raise

    def __call__(self) -> Result:
        self._graph.replay()
        return self._result
