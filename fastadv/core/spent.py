"""How long each part of a run takes, in seconds on the host; GPU work counts where the host waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

_WORDS = {
    "steps": "steps",
    "evaluation": "float32 evaluation",
    "preparation": "preparing networks",
    "images": "waiting for images",
    "results": "rows and files",
}


class Spent:
    """Measure the time of the parts of a run: the attack's steps, the float32 evaluation of clean and of finished
    images, the preparation of networks, waiting for images, and writing rows and files. All other time is "the rest".
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._seconds = dict.fromkeys(_WORDS, 0.0)
        self._inside = 0.0  # of the part at hand, what belongs to parts within it

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Add the time inside the ``with`` block to ``part``, a key of ``seconds``, but that of blocks within it."""
        begin, outside = time.perf_counter(), self._inside
        self._inside = 0.0
        try:
            yield
        finally:
            passed = time.perf_counter() - begin
            self._seconds[part] += passed - self._inside
            self._inside = outside + passed

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of each part so far."""
        return MappingProxyType(self._seconds)

    def line(self) -> str:
        """One sentence: ``"time: 34.2 s, of which steps 81 %, float32 evaluation 12 %, ..., the rest 2 %"``."""
        total = time.perf_counter() - self._begin
        parts = {words: self._seconds[part] for part, words in _WORDS.items()}
        parts["the rest"] = max(0.0, total - sum(parts.values()))
        shares = (f"{words} {100 * seconds / max(total, 1e-9):.0f} %" for words, seconds in parts.items())
        return f"time: {total:.1f} s, of which {', '.join(shares)}"
