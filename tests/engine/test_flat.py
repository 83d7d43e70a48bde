"""Hooks, threads, file handles, tensors and memory after 10,000 ticks, 100 engines and 100 failures: as before."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import flat
import pytest
import torch

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")


@pytest.mark.slow
@pytest.mark.parametrize("name", flat.WORKS)
def test_much_work_leaves_nothing_behind(name: str, rounds: int) -> None:
    ticks = flat.TICKS[0]
    before, after, more = flat.WORKS[name].held(rounds)
    assert after == before
    assert more < flat.MOST_RESIDENT
    assert name != "ticks" or flat.TICKS[0] - ticks >= 10_000


def test_what_stays_behind_is_seen() -> None:
    before, stop, (reading, writing) = flat.Held.now(), threading.Event(), os.pipe()
    waiting = threading.Thread(target=stop.wait)
    waiting.start()
    handle = flat.MODEL.register_forward_hook(lambda *_: None)
    kept = [torch.zeros(1), torch.fx.symbolic_trace(torch.nn.Identity())]
    after = flat.Held.now()
    stop.set()
    waiting.join()
    handle.remove()
    os.close(reading)
    os.close(writing)
    more = {name: getattr(after, name) - value for name, value in vars(before).items()}
    assert more == {"hooks": 1, "threads": 1, "files": 2, "tensors": 1, "modules": 1, "sources": 1}
    del kept
    assert replace(flat.Held.settled(before), sources=before.sources) == before
