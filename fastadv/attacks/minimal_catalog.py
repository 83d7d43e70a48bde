"""The named attacks that look for the smallest perturbation, and APGD: one recipe each, with the papers' parameters."""

from __future__ import annotations

from collections.abc import Callable

from fastadv.attacks import sign_catalog
from fastadv.attacks.apgd import APGD
from fastadv.attacks.budget import L2, Linf
from fastadv.attacks.carlini_wagner import CarliniWagner
from fastadv.attacks.carlini_wagner_l0 import CarliniWagnerL0
from fastadv.attacks.carlini_wagner_linf import CarliniWagnerLinf
from fastadv.attacks.deepfool import DeepFool
from fastadv.attacks.minimal_eps import MinimalEps
from fastadv.attacks.minimal_fgsm import MinimalFGSM
from fastadv.attacks.noise import Noise
from fastadv.attacks.recipe import Recipe
from fastadv.attacks.registry import named
from fastadv.attacks.sign_gradient import SignGradient

_EPS = 8 / 255
# first and largest radius of a search, in the unit of the budget
_RADII = {"linf": (0.5 / 255, 128 / 255), "l2": (0.1, 51.2)}


@named("the smallest L2, by a penalty and Adam", level="logits", source="Massoli et al., eq. 6", norm="l2")
def cw_l2(*, steps: int = 1000) -> CarliniWagner:
    """C&W-L2: the smallest ``||x' - x||_2``. 5 runs of 1000 steps each.

    Args:
        steps: The most steps of each run.
    """
    return CarliniWagner(inner_steps=steps)


@named("the smallest L-infinity, by a penalty and Adam", level="logits", source="Massoli et al., eq. 7")
def cw_linf(*, steps: int = 1000) -> CarliniWagnerLinf:
    """C&W-L-infinity: the smallest ``max |x' - x|``.

    Args:
        steps: The most steps of each run.
    """
    return CarliniWagnerLinf(inner_steps=steps)


@named("the fewest pixels, by a penalty and Adam", level="logits", source="Massoli et al., section 3.5", norm="l0")
def cw_l0(*, steps: int = 1000) -> CarliniWagnerL0:
    """C&W-L0: the fewest pixels.

    Args:
        steps: The most steps of each run.
    """
    return CarliniWagnerL0(inner_steps=steps)


@named("steps to the nearest linearised border", level="logits", source="Mehr and Schroeder, section 4", norm="l2")
def deepfool(*, steps: int = 50) -> DeepFool:
    """DeepFool in L2, overshoot 0.02 and at most 50 steps."""
    return DeepFool(steps=steps)


@named("DeepFool with the smallest L-infinity", level="logits", source="Moosavi-Dezfooli et al. 2016")
def deepfool_linf(*, steps: int = 50) -> DeepFool:
    """DeepFool in L-infinity, overshoot 0.02 and at most 50 steps."""
    return DeepFool(steps=steps, norm="linf", name="deepfool-linf")


@named("FGSM with the smallest eps", level="logits", source="Mehr and Schroeder, section 4")
def minimal_fgsm() -> MinimalFGSM:
    """FGSM with the smallest radius that flips the decision."""
    return MinimalFGSM()


def _minimal(make: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """The recipe that looks for the smallest radius at which another one reaches its goal.

    The radius is doubled from 0.5/255 (L2: 0.1) until the attack succeeds, at most to 128/255 (51.2), and then found
    to 1/64 of itself by 6 bisections; the step size keeps its ratio to the radius.
    """

    def recipe(*, steps: int | None = None) -> MinimalEps:
        attack = (make() if steps is None else make(steps=steps)).attack
        assert isinstance(attack, SignGradient)
        first, largest = _RADII[attack.budget.norm]
        return MinimalEps(attack=attack, first=first, largest=largest)

    recipe.__name__ = recipe.__qualname__ = f"minimal_{make.__name__}"
    recipe.__doc__ = f"The smallest radius of {make.__name__}; ``steps`` are those of each run."
    what = f"{make.__name__.replace('_', '-')} with the smallest eps"
    return named(what, level="logits", source="Yang et al. 2020, section 4.1", norm=make().budget.norm)(recipe)


minimal_bim = _minimal(sign_catalog.bim)
minimal_pgd = _minimal(sign_catalog.pgd)
minimal_pgd_l2 = _minimal(sign_catalog.pgd_l2)
minimal_mi_fgsm = _minimal(sign_catalog.mi_fgsm)
minimal_mi_fgsm_l2 = _minimal(sign_catalog.mi_fgsm_l2)
minimal_fim = _minimal(sign_catalog.fim)
minimal_m_fim = _minimal(sign_catalog.m_fim)


@named("the least uniform noise", level="logits", source="Mehr and Schroeder, section 4", norm="l2", gradient=False)
def noise_uniform() -> Noise:
    """Uniform noise that grows until the decision flips."""
    return Noise(kind="uniform", name="noise-uniform")


@named("the least Gaussian noise", level="logits", source="Mehr and Schroeder, section 4", norm="l2", gradient=False)
def noise_gaussian() -> Noise:
    """Gaussian noise that grows until the decision flips."""
    return Noise(kind="gaussian", name="noise-gaussian")


@named("iterated signed steps whose size adapts", level="logits", source="Croce and Hein 2020, algorithm 1")
def apgd(*, eps: float = _EPS, steps: int = 100) -> APGD:
    """APGD on the cross-entropy, or on the distance of embeddings."""
    return APGD(budget=Linf(eps), steps=steps)


@named("APGD on the difference of logits ratio", level="logits", source="Croce and Hein 2020, eq. 6 and 7")
def apgd_dlr(*, eps: float = _EPS, steps: int = 100) -> APGD:
    """APGD on the difference of logits ratio."""
    return APGD(budget=Linf(eps), steps=steps, loss="dlr", name="apgd-dlr")


@named("APGD in L2", level="logits", source="Croce and Hein 2020, algorithm 1", norm="l2")
def apgd_l2(*, eps: float = 2.0, steps: int = 100) -> APGD:
    """APGD in an L2 ball."""
    return APGD(budget=L2(eps), steps=steps, name="apgd-l2")
