"""A search for the smallest number that succeeds, one an image: growth until the first success, then bisection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fastadv.attacks.attack import SmallestChange
from fastadv.attacks.state import SlotFields, SlotState, integer, number, part
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_count, check_number, is_number


@dataclass(frozen=True, kw_only=True)
class Bracket(SlotFields):
    """The numbers ``(N,)`` that are tried, between one that failed and one that succeeded.

    Attributes:
        value: What is tried.
        low: The largest that failed, or 0.
        high: The smallest that succeeded, or inf.
    """

    value: Tensor = number()
    low: Tensor = number()
    high: Tensor = number(torch.inf)

    def begin(self, slots: Tensor, value: float) -> None:
        """Try ``value`` first in the slots (indices)."""
        self.reset(slots)
        self.value[slots] = value

    def narrow(self, done: Tensor, success: Tensor, *, growth: float) -> None:
        """Take note of the outcome where ``done``, and choose the next value there.

        A value that fails grows by the factor while none has succeeded; after that the middle is next.
        """
        self.high.copy_(torch.where(done & success, torch.minimum(self.high, self.value), self.high))
        self.low.copy_(torch.where(done & ~success, torch.maximum(self.low, self.value), self.low))
        following = torch.where(torch.isfinite(self.high), (self.low + self.high) / 2, self.value * growth)
        self.value.copy_(torch.where(done, following, self.value))


@dataclass(frozen=True, kw_only=True)
class LineSearch(SlotFields):
    """The smallest size along a fixed direction that succeeds, one evaluation a size.

    Attributes:
        bracket: The sizes.
        left: ``(N,)`` int64, bisections that are left.
    """

    bracket: Bracket = part(Bracket.allocate)
    left: Tensor = integer()

    def begin(self, slots: Tensor, first: float, bisections: int) -> None:
        """Try the size ``first`` in the slots (indices)."""
        self.bracket.begin(slots, first)
        self.left[slots] = bisections

    def advance(self, tried: Tensor, success: Tensor, *, growth: float, largest: float) -> Tensor:
        """Choose the next size where one was ``tried``, and return where the search is over.

        There the size is the smallest that succeeded, or ``largest`` where none did.
        """
        bracket = self.bracket
        bracket.narrow(tried, success, growth=growth)
        found = torch.isfinite(bracket.high)
        over = tried & torch.where(found, self.left == 0, bracket.low >= largest)
        self.left.add_(tried & found & ~over, alpha=-1)
        final = torch.where(found, bracket.high, bracket.low)
        bracket.value.copy_(torch.where(over, final, bracket.value).clamp(max=largest))
        return over


@dataclass(frozen=True, kw_only=True)
class SizedState(SlotState):
    """The slots of a ``SmallestSize`` attack.

    Attributes:
        size: The sizes that are tried.
    """

    size: LineSearch = part(LineSearch.allocate)


Z = TypeVar("Z", bound=SizedState)


@dataclass(frozen=True, kw_only=True)
class SmallestSize(SmallestChange[Z]):
    """Shared by the attacks that look for the smallest size of one kind of change.

    Attributes:
        first: The first size.
        growth: The factor while none has succeeded, above 1.
        bisections: After the first success.
        largest: The largest size.

    Raises:
        ValueError: A field is out of range.
    """

    first: float
    growth: float = 1.25
    bisections: int = 8
    largest: float = 1.0

    def __post_init__(self) -> None:
        check_number("largest", self.largest, positive=True)
        check_number("first", self.first, positive=True)
        if self.first > self.largest:
            raise ArgumentError(f"first: expected at most largest = {self.largest:g}, got {self.first:g}")
        if not (is_number(self.growth) and self.growth > 1):
            raise ArgumentError(f"growth: expected a number above 1, got {brief(self.growth)}")
        check_count("bisections", self.bisections, least=0)

    @property
    def steps(self) -> int:
        """The most evaluations of an image."""
        return 1 + most_tries(self.first, self.growth, self.bisections, self.largest)

    def start(self, state: Z, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        state.begin(slots, images)
        state.size.begin(slots, self.first, self.bisections)

    def next_size(self, state: Z, tried: Tensor, success: Tensor) -> Tensor:
        """Choose the next size where one was ``tried``, and return where the search is over."""
        return state.size.advance(tried, success, growth=self.growth, largest=self.largest)


def most_tries(first: float, growth: float, bisections: int, largest: float) -> int:
    """How many sizes such a search tries at most."""
    return 1 + math.ceil(math.log(largest / first) / math.log(growth) - 1e-9) + bisections
