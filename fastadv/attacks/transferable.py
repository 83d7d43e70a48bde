"""The recipes that are made to hold for other models too: FIM and its momentum form on composed surrogates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
"""N_max of Zhong and Deng, section IV-C: what random surrogates need."""


def _on(name: str, eps: float, steps: int, momentum: float | None = None, **parts: Any) -> Recipe:
    """FIM, or with momentum M-FIM, on a surrogate of these parts."""
    attack = SignGradient(budget=Linf(eps), steps=steps, step_size=_LEVEL, momentum=momentum, name=name)
    return Recipe(attack, surrogate=Surrogate(**parts))


def _ensemble(others: Sequence[FaceModel], weights: Sequence[float] | None) -> Ensemble:
    return Ensemble(others=tuple(others), weights=None if weights is None else tuple(weights))


@named("FIM on randomly transformed images", level="embedding", source="Zhong and Deng, section IV-C")
def di_fim(*, eps: float = _EPS, steps: int = STEPS) -> Recipe:
    """DI-FIM: FIM with a random transformation of the source image at every step."""
    return _on("di-fim", eps, steps, diversity=InputDiversity())


@named(
    "M-FIM on randomly transformed images",
    level="embedding",
    source="Zhong and Deng, algorithm 2 without its masks",
)
def di_m_fim(*, eps: float = _EPS, steps: int = STEPS, momentum: float = 1.0) -> Recipe:
    """DI-M-FIM: M-FIM with a random transformation of the source image at every step."""
    return _on("di-m-fim", eps, steps, momentum, diversity=InputDiversity())


@named("FIM along a smoothed gradient", level="embedding", source="Dong et al. 2019, eq. 8")
def ti_fim(*, eps: float = _EPS, steps: int = STEPS) -> Recipe:
    """TI-FIM: FIM along the gradient smoothed by a Gaussian kernel."""
    return _on("ti-fim", eps, steps, smoothing=TranslationInvariant())


@named("DI-M-FIM along a smoothed gradient", level="embedding", source="Dong et al. 2019, eq. 8, with Xie et al. 2019")
def ti_di_m_fim(*, eps: float = _EPS, steps: int = STEPS, momentum: float = 1.0) -> Recipe:
    """TI-DI-M-FIM: DI-M-FIM along the smoothed gradient."""
    parts = {"diversity": InputDiversity(), "smoothing": TranslationInvariant()}
    return _on("ti-di-m-fim", eps, steps, momentum, **parts)


@named(
    "FIM with damped residual branches",
    level="embedding",
    source="Zhong and Deng, section IV-F, after Wu et al. 2020, eq. 7",
)
def s_fim(*, eps: float = _EPS, steps: int = STEPS, gamma: float = 0.3) -> Recipe:
    """S-FIM: FIM whose backward pass multiplies every residual branch's gradient by ``gamma``."""
    return _on("s-fim", eps, steps, skip=SkipGradient(gamma=gamma))


@named("FIM on an ensemble", level="embedding", source="Zhong and Deng, algorithm 3")
def e_fim(
    *, others: Sequence[FaceModel], weights: Sequence[float] | None = None, eps: float = _EPS, steps: int = STEPS
) -> Recipe:
    """E-FIM: FIM along the weighted gradients of the attacked model and ``others``."""
    return _on("e-fim", eps, steps, ensemble=_ensemble(others, weights))


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
    ensemble = _ensemble(others, weights)
    return _on("e-di-m-fim", eps, steps, momentum, diversity=InputDiversity(), ensemble=ensemble)


@named("FIM with masked convolutions", level="embedding", source="Zhong and Deng, eq. 11-12, section III-B")
def dfanet_fim(*, eps: float = _EPS, steps: int = STEPS, rate: float | None = None) -> Recipe:
    """DFANet-FIM: FIM with a fresh mask on the output of every convolution at every step.

    ``rate`` None takes the paper's for the architecture.
    """
    return _on("dfanet-fim", eps, steps, dropout=FeatureDropout(rate=rate))


@named("M-FIM with masked convolutions", level="embedding", source="Zhong and Deng, algorithm 1")
def dfanet_m_fim(*, eps: float = _EPS, steps: int = STEPS, rate: float | None = None, momentum: float = 1.0) -> Recipe:
    """DFANet-M-FIM: DFANet-FIM with momentum."""
    return _on("dfanet-m-fim", eps, steps, momentum, dropout=FeatureDropout(rate=rate))


@named("DI-M-FIM with masked convolutions", level="embedding", source="Zhong and Deng, algorithm 2")
def dfanet_di_m_fim(
    *, eps: float = _EPS, steps: int = STEPS, rate: float | None = None, momentum: float = 1.0
) -> Recipe:
    """DFANet-DI-M-FIM: with a random transformation of the source image too."""
    dropout = FeatureDropout(rate=rate)
    return _on("dfanet-di-m-fim", eps, steps, momentum, diversity=InputDiversity(), dropout=dropout)


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
    parts = {"diversity": InputDiversity(), "dropout": FeatureDropout(rate=rate)}
    return _on("dfanet-e-di-m-fim", eps, steps, momentum, **parts, ensemble=_ensemble(others, weights))
