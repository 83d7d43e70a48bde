"""The named attacks that L-BFGS-B solves: one recipe each, with the papers' parameters."""

from __future__ import annotations

from fastadv.attacks.budget import Box, Linf
from fastadv.attacks.lbfgs_penalty import LBFGS
from fastadv.attacks.lbfgsb import LBFGSB
from fastadv.attacks.registry import named


@named("a guide's deep features, by L-BFGS-B", level="features", source="Massoli et al., eq. 8")
def df(*, eps: float = 10 / 255, steps: int = 700) -> LBFGSB:
    """The deep-feature attack: ``min ||phi_k(x') - phi_k(guide)||^2`` in the ball, with ``MatchFeatures``.

    The paper has a delta of 5, 7 or 10 grey levels, and at most 700 iterations.
    """
    return LBFGSB(budget=Linf(eps), steps=steps, name="df")


@named("DF until the nearest templates say what is wanted", level="gallery", source="Massoli et al., section 5.3.1")
def knn_df(*, eps: float = 5 / 255, steps: int = 700, margin: float = 0.01) -> LBFGSB:
    """The kNN-guided deep-feature attack, with ``GalleryClass``: it stops when the templates say what is wanted.

    **choice**: the wanted template must be nearer than the others by the margin, since the verdict is on 8 bits.

    The paper has a delta of 5, 7 or 10 grey levels, and at most 700 iterations.
    """
    return LBFGSB(budget=Linf(eps), steps=steps, stop_at_success=True, margin=margin, name="knn-df")


@named(
    "the smallest perturbation, by a penalty and L-BFGS-B",
    level="logits",
    source="Szegedy et al. 2014, section 4.1; Massoli et al., eq. 1",
)
def lbfgs(*, eps: float | None = None, steps: int = 15) -> LBFGS:
    """L-BFGS of Szegedy et al.: the smallest perturbation, with ``ClassifyAs`` or ``Misclassify``.

    Args:
        eps: The most that a pixel may change; None for the pixel range alone.
        steps: The most iterations of each of the minimisations.
    """
    return LBFGS(budget=Box() if eps is None else Linf(eps), steps_each=steps, name="lbfgs")
