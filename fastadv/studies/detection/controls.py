"""Harmless changes of a face, which a detector of attacks should not flag: noise, blur, compression, light."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.numbers import parse_eps
from fastadv.defences import GaussianBlur, Jpeg, Median
from fastadv.ops import philox
from fastadv.surrogates.key import StepKey

_LAYER = 4010  # of the counter-based generator: no attack, surrogate or defence draws there
_HALVINGS = 40
_LARGEST = 4.0  # standard deviation; more than that moves no pixel of [0, 1] further
_FACTOR = 4.0  # of brightness and contrast

NONE = "none"

Change = Callable[[Tensor, float, StepKey], Tensor]


def _gaussian(images: Tensor, sigma: float, key: StepKey) -> Tensor:
    return images + sigma * _normal(images, key)


def _signs(images: Tensor, eps: float, key: StepKey) -> Tensor:
    draws = philox.uniform(key.seed, key.ids, key.ticks, _LAYER, tuple(images.shape[1:]))
    return images + _levels(eps) * torch.where(draws < 0.5, -1.0, 1.0).to(images.dtype)


def _blur(images: Tensor, sigma: float, key: StepKey) -> Tensor:
    return GaussianBlur(size=2 * math.ceil(3 * sigma) + 1, sigma=sigma)(images, key)


def _jpeg(images: Tensor, quality: float, key: StepKey) -> Tensor:
    return Jpeg(quality=int(quality))(images, key)


def _resize(images: Tensor, ratio: float, key: StepKey) -> Tensor:
    height, width = images.shape[2:]
    small = (max(1, round(ratio * height)), max(1, round(ratio * width)))
    smaller = F.interpolate(images.contiguous(), small, mode="bilinear", antialias=True)
    return F.interpolate(smaller, (height, width), mode="bilinear")


def _brightness(images: Tensor, factor: float, key: StepKey) -> Tensor:
    return images * factor


def _contrast(images: Tensor, factor: float, key: StepKey) -> Tensor:
    return 0.5 + factor * (images - 0.5)


def _median(images: Tensor, size: float, key: StepKey) -> Tensor:
    return Median(size=int(size))(images, key)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A change, and the strengths that it takes: from ``low`` to ``high``, whole or odd numbers where it says so."""

    change: Change
    what: str
    low: float
    high: float
    step: int = 0

    def takes(self, strength: float) -> bool:
        return self.low <= strength <= self.high and (not self.step or (strength - self.low) % self.step == 0)


CONTROLS: Mapping[str, _Kind] = MappingProxyType(
    {
        "gaussian": _Kind(change=_gaussian, what="a standard deviation in [1e-4, 1]", low=1e-4, high=1.0),
        "signs": _Kind(change=_signs, what="a size in [1/255, 1]", low=1 / 255, high=1.0),
        "blur": _Kind(change=_blur, what="a standard deviation in [0.1, 5] pixels", low=0.1, high=5.0),
        "jpeg": _Kind(change=_jpeg, what="a whole quality in [1, 95]", low=1, high=95, step=1),
        "resize": _Kind(change=_resize, what="a ratio in [0.05, 1]", low=0.05, high=1.0),
        "brightness": _Kind(change=_brightness, what="a factor in [0.05, 4]", low=0.05, high=_FACTOR),
        "contrast": _Kind(change=_contrast, what="a factor in [0.05, 4]", low=0.05, high=_FACTOR),
        "median": _Kind(change=_median, what="an odd size in [3, 7]", low=3, high=7, step=2),
    }
)
"""Every kind of control by name."""

FORMS = (
    "gaussian:SIGMA, signs:EPS, blur:SIGMA, jpeg:QUALITY, resize:RATIO, brightness:FACTOR, contrast:FACTOR or "
    "median:SIZE"
)


@dataclass(frozen=True, kw_only=True)
class Control:
    r"""A harmless change of a face; ``parse_control(str(control))`` is ``control``.

    With noise :math:`z` of an image's own, all results on the 8-bit grid of image files:

    - ``gaussian``: :math:`x + \sigma z`, normal z
    - ``signs``: :math:`x \pm \epsilon`, each sign with the probability one half; ε is rounded down to whole grey
      levels, as an 8-bit image within ε of x is
    - ``blur``: a Gaussian window of σ pixels
    - ``jpeg``: stored with a quality, and read again
    - ``resize``: shrunk to a ratio with antialiasing, and enlarged again, bilinearly
    - ``brightness``: :math:`a x`; ``contrast``: :math:`1/2 + a (x - 1/2)`
    - ``median``: the median of a window

    Attributes:
        kind: One of ``CONTROLS``.
        strength: σ, ε, quality, ratio, factor or size.

    Raises:
        ValueError: Another kind, or a strength out of its range.
    """

    kind: str
    strength: float

    def __post_init__(self) -> None:
        if self.kind not in CONTROLS:
            raise ArgumentError(f"control: expected {FORMS}, got {self.kind!r}")
        kind = CONTROLS[self.kind]
        if not kind.takes(self.strength):
            raise ArgumentError(f"control: expected {kind.what} for {self.kind}, got {self.strength:g}")

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        """``"blur:1"``, ``"gaussian:6/255"``."""
        levels = round(255 * self.strength)
        exact = self.kind in ("gaussian", "signs") and levels / 255 == self.strength
        return f"{self.kind}:{levels}/255" if exact else f"{self.kind}:{self.strength:.12g}"

    def __call__(self, images: Tensor, ids: Tensor, *, seed: int = 0) -> Tensor:
        """The changed images, on the 8-bit grid.

        Args:
            images: ``(N, 3, H, W)`` float32 in [0, 1].
            ids: ``(N,)`` int64, the number that keys each image's noise; its result depends on nothing else.
            seed: Of the noise, in [0, 2**64).
        """
        key = StepKey(seed=seed, ids=ids, ticks=torch.zeros_like(ids))
        return _on_grid(CONTROLS[self.kind].change(images, float(self.strength), key))


def parse_control(text: str) -> Control:
    """A control from its text: see ``FORMS``.

    Raises:
        ValueError: The text is of no such form, or the strength out of range.
    """
    kind, _, strength = text.partition(":")
    try:
        value = parse_eps(strength)
    except ArgumentError:
        raise ArgumentError(f"control: expected {FORMS}, got {text!r}") from None
    return Control(kind=kind, strength=value)


def parse_controls(texts: Sequence[str] | None) -> tuple[Control, ...] | None:
    """Controls from their texts; None, for the usual ones, of none, and () of ``["none"]``.

    Raises:
        ValueError: As ``parse_control``.
    """
    if not texts:
        return None
    return () if list(texts) == [NONE] else tuple(parse_control(text) for text in texts)


def check_controls(controls: Sequence[Control]) -> None:
    """Refuse a list that names a control twice.

    Raises:
        ValueError: It does.
    """
    twice = [control.label for k, control in enumerate(controls) if control in controls[:k]]
    if twice:
        raise ArgumentError(f"control: expected each one once, got {twice[0]} twice")


def fitted_controls(attacks: Sequence[AttackSpec]) -> tuple[Control, ...]:
    """What a study takes among its naturals where nothing else is said: five kinds, and ±ε of each attack's radius.

    In whole grey levels: two radii that make the same images are one control.

    **choice**: of each kind a strength such as a camera, an image service or a phone leaves, and a strong one: a
    detector that was fitted on the first alone flags the second.
    """
    radii = [spec.radius for spec in attacks]
    signs = [Control(kind="signs", strength=_levels(eps)) for eps in radii if eps is not None and eps >= 1 / 255]
    return tuple(dict.fromkeys((*signs, *_FITTED)))


_FITTED = tuple(
    parse_control(text)
    for text in (
        *("gaussian:3/255", "gaussian:9/255", "blur:1", "blur:2.5", "jpeg:75", "jpeg:30"),
        *("resize:0.5", "resize:0.3", "brightness:1.3", "brightness:0.6"),
    )
)


UNSEEN = tuple(
    parse_control(text)
    for text in (
        *("gaussian:6/255", "signs:4/255", "blur:2", "jpeg:40", "resize:0.35", "brightness:0.7"),
        *("median:3", "contrast:0.7"),
    )
)
"""Measured besides: a strength of each kind of ``fitted_controls`` between its own, and two kinds that it has not."""

AFTER = (parse_control("blur:1"), parse_control("jpeg:75"))
"""What attacked images pass before they are shown to the detector once more."""


def noise_of_norm(images: Tensor, norms: Tensor, ids: Tensor, *, seed: int = 0) -> Tensor:
    r"""Normal noise of a given L2 norm, measured after clipping to [0, 1] and rounding to 8 bits.

    .. math:: y = q(x + s z), \qquad \lVert y - x \rVert_2 = \rho

    with the scale s that halving its interval finds; a norm that no noise reaches gives the largest.

    Args:
        images: ``(N, 3, H, W)`` float32 on the 8-bit grid.
        norms: ``(N,)``, ρ of each image.
        ids: ``(N,)`` int64, the number that keys each image's noise.
        seed: Of the noise, in [0, 2**64).
    """
    noise = _normal(images, StepKey(seed=seed, ids=ids, ticks=torch.zeros_like(ids)))
    low = torch.zeros(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
    high = torch.full_like(low, _LARGEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        change = (_on_grid(images + middle * noise) - images).flatten(1).double()
        beyond = (change.norm(dim=1) > norms.to(change)).view_as(low)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return _on_grid(images + low * noise)


def _normal(images: Tensor, key: StepKey) -> Tensor:
    return philox.normal(key.seed, key.ids, key.ticks, _LAYER, tuple(images.shape[1:])).to(images.dtype)


def _levels(eps: float) -> float:
    return math.floor(255 * eps + 1e-6) / 255


def _on_grid(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round() / 255
