"""Signs that a defence hides its gradients instead of being robust: what to doubt in an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.attacks.spec import ITERATIVE, NOISE, ONE_STEP
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.models import FaceModel
from fastadv.models.checks import check_images
from fastadv.recognition import Success, count_success, paired_difference

FAMILIES = (ONE_STEP, ITERATIVE, NOISE)

_SATURATED = 0.98  # where more cannot be asked of a larger radius
_FEW = 0.05  # share of images without a usable gradient that is worth a word
_FACTOR = 1e3  # between the gradients of the bare and the defended model


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One attack on one defended model, on the same images in the same order as the others.

    Attributes:
        attack: Its name, without the radius.
        family: ``"one-step"``, ``"iterative"`` or ``"noise"``.
        eps: The radius, or None where the attack looks for the smallest perturbation.
        threat: The threat model's name.
        white_box: Whether the attacker knows the defence.
        hits: ``(N,)`` bool, which images succeed against the defended model.
        met: ``(N,)`` bool, which clean images meet the goal there already; None: none does.
        l2: ``(N,)`` the L2 norms of the perturbations.
        zero: Share of the images whose gradient was zero at every step.
        nonfinite: Share of the images that met gradients which are not finite.
        watched: Whether ``hits`` ask for more, to pass a detector too; not compared with those that do not.

    Raises:
        ValueError: A field is out of range.
    """

    attack: str
    family: str
    eps: float | None
    threat: str
    white_box: bool
    hits: NDArray[np.bool_]
    l2: NDArray[np.float64]
    zero: float = 0.0
    nonfinite: float = 0.0
    watched: bool = False
    met: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        check_one_of("family", self.family, FAMILIES)
        if self.hits.ndim != 1 or self.hits.shape != self.l2.shape or not len(self.hits):
            raise ArgumentError(f"hits, l2: expected (N,) with N >= 1, got {self.hits.shape} and {self.l2.shape}")
        if self.met is not None and self.met.shape != self.hits.shape:
            raise ArgumentError(f"met: expected shape {self.hits.shape} like hits, got {self.met.shape}")

    @property
    def before(self) -> NDArray[np.bool_]:
        """``(N,)`` bool, ``met`` with nobody in the place of None."""
        return np.zeros_like(self.hits) if self.met is None else self.met

    @property
    def gained(self) -> NDArray[np.bool_]:
        """``(N,)`` bool, which images succeed whose clean ones did not meet the goal: what the attack did."""
        return self.hits & ~self.before

    @property
    def counts(self) -> Success:
        """How many succeed, met the goal before, and succeed of the rest."""
        return count_success(self.hits, self.before)

    @property
    def share(self) -> float:
        """Share that succeeds of the images whose clean ones did not meet the goal; 0 where all did."""
        return self.counts.success_of_rest or 0.0

    @property
    def length(self) -> float:
        """Median L2 norm of those that succeed and did not meet the goal before; infinite where none does."""
        return float(np.median(self.l2[self.gained])) if self.gained.any() else math.inf

    @property
    def size(self) -> float:
        """Median L2 norm of what was tried on images that did not meet the goal before; 0 where all did."""
        return float(np.median(self.l2[~self.before])) if not self.before.all() else 0.0

    @property
    def label(self) -> str:
        """The attack with its radius in grey levels, and the threat model."""
        return f"{self.attack}{'' if self.eps is None else f' {255 * self.eps:g}/255'} ({self.threat})"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Something to doubt.

    Attributes:
        sign: Its name: ``"one-step"``, ``"black-box"``, ``"gradients"``, ``"radius"`` or ``"noise"``.
        text: One sentence with the numbers.
    """

    sign: str
    text: str


def suspicions(trials: Sequence[Trial], *, gradient_ratio: float | None = None) -> tuple[Flag, ...]:
    """What an evaluation of one defence shows that an honest one would not.

    - ``one-step``: a one-step attack beats every iterative one of the same radius and threat model (of attacks that
      look for the smallest change: every one whose changes are not shorter);
    - ``black-box``: an attack that does not know the defence beats the same one that does;
    - ``gradients``: zero for at least 5 % of the images, not finite for any, or a thousand times smaller or larger
      than without the defence;
    - ``radius``: an attack that knows the defence succeeds no more often at a larger radius, and is not at 98 % yet;
    - ``noise``: random noise succeeds more often than an attack that knows the defence and changes as much, or as
      often with less change.

    Images whose clean ones meet the goal already are left out of shares and lengths. "Beats" is by McNemar's exact test
    at 5 %, on the same images.

    Args:
        trials: Of one defence, all on the same images.
        gradient_ratio: Median norm of the defended model's gradients over the bare one's (``gradient_ratio``), or None.

    Raises:
        ValueError: The trials are of different images.

    Source:
        Athalye et al. 2018, "Obfuscated gradients give a false sense of security", section 3.1; Carlini et al. 2019,
        "On evaluating adversarial robustness", section 5.
    """
    if len({len(t.hits) for t in trials}) > 1:
        raise ArgumentError(
            f"trials: expected trials of the same images, got {sorted({len(t.hits) for t in trials})} of them"
        )
    found = {
        "one-step": _one_step(trials),
        "black-box": _black_box(trials),
        "gradients": _gradients(trials, gradient_ratio),
        "radius": _radius(trials),
        "noise": _noise(trials),
    }
    return tuple(Flag(sign=sign, text=text) for sign, texts in found.items() for text in texts)


def gradient_ratio(defended: FaceModel, bare: FaceModel, images: Tensor, targets: Tensor, *, batch: int = 16) -> float:
    r"""The median over the images of :math:`\lVert\nabla_x d'(x, t)\rVert_2 / \lVert\nabla_x d(x, t)\rVert_2`.

    Args:
        defended: The defended model.
        bare: The same model without its defence.
        images: ``(N, 3, H, W)`` in [0, 1].
        targets: As many images of others: the distance to an image itself has no gradient.
        batch: Images per evaluation.

    Returns:
        A number of at least 0; infinite or NaN where gradients are.

    Raises:
        ValueError: There is no image, or not one target for each.
    """
    if not len(images) or images.shape != targets.shape:
        raise ArgumentError(
            f"targets: expected one for each image, got shape {tuple(targets.shape)} for {tuple(images.shape)}"
        )
    check_images("images", images)
    check_images("targets", targets)
    after, before = (_norms(model, images, targets, batch) for model in (defended, bare))
    return float((after / before.clamp(min=1e-30)).median())


def _norms(model: FaceModel, images: Tensor, targets: Tensor, batch: int) -> Tensor:
    found = []
    for begin in range(0, len(images), batch):
        part = slice(begin, begin + batch)
        with torch.no_grad():
            goal = model(targets[part].to(model.device))
        with torch.enable_grad():
            leaf = images[part].to(model.device).detach().requires_grad_()
            distance = torch.linalg.vector_norm(model(leaf) - goal, dim=1).sum()
            (gradient,) = torch.autograd.grad(distance, leaf)
        found.append(torch.linalg.vector_norm(gradient.flatten(1).double(), dim=1).cpu())
    return torch.cat(found)


def _beats(first: Trial, second: Trial) -> bool:
    rest = ~(first.before | second.before)
    return bool(rest.any()) and paired_difference(first.hits[rest], second.hits[rest]).verdict == "above"


def _one_step(trials: Sequence[Trial]) -> Iterator[str]:
    for one in trials:
        rivals = [t for t in trials if (t.family, t.eps, t.threat) == (ITERATIVE, one.eps, one.threat)]
        if one.eps is None:  # of two that look for the smallest change, one may succeed more often by changing more
            rivals = [t for t in rivals if one.length <= t.length]
        if one.family == ONE_STEP and rivals and all(_beats(one, rival) for rival in rivals):
            best = max(rivals, key=lambda t: t.share)
            yield f"one step beats many: {one.label} {one.share:.1%}, {best.label} {best.share:.1%}"


def _black_box(trials: Sequence[Trial]) -> Iterator[str]:
    for blind in trials:
        for seeing in trials:
            same = (blind.attack, blind.eps, blind.watched) == (seeing.attack, seeing.eps, seeing.watched)
            if same and seeing.white_box and not blind.white_box and _beats(blind, seeing):
                yield (
                    f"not knowing the defence helps: {blind.label} {blind.share:.1%}, {seeing.label} {seeing.share:.1%}"
                )


def _gradients(trials: Iterable[Trial], ratio: float | None) -> Iterator[str]:
    for trial in trials:
        if trial.white_box and trial.family != NOISE and trial.zero >= _FEW:
            yield f"{trial.label}: the gradient was zero at every step for {trial.zero:.1%}"
        if trial.white_box and trial.nonfinite > 0:
            yield f"{trial.label}: gradients were not finite for {trial.nonfinite:.1%}"
    if ratio is not None and not 1 / _FACTOR <= ratio <= _FACTOR:
        what = "vanish" if ratio < 1 else "explode"
        yield f"gradients {what}: {ratio:.1e} times those without the defence"


def _radius(trials: Sequence[Trial]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[tuple[float, Trial]]] = {}
    for trial in trials:
        if trial.white_box and trial.eps is not None:
            groups.setdefault((trial.attack, trial.threat), []).append((trial.eps, trial))
    for group in groups.values():
        ordered = sorted(group, key=lambda pair: pair[0])
        (least, small), (most, large) = ordered[0], ordered[-1]
        if least < most and not small.before.all() and large.share <= small.share < _SATURATED:
            yield f"a larger radius does not help: {small.label} {small.share:.1%}, {large.label} {large.share:.1%}"


def _noise(trials: Sequence[Trial]) -> Iterator[str]:
    for noise in trials:
        for trial in trials:
            if noise.family != NOISE or trial.family == NOISE or not trial.white_box or not noise.gained.any():
                continue
            if noise.watched != trial.watched:
                continue
            stronger = _beats(noise, trial) and noise.size <= trial.size
            # without a success, an attack within a radius says nothing of the length that would be needed
            comparable = bool(trial.gained.any()) or trial.eps is None
            shorter = comparable and noise.share >= trial.share and noise.length < trial.length
            if stronger or shorter:
                yield (
                    f"noise beats gradients: {noise.label} {noise.share:.1%} at a median L2 of "
                    f"{noise.length:.2f}, {trial.label} {trial.share:.1%} at {trial.length:.2f}"
                )
