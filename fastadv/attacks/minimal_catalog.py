"""The named attacks that look for the smallest perturbation, and APGD: one recipe each, with the papers' parameters."""

from __future__ import annotations

from collections.abc import Callable

from fastadv.attacks.apgd import APGD
from fastadv.attacks.budget import L2, Linf
from fastadv.attacks.carlini_wagner import CarliniWagner
from fastadv.attacks.carlini_wagner_l0 import CarliniWagnerL0
from fastadv.attacks.carlini_wagner_linf import CarliniWagnerLinf
from fastadv.attacks.deepfool import DeepFool
from fastadv.attacks.minimal_eps import MinimalEps
from fastadv.attacks.minimal_fgsm import MinimalFGSM
from fastadv.attacks.noise import Noise
from fastadv.attacks.sign_gradient import SignGradient

_EPS = 8 / 255
# first and largest radius of a search, in the unit of the budget
_RADII = {"linf": (0.5 / 255, 128 / 255), "l2": (0.1, 51.2)}


def cw_l2(*, steps: int = 1000) -> CarliniWagner:
    """C&W-L2: the smallest ``||x' - x||_2``. Massoli et al., section 5: 5 runs of 1000 steps.

    Args:
        steps: The most steps of each run.
    """
    return CarliniWagner(inner_steps=steps)


def cw_linf(*, steps: int = 1000) -> CarliniWagnerLinf:
    """C&W-L-infinity: the smallest ``max |x' - x|``. Massoli et al., eq. 7.

    Args:
        steps: The most steps of each run.
    """
    return CarliniWagnerLinf(inner_steps=steps)


def cw_l0(*, steps: int = 1000) -> CarliniWagnerL0:
    """C&W-L0: the fewest pixels. Massoli et al., section 3.5.

    Args:
        steps: The most steps of each run.
    """
    return CarliniWagnerL0(inner_steps=steps)


def deepfool(*, steps: int = 50) -> DeepFool:
    """DeepFool in L2, overshoot 0.02 and at most 50 steps. Mehr and Schroeder, section III."""
    return DeepFool(steps=steps)


def deepfool_linf(*, steps: int = 50) -> DeepFool:
    """DeepFool in L-infinity, overshoot 0.02 and at most 50 steps."""
    return DeepFool(steps=steps, norm="linf", name="deepfool-linf")


def noise_uniform() -> Noise:
    """Uniform noise that grows until the decision flips. Mehr and Schroeder, section III."""
    return Noise(kind="uniform", name="noise-uniform")


def noise_gaussian() -> Noise:
    """Gaussian noise that grows until the decision flips. Mehr and Schroeder, section III."""
    return Noise(kind="gaussian", name="noise-gaussian")


def minimal_fgsm() -> MinimalFGSM:
    """FGSM with the smallest radius that flips the decision. Mehr and Schroeder, section III."""
    return MinimalFGSM()


def apgd(*, eps: float = _EPS, steps: int = 100) -> APGD:
    """APGD on the cross-entropy, or on the distance of embeddings. Croce and Hein 2020, algorithm 1."""
    return APGD(budget=Linf(eps), steps=steps)


def apgd_dlr(*, eps: float = _EPS, steps: int = 100) -> APGD:
    """APGD on the difference of logits ratio. Croce and Hein 2020, eq. 6 and 7."""
    return APGD(budget=Linf(eps), steps=steps, loss="dlr", name="apgd-dlr")


def apgd_l2(*, eps: float = 2.0, steps: int = 100) -> APGD:
    """APGD in an L2 ball."""
    return APGD(budget=L2(eps), steps=steps, name="apgd-l2")


def minimal(make: Callable[..., SignGradient]) -> Callable[..., MinimalEps]:
    """The recipe that looks for the smallest radius at which another one reaches its goal.

    The radius is doubled from 0.5/255 (L2: 0.1) until the attack succeeds, at most to 128/255 (51.2), and then found
    to 1/64 of itself by 6 bisections; the step size keeps its ratio to the radius.
    """

    def recipe(*, steps: int | None = None) -> MinimalEps:
        attack = make() if steps is None else make(steps=steps)
        first, largest = _RADII[attack.budget.norm]
        return MinimalEps(attack=attack, first=first, largest=largest)

    recipe.__name__ = recipe.__qualname__ = f"minimal_{make.__name__}"
    recipe.__doc__ = f"The smallest radius of {make.__name__}; ``steps`` are those of each run."
    return recipe
