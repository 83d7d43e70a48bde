"""A search for the smallest number that succeeds, one an image: growth until the first success, then bisection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.fields import check_count, check_number, is_number
from fastadv.attacks.state import SlotFields, integer, number, part
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError


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


def check_line(first: float, growth: float, bisections: int, largest: float) -> None:
    """Raise ValueError where a field of an attack that searches along a line is out of range."""
    check_number("largest", largest, positive=True)
    check_number("first", first, positive=True)
    if first > largest:
        raise ArgumentError(f"first must be at most largest = {largest:g}, got {first:g}")
    if not (is_number(growth) and growth > 1):
        raise ArgumentError(f"growth must be a number above 1, got {brief(growth)}")
    check_count("bisections", bisections, least=0)


def most_tries(first: float, growth: float, bisections: int, largest: float) -> int:
    """How many sizes such a search tries at most."""
    return 1 + math.ceil(math.log(largest / first) / math.log(growth) - 1e-9) + bisections
