"""The named attacks of the sign-gradient family: one recipe each, with the papers' parameters.

A name says how to move; what to move towards is the goal. FGSM and FFM move alike: the first is run with a goal
on logits, the second with one on embeddings, and ``level`` says which the paper means.
"""

from __future__ import annotations

import math

from fastadv.attacks.budget import L2, Linf
from fastadv.attacks.carlini_wagner_ball import CarliniWagnerBall
from fastadv.attacks.registry import named
from fastadv.attacks.sign_gradient import SignGradient
from fastadv.core.fields import check_count, check_number

_LEVEL = 1 / 255
_EPS = 8 / 255


def fim_steps(eps: float) -> int:
    """``min(e + 4, 1.25 e)`` for ``e`` grey levels, at least 1: 10 steps for 8/255, 13 for 10/255.

    Source: Zhong and Deng, below eq. 10 (after Kurakin et al.); rounded half up, so that 12.5 gives their 13.
    """
    check_number("eps", eps, positive=True)
    levels = eps * 255
    return max(1, math.floor(min(levels + 4, 1.25 * levels) + 0.5))


def _per_step(eps: float, steps: int, factor: float = 1.0) -> float:
    """``factor * eps / steps``."""
    check_number("eps", eps, positive=True)
    check_count("steps", steps)
    return factor * eps / steps


def _alpha(step_size: float | None, eps: float, steps: int) -> float:
    """The step size that is given, or the choice where a paper leaves it open: ``2.5 * eps / steps``."""
    return _per_step(eps, steps, 2.5) if step_size is None else step_size


def _one_step(name: str, eps: float) -> SignGradient:
    return SignGradient(budget=Linf(eps), steps=1, step_size=eps, name=name)


def _unit_steps(name: str, eps: float, steps: int | None, momentum: float | None = None) -> SignGradient:
    return SignGradient(
        budget=Linf(eps),
        steps=fim_steps(eps) if steps is None else steps,
        step_size=_LEVEL,
        momentum=momentum,
        name=name,
    )


@named("one signed step", level="logits", source="Massoli et al., eq. 2")
def fgsm(*, eps: float = _EPS) -> SignGradient:
    """FGSM: ``clip(x + eps * sign grad J)``."""
    return _one_step("fgsm", eps)


@named("one signed step to a target class", level="logits", source="Zhong and Deng, eq. 1")
def ftgsm(*, eps: float = _EPS) -> SignGradient:
    """FTGSM: FGSM with a target class."""
    return _one_step("ftgsm", eps)


@named("iterated signed steps", level="logits", source="Massoli et al., eq. 3")
def bim(*, eps: float = _EPS, steps: int = 30, step_size: float | None = None) -> SignGradient:
    """BIM: ``clip(x + alpha * sign grad J)``, repeated. The paper has 30 or 50 steps.

    The paper leaves alpha open; the choice here is ``2.5 * eps / steps``, which can cross the ball and return.
    """
    return SignGradient(budget=Linf(eps), steps=steps, step_size=_alpha(step_size, eps, steps), name="bim")


@named("iterated signed steps to a target class, 1/255 each", level="logits", source="Zhong and Deng, eq. 2")
def itgsm(*, eps: float = _EPS, steps: int | None = None) -> SignGradient:
    """ITGSM: BIM with a target class, alpha = 1/255 and ``fim_steps`` steps."""
    return _unit_steps("itgsm", eps, steps)


@named("iterated signed steps from a random start", level="logits", source='"Adversarial attack as a defence", 2021')
def pgd(*, eps: float = _EPS, steps: int = 40, step_size: float | None = None) -> SignGradient:
    """PGD: BIM from a uniform random start in the ball, 40 steps.

    The paper leaves alpha open; the choice here is ``2.5 * eps / steps``.
    """
    alpha = _alpha(step_size, eps, steps)
    return SignGradient(budget=Linf(eps), steps=steps, step_size=alpha, random_start=True, name="pgd")


@named(
    "iterated signed steps on the C&W margin of the softmax",
    level="logits",
    source='"Adversarial attack as a defence", 2021, table 1',
)
def pgd_cw(*, eps: float = _EPS, steps: int = 40, step_size: float | None = None) -> CarliniWagnerBall:
    """C&W inside a ball: PGD on the margin of the softmax, until the goal is reached, at most 40 steps.

    The paper has an eps of 2, 4 or 8 grey levels, and leaves alpha open; the choice here is ``2.5 * eps / steps``.
    """
    alpha = _alpha(step_size, eps, steps)
    return CarliniWagnerBall(budget=Linf(eps), steps=steps, step_size=alpha, random_start=True, name="pgd-cw")


@named("iterated L2 steps from a random start", level="logits", source="Madry et al. 2018", norm="l2")
def pgd_l2(*, eps: float = 2.0, steps: int = 40, step_size: float | None = None) -> SignGradient:
    """PGD in an L2 ball of radius ``eps``: normalised gradient steps from a uniform random start."""
    alpha = _alpha(step_size, eps, steps)
    return SignGradient(budget=L2(eps), steps=steps, step_size=alpha, random_start=True, name="pgd-l2")


@named(
    "iterated signed steps with momentum",
    level="logits",
    source="Massoli et al., eq. 4; the L-infinity step of Zhong and Deng with mu = 1",
)
def mi_fgsm(*, eps: float = _EPS, steps: int = 10, momentum: float = 1.0) -> SignGradient:
    """MI-FGSM, sign form: ``g <- mu g + grad / ||grad||_1``, ``x <- clip(x + (eps / steps) sign g)``."""
    return SignGradient(
        budget=Linf(eps), steps=steps, step_size=_per_step(eps, steps), momentum=momentum, name="mi-fgsm"
    )


@named("iterated L2 steps with momentum", level="logits", source="Massoli et al., eq. 4-5", norm="l2")
def mi_fgsm_l2(*, eps: float = 2.0, steps: int = 10, momentum: float = 1.0) -> SignGradient:
    """MI-FGSM, L2 form: ``x <- x + (eps / steps) * g / ||g||_2``."""
    return SignGradient(
        budget=L2(eps), steps=steps, step_size=_per_step(eps, steps), momentum=momentum, name="mi-fgsm-l2"
    )


@named("one signed step on the embedding distance", level="embedding", source="Zhong and Deng, eq. 9")
def ffm(*, eps: float = _EPS) -> SignGradient:
    """FFM, the feature fast method: one step on the embedding distance."""
    return _one_step("ffm", eps)


@named(
    "iterated signed steps on the embedding distance, 1/255 each",
    level="embedding",
    source="Zhong and Deng, eq. 10",
)
def fim(*, eps: float = _EPS, steps: int | None = None) -> SignGradient:
    """FIM, the feature iterative method: alpha = 1/255, ``fim_steps`` steps."""
    return _unit_steps("fim", eps, steps)


@named("FIM with momentum", level="embedding", source="Zhong and Deng, algorithm 1 without its masks")
def m_fim(*, eps: float = _EPS, steps: int | None = None, momentum: float = 1.0) -> SignGradient:
    """M-FIM: FIM with momentum, ``g <- mu g + grad / ||grad||_1``, mu = 1."""
    return _unit_steps("m-fim", eps, steps, momentum)
