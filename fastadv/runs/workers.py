"""Other processes that compute for a run: what a run asks of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from fastadv.engine import Engine

Item = TypeVar("Item")
_LARGEST = 256  # items of a call: they are computed again if a worker dies
_EACH = 8  # calls that a worker gets at least, if there are items enough: so that all workers end together


class Workers(Protocol):
    """Processes with nothing of their own: they are sent a function and what it is called with."""

    @property
    def workers(self) -> int:
        """How many there are."""

    def each(self, do: Callable[[Any], Any], items: Iterable[Any]) -> Generator[tuple[int, Any], None, None]:
        """What a function returns for each item, once, with the item's place, in the order in which calls end.

        The function and an item are sent; a call whose process dies is repeated. Items are drawn as they are needed.
        """


def each(workers: Workers | None, do: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """As ``Workers.each``; without workers in this process, in the order of the items."""
    if workers is None:
        yield from enumerate(map(do, items))
        return
    with closing(workers.each(do, items)) as found:
        yield from found


def fitted(engine: Engine) -> Engine:
    """The engine without the choices that each worker makes for its own device, and that change no bit."""
    return replace(engine, capture=None, poll=None, overlap=None)


def shared_out(items: Sequence[Item], workers: Workers, *, least: int) -> list[Sequence[Item]]:
    """The items in blocks, of at least so many."""
    size = max(least, min(_LARGEST, len(items) // (workers.workers * _EACH)))
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
