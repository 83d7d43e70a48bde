"""The line search of Moré and Thuente for N searches at a time, each at its own point of it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

DECREASE, CURVATURE, WIDTH = 1e-3, 0.9, 0.1  # ftol, gtol and xtol of L-BFGS-B
_ROUNDING = 1e-6  # relative rounding of a float32 objective: a loss this small is no reason to refuse a step
_FARTHER = (1.1, 4.0)  # how far an extrapolation goes, as parts of the last change of the step
_NARROWER = 0.66


@dataclass(frozen=True, kw_only=True)
class LineSearch:
    """A step t with ``f(t) <= f(0) + 1e-3 t f'(0)`` and ``|f'(t)| <= 0.9 |f'(0)|``: the strong conditions of Wolfe.

    f is minimised along a line from t = 0; every tensor is ``(N,)``, of float64 unless said, and written in place.

    Attributes:
        step: t of the trial that is being evaluated.
        most: The largest t.
        start: f(0).
        slope: f'(0), negative.
        best: The end of the interval with the smallest f (stx), with its value and slope.
        best_value: f there.
        best_slope: f' there.
        other: The other end (sty).
        other_value: f there.
        other_slope: f' there.
        low: What the next step must exceed.
        high: And not.
        width: Of the interval.
        last_width: Of the one before.
        bracketed: bool, whether the interval holds a minimum.
        plain: bool, whether f itself is interpolated (stage 2), no longer f less its sufficient decrease.

    Source: Moré and Thuente 1994, "Line search algorithms with guaranteed sufficient decrease" (dcsrch and dcstep of
        MINPACK-2).
    """

    step: Tensor
    most: Tensor
    start: Tensor
    slope: Tensor
    best: Tensor
    best_value: Tensor
    best_slope: Tensor
    other: Tensor
    other_value: Tensor
    other_slope: Tensor
    low: Tensor
    high: Tensor
    width: Tensor
    last_width: Tensor
    bracketed: Tensor
    plain: Tensor

    @staticmethod
    def allocate(count: int, device: torch.device) -> LineSearch:
        """Searches that have not begun."""
        kinds = {f.name: torch.bool if f.name in ("bracketed", "plain") else torch.float64 for f in fields(LineSearch)}
        return LineSearch(**{name: torch.zeros(count, dtype=kind, device=device) for name, kind in kinds.items()})

    def begin(self, mask: Tensor, value: Tensor, slope: Tensor, most: Tensor) -> None:
        """New searches with t = 1 where the mask says, on lines with this f(0), f'(0) and largest t."""
        one = torch.ones_like(slope)
        first = LineSearch(
            step=one,
            most=most,
            high=5 * one,
            width=most,
            last_width=2 * most,
            **dict.fromkeys(("best", "other", "low"), torch.zeros_like(slope)),
            **dict.fromkeys(("start", "best_value", "other_value"), value),
            **dict.fromkeys(("slope", "best_slope", "other_slope"), slope),
            **dict.fromkeys(("bracketed", "plain"), torch.zeros_like(mask)),
        )
        self._take(mask, first)

    def limit(self, mask: Tensor, most: Tensor) -> None:
        """Say the largest t of searches that have begun with an infinite one, before they first advance."""
        self.most.copy_(torch.where(mask, most, self.most))
        self.width.copy_(torch.where(mask, most, self.width))
        self.last_width.copy_(torch.where(mask, 2 * most, self.last_width))

    def good_enough(self, value: Tensor) -> Tensor:
        """Whether f has decreased enough at ``step``, ``(N,)`` bool, but for the rounding of float32."""
        return value <= self.start + DECREASE * self.step * self.slope + _ROUNDING * self.start.abs()

    def ended(self, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Whether ``step`` is to be taken, and whether the search has failed, ``(N,)`` bool each.

        Where rounding leaves no room in the interval (a warning of dcsrch, which takes the step as it is), a step is
        only taken if it decreases f enough.
        """
        enough = self.good_enough(value)
        wolfe = enough & (slope.abs() <= -CURVATURE * self.slope)
        longest = enough & (self.step >= self.most) & (slope <= DECREASE * self.slope)
        outside = (self.step <= self.low) | (self.step >= self.high)
        tight = self.bracketed & (outside | (self.high - self.low <= WIDTH * self.high))
        return wolfe | longest | (tight & enough), tight & ~enough

    def advance(self, value: Tensor, slope: Tensor) -> None:
        """The next step of every search, of f and f' at ``step``; a value that is not finite is a wall."""
        wall = ~torch.isfinite(value)
        test = self.start + DECREASE * self.step * self.slope
        plain = self.plain | ((value <= test) & (slope >= 0))
        # before stage 2 a value that is the best but no sufficient decrease is compared less that decrease
        less = torch.where(~plain & (value <= self.best_value) & (value > test), DECREASE * self.slope, 0.0)
        found = self._interpolate(value - self.step * less, slope - less, less)
        step, best, other, bracketed = found.step, found.best, found.other, found.bracketed
        span = (other - best).abs()
        slow = bracketed & (span >= _NARROWER * self.last_width)
        step = torch.where(slow, best + 0.5 * (other - best), step)
        near, far = (step + part * (step - best) for part in _FARTHER)
        low = torch.where(bracketed, torch.minimum(best, other), near)
        high = torch.where(bracketed, torch.maximum(best, other), far)
        step = torch.minimum(step.clamp(min=0.0), self.most)
        lost = bracketed & ((step <= low) | (step >= high) | (high - low <= WIDTH * high))
        self._take(
            ~wall,
            replace(
                self,
                step=torch.where(lost, best, step),
                best=best,
                best_value=found.best_value + best * less,
                best_slope=found.best_slope + less,
                other=other,
                other_value=found.other_value + other * less,
                other_slope=found.other_slope + less,
                low=low,
                high=high,
                width=torch.where(bracketed, span, self.width),
                last_width=torch.where(bracketed, self.width, self.last_width),
                bracketed=bracketed,
                plain=plain,
            ),
        )
        self.most.copy_(torch.where(wall, self.step, self.most))
        self.step.copy_(torch.where(wall, self.best + 0.25 * (self.step - self.best), self.step))

    def _interpolate(self, value: Tensor, slope: Tensor, less: Tensor) -> LineSearch:
        """dcstep: the minimiser of a cubic or parabola through the ends and the trial, and the new ends."""
        t, x, y = self.step, self.best, self.other
        fx, dx = self.best_value - x * less, self.best_slope - less
        fy, dy = self.other_value - y * less, self.other_slope - less
        opposite = slope * dx.sign() < 0
        worse = value > fx
        flatter = slope.abs() < dx.abs()

        theta = 3 * (fx - value) / (t - x) + dx + slope
        size = torch.maximum(theta.abs(), torch.maximum(dx.abs(), slope.abs()))
        root = size * ((theta / size).square() - (dx / size) * (slope / size)).clamp(min=0.0).sqrt()
        # 1: a higher value: between x and t
        gamma = torch.where(t < x, -root, root)
        cubic = x + (gamma - dx + theta) / (2 * gamma - dx + slope) * (t - x)
        square = x + dx / ((fx - value) / (t - x) + dx) / 2 * (t - x)
        first = torch.where((cubic - x).abs() < (square - x).abs(), cubic, cubic + (square - cubic) / 2)
        # 2: slopes of opposite signs: between t and x
        gamma = torch.where(t > x, -root, root)
        cubic = t + (gamma - slope + theta) / (2 * gamma - slope + dx) * (x - t)
        square = t + slope / (slope - dx) * (x - t)
        second = torch.where((cubic - t).abs() > (square - t).abs(), cubic, square)
        # 3: a slope of the same sign, and flatter: beyond t
        part = (gamma - slope + theta) / (2 * gamma + dx - slope)
        edge = torch.where(t > x, self.high, self.low)
        cubic = torch.where((part < 0) & (gamma != 0), t + part * (x - t), edge)
        nearer = (cubic - t).abs() < (square - t).abs()
        inside = torch.where(nearer, cubic, square)
        limit = t + _NARROWER * (y - t)
        inside = torch.where(t > x, torch.minimum(limit, inside), torch.maximum(limit, inside))
        beyond = torch.where(nearer, square, cubic).maximum(self.low).minimum(self.high)
        third = torch.where(self.bracketed, inside, beyond)
        # 4: a slope of the same sign that is not flatter: towards y, or as far as allowed
        theta = 3 * (value - fy) / (y - t) + dy + slope
        size = torch.maximum(theta.abs(), torch.maximum(dy.abs(), slope.abs()))
        gamma = size * ((theta / size).square() - (dy / size) * (slope / size)).clamp(min=0.0).sqrt()
        gamma = torch.where(t > y, -gamma, gamma)
        cubic = t + (gamma - slope + theta) / (2 * gamma - slope + dy) * (y - t)
        fourth = torch.where(self.bracketed, cubic, edge)

        step = torch.where(worse, first, torch.where(opposite, second, torch.where(flatter, third, fourth)))
        crossed = ~worse & opposite
        return replace(
            self,
            step=torch.where(torch.isfinite(step), step, (x + t) / 2),
            best=torch.where(worse, x, t),
            best_value=torch.where(worse, fx, value),
            best_slope=torch.where(worse, dx, slope),
            other=torch.where(worse, t, torch.where(crossed, x, y)),
            other_value=torch.where(worse, value, torch.where(crossed, fx, fy)),
            other_slope=torch.where(worse, slope, torch.where(crossed, dx, dy)),
            bracketed=self.bracketed | worse | opposite,
        )

    def _take(self, mask: Tensor, new: LineSearch) -> None:
        for f in fields(self):
            held = getattr(self, f.name)
            held.copy_(torch.where(mask, getattr(new, f.name), held))
