"""A tick recorded once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CapturedTick:
    """Replays one recorded call of ``tick``.

    The tensors that ``tick`` reads and writes must stay where they are. Recording runs ``tick`` a few times before
    (libraries choose algorithms and allocate then), so it must leave the state alone at that time: the engine
    records while every slot is idle.
    """

    def __init__(self, tick: Callable[[], None], *, warmup: int = 3) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warmup):
                tick()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            tick()

    def __call__(self) -> None:
        self._graph.replay()
