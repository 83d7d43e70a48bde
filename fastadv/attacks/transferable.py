"""The recipes that are made to hold for other models too: FIM and its momentum form on composed surrogates."""

from __future__ import annotations

from collections.abc import Sequence

from fastadv.attacks.budget import Linf
from fastadv.attacks.recipe import Recipe
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


def di_fim(*, eps: float = _EPS, steps: int = STEPS) -> Recipe:
    """DI-FIM: FIM with a random transformation of the source image at every step. Zhong and Deng, section IV-C."""
    return Recipe(attack=_moving("di-fim", eps, steps), surrogate=Surrogate(diversity=InputDiversity()))


def di_m_fim(*, eps: float = _EPS, steps: int = STEPS, momentum: float = 1.0) -> Recipe:
    """DI-M-FIM: M-FIM with a random transformation of the source image at every step.

    Source: Zhong and Deng, algorithm 2 without its masks.
    """
    return Recipe(attack=_moving("di-m-fim", eps, steps, momentum), surrogate=Surrogate(diversity=InputDiversity()))


def ti_fim(*, eps: float = _EPS, steps: int = STEPS) -> Recipe:
    """TI-FIM: FIM along the gradient smoothed by a Gaussian kernel. Dong et al. 2019, eq. 8."""
    return Recipe(attack=_moving("ti-fim", eps, steps), surrogate=Surrogate(smoothing=TranslationInvariant()))


def ti_di_m_fim(*, eps: float = _EPS, steps: int = STEPS, momentum: float = 1.0) -> Recipe:
    """TI-DI-M-FIM: DI-M-FIM along the smoothed gradient. Dong et al. 2019, eq. 8, with Xie et al. 2019."""
    surrogate = Surrogate(diversity=InputDiversity(), smoothing=TranslationInvariant())
    return Recipe(attack=_moving("ti-di-m-fim", eps, steps, momentum), surrogate=surrogate)


def s_fim(*, eps: float = _EPS, steps: int = STEPS, gamma: float = 0.3) -> Recipe:
    """S-FIM: FIM whose backward pass multiplies every residual branch's gradient by ``gamma``.

    Source: Zhong and Deng, section V-E, after Wu et al. 2020, eq. 7.
    """
    return Recipe(attack=_moving("s-fim", eps, steps), surrogate=Surrogate(skip=SkipGradient(gamma=gamma)))


def e_fim(
    *, others: Sequence[FaceModel], weights: Sequence[float] | None = None, eps: float = _EPS, steps: int = STEPS
) -> Recipe:
    """E-FIM: FIM along the weighted gradients of the attacked model and ``others``. Zhong and Deng, algorithm 3."""
    return Recipe(attack=_moving("e-fim", eps, steps), surrogate=Surrogate(ensemble=_ensemble(others, weights)))


def e_di_m_fim(
    *,
    others: Sequence[FaceModel],
    weights: Sequence[float] | None = None,
    eps: float = _EPS,
    steps: int = STEPS,
    momentum: float = 1.0,
) -> Recipe:
    """E-DI-M-FIM: DI-M-FIM along the weighted gradients of the attacked model and ``others``.

    Source: Zhong and Deng, algorithm 3 without its masks.
    """
    surrogate = Surrogate(diversity=InputDiversity(), ensemble=_ensemble(others, weights))
    return Recipe(attack=_moving("e-di-m-fim", eps, steps, momentum), surrogate=surrogate)


def dfanet_fim(*, eps: float = _EPS, steps: int = STEPS, rate: float | None = None) -> Recipe:
    """DFANet-FIM: FIM with a fresh mask on the output of every convolution at every step.

    ``rate`` None takes the paper's for the architecture. Source: Zhong and Deng, eq. 11-12, section IV-C.
    """
    return Recipe(attack=_moving("dfanet-fim", eps, steps), surrogate=Surrogate(dropout=FeatureDropout(rate=rate)))


def dfanet_m_fim(*, eps: float = _EPS, steps: int = STEPS, rate: float | None = None, momentum: float = 1.0) -> Recipe:
    """DFANet-M-FIM: DFANet-FIM with momentum. Zhong and Deng, algorithm 1."""
    attack = _moving("dfanet-m-fim", eps, steps, momentum)
    return Recipe(attack=attack, surrogate=Surrogate(dropout=FeatureDropout(rate=rate)))


def dfanet_di_m_fim(
    *, eps: float = _EPS, steps: int = STEPS, rate: float | None = None, momentum: float = 1.0
) -> Recipe:
    """DFANet-DI-M-FIM: with a random transformation of the source image too. Zhong and Deng, algorithm 2."""
    surrogate = Surrogate(diversity=InputDiversity(), dropout=FeatureDropout(rate=rate))
    return Recipe(attack=_moving("dfanet-di-m-fim", eps, steps, momentum), surrogate=surrogate)


def dfanet_e_di_m_fim(
    *,
    others: Sequence[FaceModel],
    weights: Sequence[float] | None = None,
    eps: float = _EPS,
    steps: int = STEPS,
    rate: float | None = None,
    momentum: float = 1.0,
) -> Recipe:
    """DFANet-E-DI-M-FIM: on several models, each with its own masks. Zhong and Deng, algorithm 3."""
    surrogate = Surrogate(
        diversity=InputDiversity(), dropout=FeatureDropout(rate=rate), ensemble=_ensemble(others, weights)
    )
    return Recipe(attack=_moving("dfanet-e-di-m-fim", eps, steps, momentum), surrogate=surrogate)
