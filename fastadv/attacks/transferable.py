"""The recipes that are made to hold for other models too: FIM and its momentum form on composed surrogates."""

from __future__ import annotations

from collections.abc import Sequence

from fastadv.attacks.budget import Linf
from fastadv.attacks.recipe import Recipe
from fastadv.attacks.registry import named
from fastadv.attacks.sign_gradient import SignGradient
from fastadv.models import FaceModel
from fastadv.surrogates import (
    Ensemble,
    FeatureDropout,
    InputDiversity,
    SkipGradient,
    Surrogate,
    TranslationInvariant,
)

_LEVEL = 1 / 255
_EPS = 10 / 255
STEPS = 1500
"""N_max of Zhong and Deng, section V-C: what random surrogates need."""


def _moving(name: str, eps: float, steps: int, momentum: float | None = None) -> SignGradient:
    return SignGradient(budget=Linf(eps), steps=steps, step_size=_LEVEL, momentum=momentum, name=name)


def _ensemble(others: Sequence[FaceModel], weights: Sequence[float] | None) -> Ensemble:
    return Ensemble(others=tuple(others), weights=None if weights is None else tuple(weights))


@named("FIM on randomly transformed images", level="embedding", source="Zhong and Deng, section IV-C")
def di_fim(*, eps: float = _EPS, steps: int = STEPS) -> Recipe:
    """DI-FIM: FIM with a random transformation of the source image at every step."""
    return Recipe(attack=_moving("di-fim", eps, steps), surrogate=Surrogate(diversity=InputDiversity()))


@named(
    "M-FIM on randomly transformed images",
    level="embedding",
    source="Zhong and Deng, algorithm 2 without its masks",
)
def di_m_fim(*, eps: float = _EPS, steps: int = STEPS, momentum: float = 1.0) -> Recipe:
    """DI-M-FIM: M-FIM with a random transformation of the source image at every step."""
    return Recipe(attack=_moving("di-m-fim", eps, steps, momentum), surrogate=Surrogate(diversity=InputDiversity()))


@named("FIM along a smoothed gradient", level="embedding", source="Dong et al. 2019, eq. 8")
def ti_fim(*, eps: float = _EPS, steps: int = STEPS) -> Recipe:
    """TI-FIM: FIM along the gradient smoothed by a Gaussian kernel."""
    return Recipe(attack=_moving("ti-fim", eps, steps), surrogate=Surrogate(smoothing=TranslationInvariant()))


@named("DI-M-FIM along a smoothed gradient", level="embedding", source="Dong et al. 2019, eq. 8, with Xie et al. 2019")
def ti_di_m_fim(*, eps: float = _EPS, steps: int = STEPS, momentum: float = 1.0) -> Recipe:
    """TI-DI-M-FIM: DI-M-FIM along the smoothed gradient."""
    surrogate = Surrogate(diversity=InputDiversity(), smoothing=TranslationInvariant())
    return Recipe(attack=_moving("ti-di-m-fim", eps, steps, momentum), surrogate=surrogate)


@named(
    "FIM with damped residual branches",
    level="embedding",
    source="Zhong and Deng, section V-E, after Wu et al. 2020, eq. 7",
)
def s_fim(*, eps: float = _EPS, steps: int = STEPS, gamma: float = 0.3) -> Recipe:
    """S-FIM: FIM whose backward pass multiplies every residual branch's gradient by ``gamma``."""
    return Recipe(attack=_moving("s-fim", eps, steps), surrogate=Surrogate(skip=SkipGradient(gamma=gamma)))


@named("FIM on an ensemble", level="embedding", source="Zhong and Deng, algorithm 3")
def e_fim(
    *, others: Sequence[FaceModel], weights: Sequence[float] | None = None, eps: float = _EPS, steps: int = STEPS
) -> Recipe:
    """E-FIM: FIM along the weighted gradients of the attacked model and ``others``."""
    return Recipe(attack=_moving("e-fim", eps, steps), surrogate=Surrogate(ensemble=_ensemble(others, weights)))


@named("DI-M-FIM on an ensemble", level="embedding", source="Zhong and Deng, algorithm 3 without its masks")
def e_di_m_fim(
    *,
    others: Sequence[FaceModel],
    weights: Sequence[float] | None = None,
    eps: float = _EPS,
    steps: int = STEPS,
    momentum: float = 1.0,
) -> Recipe:
    """E-DI-M-FIM: DI-M-FIM along the weighted gradients of the attacked model and ``others``."""
    surrogate = Surrogate(diversity=InputDiversity(), ensemble=_ensemble(others, weights))
    return Recipe(attack=_moving("e-di-m-fim", eps, steps, momentum), surrogate=surrogate)


@named("FIM with masked convolutions", level="embedding", source="Zhong and Deng, eq. 11-12, section IV-C")
def dfanet_fim(*, eps: float = _EPS, steps: int = STEPS, rate: float | None = None) -> Recipe:
    """DFANet-FIM: FIM with a fresh mask on the output of every convolution at every step.

    ``rate`` None takes the paper's for the architecture.
    """
    return Recipe(attack=_moving("dfanet-fim", eps, steps), surrogate=Surrogate(dropout=FeatureDropout(rate=rate)))


@named("M-FIM with masked convolutions", level="embedding", source="Zhong and Deng, algorithm 1")
def dfanet_m_fim(*, eps: float = _EPS, steps: int = STEPS, rate: float | None = None, momentum: float = 1.0) -> Recipe:
    """DFANet-M-FIM: DFANet-FIM with momentum."""
    attack = _moving("dfanet-m-fim", eps, steps, momentum)
    return Recipe(attack=attack, surrogate=Surrogate(dropout=FeatureDropout(rate=rate)))


@named("DI-M-FIM with masked convolutions", level="embedding", source="Zhong and Deng, algorithm 2")
def dfanet_di_m_fim(
    *, eps: float = _EPS, steps: int = STEPS, rate: float | None = None, momentum: float = 1.0
) -> Recipe:
    """DFANet-DI-M-FIM: with a random transformation of the source image too."""
    surrogate = Surrogate(diversity=InputDiversity(), dropout=FeatureDropout(rate=rate))
    return Recipe(attack=_moving("dfanet-di-m-fim", eps, steps, momentum), surrogate=surrogate)


@named("DI-M-FIM with masked convolutions on an ensemble", level="embedding", source="Zhong and Deng, algorithm 3")
def dfanet_e_di_m_fim(
    *,
    others: Sequence[FaceModel],
    weights: Sequence[float] | None = None,
    eps: float = _EPS,
    steps: int = STEPS,
    rate: float | None = None,
    momentum: float = 1.0,
) -> Recipe:
    """DFANet-E-DI-M-FIM: on several models, each with its own masks."""
    surrogate = Surrogate(
        diversity=InputDiversity(), dropout=FeatureDropout(rate=rate), ensemble=_ensemble(others, weights)
    )
    return Recipe(attack=_moving("dfanet-e-di-m-fim", eps, steps, momentum), surrogate=surrogate)
