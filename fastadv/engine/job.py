"""What goes into the engine and what comes out of it, one image at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fastadv.attacks import Goal
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import is_int
from fastadv.engine.carried import Carried
from fastadv.engine.transfers import HostCopy

ZERO_GRADIENT = "zero_gradient"
NONFINITE_GRADIENT = "nonfinite_gradient"
MET_AT_START = "met_at_start"
OUTSIDE = "outside_after_rounding"
BELOW_A_LEVEL = "eps_below_a_level"

EXPLANATIONS = {
    ZERO_GRADIENT: "had an all-zero gradient at every step (DeepFool: or one so small that the linearised border lies "
    "outside of the pixel range), so the attack could not move them "
    "(an evasion that starts on its own embedding needs a random start)",
    NONFINITE_GRADIENT: "met gradients that are not finite; those pixels were left as they were",
    MET_AT_START: "had reached the goal before the attack began",
    OUTSIDE: "have no 8-bit version inside the budget; the nearest 8-bit image was taken",
    BELOW_A_LEVEL: "were left as they were: eps is below one grey level (1/255), so they have no other 8-bit version "
    "inside the budget",
}
_DOUBT = "; where that is not meant, look at the labels, and at the model's mean and std"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to attack.

    Attributes:
        name: What reports and files call it; unique in a run.
        id: The number that keys its random draws, 0 <= id < 2**63.
        image: ``(3, H, W)`` float32 RGB in [0, 1].
        goal: A goal of one row.
        known: The model's float32 output for the clean image (what the goal reads, one row), or None. The engine
            computes it where it is None.
    """

    name: str
    id: int
    image: Tensor
    goal: Goal
    known: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """One attacked image, judged in float32 on its 8-bit version.

    Attributes:
        name: The job's name.
        id: The job's id.
        image: ``(3, H, W)`` float32 on the 8-bit grid, on the CPU.
        success: Whether the rounded image reaches the goal.
        embedding: Of the rounded image ``(D,)``, on the CPU, with a goal on embeddings; else None.
        success_float: Whether the image before rounding reaches it; None unless the engine is to measure that.
        ticks: Model evaluations that the attack consumed.
        linf: ``max |x' - x|`` of the rounded image, in [0, 1]; at most eps where the image is inside such a budget.
        l2: ``||x' - x||_2`` of the rounded image.
        score_before: The goal's score (similarity, distance or logit margin) of the clean image.
        score_after: The same of the rounded adversarial image.
        nonfinite: Number of gradient elements that were not finite, over all ticks.
        flags: Names of what was noticed, keys of ``EXPLANATIONS``.
        batch: Images in a gradient evaluation: the engine's, or fewer where memory did not suffice.
    """

    name: str
    id: int
    image: Tensor
    success: bool
    embedding: Tensor | None
    success_float: bool | None
    ticks: int
    linf: float
    l2: float
    score_before: float
    score_after: float
    nonfinite: int
    flags: tuple[str, ...]
    batch: int


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """A job in the engine, from its entry to its verdict: made ready, and what the attack has left of it.

    Attributes:
        job: As it came.
        image: The clean image on the device.
        parts: What each part of the goal compares it with.
        start: ``(N, 3)`` float64 of the clean images of a batch: the goal's score, whether it is reached, and whether
            with the attack's margin.
        place: The image's row there.
        trial: What the attack left in its slot; before that the clean image.
        ticks: The evaluations that it consumed; before that one, of the clean image.
        nonfinite: The gradient elements that were not finite.
        zero: Those that were zero.
    """

    job: Job
    image: Tensor
    parts: tuple[Carried, ...]
    start: HostCopy
    place: int
    trial: Tensor
    ticks: int = 1
    nonfinite: int = 0
    zero: int = 0

    @property
    def score_before(self) -> float:
        """The goal's score of the clean image."""
        return float(self.start.get()[self.place, 0])

    @property
    def met_at_start(self) -> bool:
        """Whether the clean image reaches the goal."""
        return bool(self.start.get()[self.place, 1])

    @property
    def reached(self) -> bool:
        """Whether it does so with the attack's margin."""
        return bool(self.start.get()[self.place, 2])


def check_id(name: str, value: int) -> None:
    """Refuse what cannot key the random draws of an image.

    Raises:
        ArgumentError: It is no integer in [0, 2**63).
    """
    if not is_int(value) or not 0 <= value < 1 << 63:
        raise ArgumentError(f"{name}: expected an integer in [0, 2**63), got {brief(value)}")


def same_kind(goal: Goal, other: Goal) -> bool:
    """Whether two goals differ in their rows only, so that one batch can hold both."""
    if type(goal) is not type(other) or goal.own_reference != other.own_reference:
        return False
    held = goal.held
    names = [f.name for f in fields(goal)]  # type: ignore[arg-type]
    return all(_alike(getattr(goal, n), getattr(other, n), rows=n in held) for n in names)


def _alike(a: object, b: object, *, rows: bool = False) -> bool:
    """Whether two fields are rows both, equal settings, or goals of one kind: a goal may hold others."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and (rows or a is b or _equal(a, b))
    if isinstance(a, Goal) and isinstance(b, Goal):
        return same_kind(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return a is b or bool(a == b)


def _equal(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b)


def notices(results: Iterable[tuple[str, tuple[str, ...]]], *, most: int = 5) -> tuple[str, ...]:
    """One sentence for each flag that occurred: how many images, which, and what it means.

    Args:
        results: Pairs of a name and its flags.
        most: How many names a sentence lists.
    """
    met: dict[str, list[str]] = {}
    every = list(results)
    for name, flags in every:
        for flag in flags:
            met.setdefault(flag, []).append(name)
    lines = []
    for flag, text in EXPLANATIONS.items():
        names = met.get(flag, [])
        if names:
            more = f" and {len(names) - most} more" if len(names) > most else ""
            count = "1 image" if len(names) == 1 else f"{len(names)} images"
            doubt = _DOUBT if flag == MET_AT_START and len(names) > 2 and len(every) < 2 * len(names) else ""
            lines.append(f"{count} {text}: {', '.join(names[:most])}{more}{doubt}")
    return tuple(lines)
