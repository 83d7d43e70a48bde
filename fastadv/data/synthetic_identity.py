"""Who a synthetic person is: the numbers that all images of an identity share.

Lengths are in pixels of the 112 template, in the face's own coordinates (see `synthetic_shapes.CENTER`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.data.synthetic_shapes import Deck, between, color, drawn

_CARDS = 192
_LAYER = 0
BLOBS = 7
MOLES = 3

# Light to dark, three stops; a tone is a place between them.
_SKIN = ((0.97, 0.82, 0.73), (0.80, 0.58, 0.44), (0.37, 0.23, 0.17))
_HAIR = (
    (0.06, 0.05, 0.05),
    (0.17, 0.10, 0.07),
    (0.32, 0.19, 0.11),
    (0.48, 0.22, 0.10),
    (0.75, 0.58, 0.34),
    (0.88, 0.77, 0.52),
    (0.58, 0.57, 0.56),
    (0.85, 0.84, 0.82),
)
_IRIS = ((0.16, 0.09, 0.05), (0.33, 0.20, 0.09), (0.30, 0.42, 0.22), (0.24, 0.42, 0.60), (0.45, 0.50, 0.54))
_FRAMES = ((0.06, 0.06, 0.07), (0.35, 0.20, 0.10), (0.70, 0.62, 0.40), (0.62, 0.12, 0.14), (0.15, 0.22, 0.50))


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The head: half width at the cheeks, chin and crown below and above the nose, jaw."""

    width: Tensor = between(35, 44)
    chin: Tensor = between(35, 45)
    crown: Tensor = between(56, 68)
    taper: Tensor = between(0.05, 0.38)
    square: Tensor = between(-0.45, 0.75)
    ears: Tensor = between(0, 5)


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """Half distance, height of the centre, half width, openness, tilt, iris, lid and brow."""

    apart: Tensor = between(15.2, 20.4)
    at: Tensor = between(-22.5, -18.5)
    width: Tensor = between(5.6, 8.6)
    height: Tensor = between(0.30, 0.55)
    tilt: Tensor = between(-0.20, 0.26)
    iris: Tensor = between(2.6, 3.8)
    color: Tensor = color(_IRIS, 0.06)
    crease: Tensor = between(-0.4, 1.0)
    lash: Tensor = between(0.4, 1.6)
    shadow: Tensor = between(-0.05, 0.4)
    brow_gap: Tensor = between(6.5, 12.0)
    brow_length: Tensor = between(7.0, 11.5)
    brow_thick: Tensor = between(0.7, 2.6)
    brow_tilt: Tensor = between(-0.22, 0.30)
    brow_arch: Tensor = between(0.0, 3.2)


@dataclass(frozen=True, kw_only=True)
class Middle:
    """Nose and mouth."""

    tip: Tensor = between(-4.0, 5.0)
    width: Tensor = between(5.0, 10.0)
    bridge: Tensor = between(1.6, 4.2)
    nostril: Tensor = between(0.7, 1.9)
    relief: Tensor = between(0.5, 1.3)
    mouth: Tensor = between(17.0, 24.0)
    half: Tensor = between(10.0, 17.0)
    upper: Tensor = between(1.0, 4.2)
    lower: Tensor = between(1.6, 5.2)
    bow: Tensor = between(0.0, 1.6)
    corner: Tensor = between(-3.0, 1.0)
    redness: Tensor = between(0.25, 1.0)


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Skin, hair, beard, glasses; colours are (N, 3, 1, 1), presences 0 or 1 or a strength."""

    skin: Tensor
    blush: Tensor
    blobs: Tensor
    moles: Tensor
    folds: Tensor
    hair: Tensor
    bald: Tensor
    line: Tensor
    line_bend: Tensor
    line_side: Tensor
    fringe: Tensor
    fringe_rate: Tensor
    long: Tensor
    volume: Tensor
    streaks: Tensor
    beard: Tensor
    moustache: Tensor
    glasses: Tensor
    frame: Tensor
    frame_width: Tensor
    frame_height: Tensor
    frame_round: Tensor
    frame_thick: Tensor


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that the images of one person share; every tensor has one row an image."""

    outline: Outline
    eyes: Eyes
    middle: Middle
    surface: Surface


def identities(seed: int, ids: Tensor) -> Identity:
    """The persons with the given numbers.

    Args:
        seed: Of the data set.
        ids: (N,) int64, not negative; repeated where several images show one person.
    """
    deck = Deck(seed, ids, 0, _LAYER, _CARDS)
    outline = drawn(Outline, deck)
    eyes = drawn(Eyes, deck)
    middle = drawn(Middle, deck)
    return Identity(outline=outline, eyes=eyes, middle=middle, surface=_surface(deck))


def _surface(deck: Deck) -> Surface:
    tone = deck.between(0, 2)[..., None]
    light, middle, dark = (torch.tensor(stop).view(1, 3, 1, 1) for stop in _SKIN)
    skin = light + (middle - light) * tone.clamp(max=1) + (dark - middle) * (tone - 1).clamp(min=0)
    jitter = (deck.take(3) * 2 - 1)[:, :, None, None] * 0.04
    bearded = deck.chance(0.22)
    bald = deck.chance(0.12)
    return Surface(
        skin=(skin + jitter).clamp(0.08, 0.98),
        blush=deck.between(0.0, 0.5),
        blobs=deck.take(BLOBS * 4).view(-1, BLOBS, 4),
        moles=deck.take(MOLES * 4).view(-1, MOLES, 4),
        folds=deck.between(0.0, 1.0) * deck.between(0.0, 1.0),
        hair=deck.color(_HAIR, 0.05),
        bald=bald,
        line=deck.between(-47, -34) - 16 * bald,
        line_bend=deck.between(-0.4, 1.3),
        line_side=deck.around(0, 0.5),
        fringe=deck.between(0.0, 3.0) * deck.chance(0.6),
        fringe_rate=deck.between(0.06, 0.22),
        long=deck.chance(0.4) * (1 - bald),
        volume=deck.between(2, 9) * (1 - bald),
        streaks=deck.between(0.0, 0.25),
        beard=bearded * deck.between(0.25, 0.9),
        moustache=(bearded * 0.8 + deck.chance(0.08)).clamp(max=1) * deck.between(0.3, 0.95),
        glasses=deck.chance(0.25),
        frame=deck.color(_FRAMES, 0.05),
        frame_width=deck.between(10.5, 14.5),
        frame_height=deck.between(7.5, 11.5),
        frame_round=deck.between(0.15, 1.0),
        frame_thick=deck.between(0.5, 1.5),
    )
