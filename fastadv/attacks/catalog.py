"""The named attacks of the papers: a state machine with its parameters each, or a recipe on a surrogate.

A name says how to move; what to move towards is the goal. FGSM and FFM move alike: the first is run with a goal
on logits, the second with one on embeddings, and ``CATALOG`` says which the paper means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastadv.attacks import minimal_catalog, optimisation_catalog, transferable
from fastadv.attacks.attack import Attack
from fastadv.attacks.budget import L2, Linf
from fastadv.attacks.fields import check_count, check_number
from fastadv.attacks.recipe import Recipe
from fastadv.attacks.sign_gradient import SignGradient
from fastadv.core.errors import ArgumentError
from fastadv.models import FaceModel

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


def fgsm(*, eps: float = _EPS) -> SignGradient:
    """FGSM: ``clip(x + eps * sign grad J)``. Massoli et al., eq. 2."""
    return _one_step("fgsm", eps)


def ftgsm(*, eps: float = _EPS) -> SignGradient:
    """FTGSM: FGSM with a target class. Zhong and Deng, section III."""
    return _one_step("ftgsm", eps)


def bim(*, eps: float = _EPS, steps: int = 30, step_size: float | None = None) -> SignGradient:
    """BIM: ``clip(x + alpha * sign grad J)``, repeated. Massoli et al., eq. 3, with 30 or 50 steps.

    The paper leaves alpha open; the choice here is ``2.5 * eps / steps``, which can cross the ball and return.
    """
    return SignGradient(budget=Linf(eps), steps=steps, step_size=_alpha(step_size, eps, steps), name="bim")


def itgsm(*, eps: float = _EPS, steps: int | None = None) -> SignGradient:
    """ITGSM: BIM with a target class, alpha = 1/255 and ``fim_steps`` steps. Zhong and Deng, section III."""
    return _unit_steps("itgsm", eps, steps)


def pgd(*, eps: float = _EPS, steps: int = 40, step_size: float | None = None) -> SignGradient:
    """PGD: BIM from a uniform random start in the ball, 40 steps ("Adversarial attack as a defence", 2021).

    The paper leaves alpha open; the choice here is ``2.5 * eps / steps``.
    """
    alpha = _alpha(step_size, eps, steps)
    return SignGradient(budget=Linf(eps), steps=steps, step_size=alpha, random_start=True, name="pgd")


def pgd_l2(*, eps: float = 2.0, steps: int = 40, step_size: float | None = None) -> SignGradient:
    """PGD in an L2 ball of radius ``eps``: normalised gradient steps from a uniform random start."""
    alpha = _alpha(step_size, eps, steps)
    return SignGradient(budget=L2(eps), steps=steps, step_size=alpha, random_start=True, name="pgd-l2")


def mi_fgsm(*, eps: float = _EPS, steps: int = 10, momentum: float = 1.0) -> SignGradient:
    """MI-FGSM, sign form: ``g <- mu g + grad / ||grad||_1``, ``x <- clip(x + (eps / steps) sign g)``.

    Source: Massoli et al., eq. 4; the L-infinity step of Zhong and Deng with mu = 1.
    """
    return SignGradient(
        budget=Linf(eps), steps=steps, step_size=_per_step(eps, steps), momentum=momentum, name="mi-fgsm"
    )


def mi_fgsm_l2(*, eps: float = 2.0, steps: int = 10, momentum: float = 1.0) -> SignGradient:
    """MI-FGSM, L2 form: ``x <- x + (eps / steps) * g / ||g||_2``. Massoli et al., eq. 4-5."""
    return SignGradient(
        budget=L2(eps), steps=steps, step_size=_per_step(eps, steps), momentum=momentum, name="mi-fgsm-l2"
    )


def ffm(*, eps: float = _EPS) -> SignGradient:
    """FFM, the feature fast method: one step on the embedding distance. Zhong and Deng, eq. 9."""
    return _one_step("ffm", eps)


def fim(*, eps: float = _EPS, steps: int | None = None) -> SignGradient:
    """FIM, the feature iterative method: alpha = 1/255, ``fim_steps`` steps. Zhong and Deng, eq. 10."""
    return _unit_steps("fim", eps, steps)


def m_fim(*, eps: float = _EPS, steps: int | None = None, momentum: float = 1.0) -> SignGradient:
    """M-FIM: FIM with momentum, ``g <- mu g + grad / ||grad||_1``, mu = 1.

    Source: Zhong and Deng, algorithm 1 without its masks.
    """
    return _unit_steps("m-fim", eps, steps, momentum)


minimal_bim = minimal_catalog.minimal(bim)
minimal_pgd = minimal_catalog.minimal(pgd)
minimal_pgd_l2 = minimal_catalog.minimal(pgd_l2)
minimal_mi_fgsm = minimal_catalog.minimal(mi_fgsm)
minimal_mi_fgsm_l2 = minimal_catalog.minimal(mi_fgsm_l2)
minimal_fim = minimal_catalog.minimal(fim)
minimal_m_fim = minimal_catalog.minimal(m_fim)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named attack.

    Attributes:
        make: The recipe; keyword arguments ``eps`` and, for the iterative ones, ``steps``.
        level: What the paper differentiates: ``"logits"``, ``"embedding"``, ``"features"`` (of any layer) or
            ``"gallery"`` (the templates of known people).
        steps: Whether the recipe takes a number of steps.
        norm: The norm that eps is measured in; of an attack without eps, that which it makes small.
        what: One line for help texts.
        eps: Whether the recipe takes a radius; an attack that looks for the smallest perturbation does not.
        masks: Whether the recipe takes a drop ``rate``.
        ensemble: Whether the recipe takes ``others`` and their ``weights``.
        noise: Whether its direction is drawn and follows no gradient.
    """

    make: Callable[..., Attack[Any] | Recipe]
    level: str
    steps: bool
    norm: str
    what: str
    eps: bool = True
    masks: bool = False
    ensemble: bool = False
    noise: bool = False

    @property
    def family(self) -> str:
        """``"one-step"``, ``"iterative"`` or ``"noise"``."""
        return "noise" if self.noise else "iterative" if self.steps else "one-step"


def _entry(
    make: Callable[..., Attack[Any]],
    level: str,
    what: str,
    *,
    steps: bool = True,
    norm: str = "linf",
    eps: bool = True,
) -> Entry:
    return Entry(make=make, level=level, steps=steps, norm=norm, what=what, eps=eps)


def _smallest(make: Callable[..., Attack[Any]], what: str, *, steps: bool = True, norm: str = "linf") -> Entry:
    return _entry(make, "logits", what, steps=steps, norm=norm, eps=False)


def _noise(make: Callable[..., Attack[Any]], what: str) -> Entry:
    return Entry(make=make, level="logits", steps=False, norm="l2", what=what, eps=False, noise=True)


def _transfer(make: Callable[..., Recipe], what: str, *, masks: bool = False, ensemble: bool = False) -> Entry:
    return Entry(make=make, level="embedding", steps=True, norm="linf", what=what, masks=masks, ensemble=ensemble)


CATALOG: Mapping[str, Entry] = MappingProxyType(
    {
        "fgsm": _entry(fgsm, "logits", "one signed step", steps=False),
        "ftgsm": _entry(ftgsm, "logits", "one signed step to a target class", steps=False),
        "bim": _entry(bim, "logits", "iterated signed steps"),
        "itgsm": _entry(itgsm, "logits", "iterated signed steps to a target class, 1/255 each"),
        "pgd": _entry(pgd, "logits", "iterated signed steps from a random start"),
        "pgd-l2": _entry(pgd_l2, "logits", "iterated L2 steps from a random start", norm="l2"),
        "mi-fgsm": _entry(mi_fgsm, "logits", "iterated signed steps with momentum"),
        "mi-fgsm-l2": _entry(mi_fgsm_l2, "logits", "iterated L2 steps with momentum", norm="l2"),
        "ffm": _entry(ffm, "embedding", "one signed step on the embedding distance", steps=False),
        "fim": _entry(fim, "embedding", "iterated signed steps on the embedding distance, 1/255 each"),
        "m-fim": _entry(m_fim, "embedding", "FIM with momentum"),
        "di-fim": _transfer(transferable.di_fim, "FIM on randomly transformed images"),
        "di-m-fim": _transfer(transferable.di_m_fim, "M-FIM on randomly transformed images"),
        "ti-fim": _transfer(transferable.ti_fim, "FIM along a smoothed gradient"),
        "ti-di-m-fim": _transfer(transferable.ti_di_m_fim, "DI-M-FIM along a smoothed gradient"),
        "s-fim": _transfer(transferable.s_fim, "FIM with damped residual branches"),
        "e-fim": _transfer(transferable.e_fim, "FIM on an ensemble", ensemble=True),
        "e-di-m-fim": _transfer(transferable.e_di_m_fim, "DI-M-FIM on an ensemble", ensemble=True),
        "dfanet-fim": _transfer(transferable.dfanet_fim, "FIM with masked convolutions", masks=True),
        "dfanet-m-fim": _transfer(transferable.dfanet_m_fim, "M-FIM with masked convolutions", masks=True),
        "dfanet-di-m-fim": _transfer(transferable.dfanet_di_m_fim, "DI-M-FIM with masked convolutions", masks=True),
        "dfanet-e-di-m-fim": _transfer(
            transferable.dfanet_e_di_m_fim,
            "DI-M-FIM with masked convolutions on an ensemble",
            masks=True,
            ensemble=True,
        ),
        "df": _entry(optimisation_catalog.df, "features", "a guide's deep features, by L-BFGS-B"),
        "knn-df": _entry(optimisation_catalog.knn_df, "gallery", "DF until the nearest templates say what is wanted"),
        "lbfgs": _entry(optimisation_catalog.lbfgs, "logits", "the smallest perturbation, by a penalty and L-BFGS-B"),
        "cw-l2": _smallest(minimal_catalog.cw_l2, "the smallest L2, by a penalty and Adam", norm="l2"),
        "cw-linf": _smallest(minimal_catalog.cw_linf, "the smallest L-infinity, by a penalty and Adam"),
        "cw-l0": _smallest(minimal_catalog.cw_l0, "the fewest pixels, by a penalty and Adam", norm="l0"),
        "deepfool": _smallest(minimal_catalog.deepfool, "steps to the nearest linearised border", norm="l2"),
        "deepfool-linf": _smallest(minimal_catalog.deepfool_linf, "DeepFool with the smallest L-infinity"),
        "minimal-fgsm": _smallest(minimal_catalog.minimal_fgsm, "FGSM with the smallest eps", steps=False),
        **{
            f"minimal-{name}": _smallest(make, f"{name} with the smallest eps", norm=norm)
            for name, make, norm in (
                ("bim", minimal_bim, "linf"),
                ("pgd", minimal_pgd, "linf"),
                ("pgd-l2", minimal_pgd_l2, "l2"),
                ("mi-fgsm", minimal_mi_fgsm, "linf"),
                ("mi-fgsm-l2", minimal_mi_fgsm_l2, "l2"),
                ("fim", minimal_fim, "linf"),
                ("m-fim", minimal_m_fim, "linf"),
            )
        },
        "noise-uniform": _noise(minimal_catalog.noise_uniform, "the least uniform noise"),
        "noise-gaussian": _noise(minimal_catalog.noise_gaussian, "the least Gaussian noise"),
        "apgd": _entry(minimal_catalog.apgd, "logits", "iterated signed steps whose size adapts"),
        "apgd-dlr": _entry(minimal_catalog.apgd_dlr, "logits", "APGD on the difference of logits ratio"),
        "apgd-l2": _entry(minimal_catalog.apgd_l2, "logits", "APGD in L2", norm="l2"),
    }
)


def by_name(
    name: str,
    *,
    eps: float | None = None,
    steps: int | None = None,
    rate: float | None = None,
    others: Sequence[FaceModel] = (),
    weights: Sequence[float] | None = None,
) -> Attack[Any] | Recipe:
    """The named attack with its paper's parameters, or the given ones.

    Args:
        name: One of ``CATALOG``.
        eps: Radius of the budget, pixels in [0, 1]; not of an attack that looks for the smallest perturbation.
        steps: Of an iterative attack.
        rate: The drop rate of a DFANet recipe.
        others: Further models of an ensemble.
        weights: Of the ensemble, the attacked model's first.

    Raises:
        ValueError: The name is not known, or something is given that the attack does not take, or is missing.
    """
    if not isinstance(name, str) or name not in CATALOG:
        raise ArgumentError(f"attack must be one of {', '.join(CATALOG)}, got {name!r}")
    entry = CATALOG[name]
    if eps is not None and not entry.eps:
        raise ArgumentError(f"{name} looks for the smallest perturbation and takes no eps, got eps={eps}")
    if steps is not None and not entry.steps:
        one = "is a one-step attack" if entry.eps else "has no number of steps to choose"
        raise ArgumentError(f"{name} {one} and takes no steps, got steps={steps}")
    if rate is not None and not entry.masks:
        raise ArgumentError(f"{name} has no masks and takes no drop rate, got rate={rate}")
    if bool(others) != entry.ensemble:
        wanted = "needs at least one other model" if entry.ensemble else "works on one model"
        raise ArgumentError(f"{name} {wanted}, got others={[m.name for m in others]}")
    if weights is not None and not entry.ensemble:
        raise ArgumentError(f"weights: expected an attack on several models, got {list(weights)} for {name}")
    given: dict[str, Any] = {"eps": eps, "steps": steps, "rate": rate, "weights": weights}
    given = {key: value for key, value in given.items() if value is not None}
    return entry.make(**given, others=others) if entry.ensemble else entry.make(**given)
