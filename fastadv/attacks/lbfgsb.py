"""L-BFGS-B as a state machine: the optimiser of the deep-feature attack, and of its kNN-guided form."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastadv.attacks.attack import Evaluation
from fastadv.attacks.lbfgs_search import BoxAttack, SearchState
from fastadv.attacks.per_image import as_rows, put_where
from fastadv.core.fields import check_count, check_open

_GREY_LEVEL = 1 / 255


@dataclass(frozen=True, kw_only=True)
class LBFGSB(BoxAttack[SearchState]):
    """Limited-memory BFGS in the budget's box, each image with its own memory, line search and end.

    Ascends the goal's loss over ``{x' : |x' - x| <= eps, lo <= x' <= hi}`` (``BoxSearch`` says how). With
    ``MatchFeatures`` it is the deep-feature attack: the minimum of ``||phi_k(x') - phi_k(guide)||^2`` in that box;
    with ``GalleryClass`` and ``stop_at_success`` its kNN-guided form. The result is the trial that succeeded, else the
    last accepted point, which is also the best but for rounding.

    It moves gradually, and stays near its image: with ``stop_at_success`` most pixels end far inside the box
    (Massoli et al., figure 9).

    **choice**: the papers leave the solver's settings open, but for 700 iterations. The first step follows the gradient
    and has a length of its own, since the gradient's depends on the units of pixels and loss (``BoxSearch``). A network
    that changes from one evaluation to the next (DFANet) needs a longer one: a first step that gains less than such a
    change is refused.

    Attributes:
        budget: ``Linf(eps)``, or ``Box()`` for the pixel range alone.
        steps: The most iterations: accepted steps.
        evaluations: The most evaluations, or None: an iteration takes 12 at most, and seldom more than one.
        history: m, pairs remembered for an image; memory is 2 (m + 1) images for a slot.
        first_step: Length of the first step, as the root mean square over the free pixels, in pixels of [0, 1]; None
            takes a grey level, 1/255.
        tolerance: Ends where a step gains no more than this share of the loss.
        random_start: Start from a uniform point of the budget instead of the image itself.
        stop_at_success: Finish an image at the first trial that reaches its goal with ``margin``.
        margin: In the unit of the goal's score; only used to stop.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range, or the budget is no box.

    Source: Massoli et al., eq. 8 and section 5.3.1, after Sabour et al. 2016, "Adversarial manipulation of deep
        representations".
    """

    slots = SearchState
    steps: int = 700
    evaluations: int | None = None
    first_step: float | None = None
    random_start: bool = False
    stop_at_success: bool = False
    name: str = "l-bfgs-b"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        if self.evaluations is not None:
            check_count("evaluations", self.evaluations)
        check_open("first_step", self.first_step)

    def start(self, state: SearchState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; with ``random_start`` at a point drawn for (seed, id)."""
        super().start(state, slots, images, ids=ids, seed=seed)
        first = self.budget.random_start(images, seed=seed, ids=ids) if self.random_start else images
        state.trial[slots] = self.budget.clip(first, images)

    def tick(self, state: SearchState, evaluation: Evaluation) -> None:
        """Accept or refuse every trial, and try the next point."""
        search, trial = state.search, as_rows(state.trial)
        state.ticks.add_(state.active)
        gradient = state.finite_gradient(evaluation.gradient)
        _, over = search.advance(trial, evaluation.loss, gradient, radius=self._first_step, tolerance=self.tolerance)
        over |= search.steps >= self.steps
        if self.evaluations is not None:
            over |= state.ticks >= self.evaluations
        put_where(search.work, over, search.point)
        moving = state.active
        if self.stop_at_success:
            moving = state.active & ~evaluation.achieved
            over |= evaluation.achieved
        put_where(trial, moving, search.work)
        state.active.logical_and_(~over)

    @property
    def _first_step(self) -> float:
        return _GREY_LEVEL if self.first_step is None else self.first_step
