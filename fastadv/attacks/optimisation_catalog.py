"""The named attacks that L-BFGS-B solves: one recipe each, with the papers' parameters."""

from __future__ import annotations

from fastadv.attacks.budget import Box, Linf
from fastadv.attacks.lbfgs_penalty import LBFGS
from fastadv.attacks.lbfgsb import LBFGSB


def df(*, eps: float = 10 / 255, steps: int = 700) -> LBFGSB:
    """The deep-feature attack: ``min ||phi_k(x') - phi_k(guide)||^2`` in the ball, with ``MatchFeatures``.

    Source: Massoli et al., eq. 8; delta of 5, 7 or 10 grey levels, at most 700 iterations.
    """
    return LBFGSB(budget=Linf(eps), steps=steps, name="df")


def knn_df(*, eps: float = 5 / 255, steps: int = 700, margin: float = 0.01) -> LBFGSB:
    """The kNN-guided deep-feature attack, with ``GalleryClass``: it stops when the templates say what is wanted.

    **choice**: the wanted template must be nearer than the others by the margin, since the verdict is on 8 bits.

    Source: Massoli et al., section 5.3.1; delta of 5, 7 or 10 grey levels, at most 700 iterations.
    """
    return LBFGSB(budget=Linf(eps), steps=steps, stop_at_success=True, margin=margin, name="knn-df")


def lbfgs(*, eps: float | None = None, steps: int = 15) -> LBFGS:
    """L-BFGS of Szegedy et al.: the smallest perturbation, with ``ClassifyAs`` or ``Misclassify``.

    Args:
        eps: The most that a pixel may change; None for the pixel range alone.
        steps: The most iterations of each of the minimisations.
    """
    return LBFGS(budget=Box() if eps is None else Linf(eps), steps_each=steps, name="lbfgs")
