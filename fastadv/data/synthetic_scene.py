"""How a synthetic person is seen: the numbers of one image, and where they put the five landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.data.alignment import template
from fastadv.data.synthetic_identity import Identity
from fastadv.data.synthetic_shapes import CENTER, Deck, Frame, around, between, chance, color, drawn

_CARDS = 96
_LAYER = 1
NOSE_DEPTH = 11.0
MOUTH_DEPTH = 2.5

_CLOTHES = ((0.12, 0.13, 0.16), (0.85, 0.85, 0.83), (0.22, 0.30, 0.48), (0.52, 0.16, 0.17), (0.25, 0.38, 0.26))
_ANY = ((0.1, 0.1, 0.1), (0.9, 0.9, 0.9), (0.3, 0.5, 0.8), (0.7, 0.3, 0.25), (0.4, 0.6, 0.35), (0.75, 0.65, 0.5))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Pose, expression, light, occlusion, camera and background of every image; shapes as in `Identity`.

    `sin` of an angle is drawn and `cos = sqrt(1 - sin²)`, so that no transcendental function is needed.
    """

    yaw: Tensor = around(0, 0.50)
    pitch: Tensor = around(0, 0.32)
    roll: Tensor = around(0, 0.09)
    zoom: Tensor = around(1, 0.07)
    shift_x: Tensor = around(0, 2.2)
    shift_y: Tensor = around(0, 2.2)
    smile: Tensor = between(-0.35, 1.0)
    open: Tensor = between(-1.0, 1.0, least=0.0)
    squint: Tensor = between(0.0, 0.45)
    raise_brows: Tensor = around(0.4, 2.0)
    frown: Tensor = around(0, 0.12)
    gaze_x: Tensor = around(0, 2.0)
    gaze_y: Tensor = around(0, 1.0)
    light_x: Tensor = between(-0.95, 0.95)
    light_y: Tensor = between(-0.95, 0.35)
    ambient: Tensor = between(0.35, 0.80)
    tint: Tensor
    gain: Tensor = between(0.68, 1.22)
    contrast: Tensor = between(0.80, 1.15)
    background: Tensor = color(_ANY, 0.12)
    background_other: Tensor = color(_ANY, 0.12)
    background_turn: Tensor = between(-1, 1)
    clothes: Tensor = color(_CLOTHES, 0.08)
    occluded: Tensor = chance(0.18)
    occluder: Tensor = color(_ANY, 0.1)
    occluder_x: Tensor = between(-50, 50)
    occluder_y: Tensor = between(-58, 42)
    occluder_a: Tensor = between(6, 22)
    occluder_b: Tensor = between(6, 18)
    occluder_box: Tensor = chance(0.5)
    hair_move: Tensor = around(0, 3.0)
    wears: Tensor = chance(0.9)
    blur: Tensor = between(0.0, 0.26)
    noise: Tensor = between(0.0, 0.03)


def scenes(seed: int, ids: Tensor, images: Tensor) -> Scene:
    """The scenes of image `images[i]` of person `ids[i]`; both (N,) int64."""
    deck = Deck(seed, ids, images, _LAYER, _CARDS)
    tint = 1 + (deck.take(3) * 2 - 1)[:, :, None, None] * 0.12
    return drawn(Scene, deck, tint=tint)


def landmarks_in_plane(person: Identity, scene: Scene) -> tuple[Tensor, Tensor]:
    """The five points after the head is turned, before the alignment: x and y, each (N, 5), template units.

    A point (u, v, z) goes to `(u·cos yaw + z·sin yaw, v·cos pitch + z·sin pitch)`.
    """
    eyes, middle = person.eyes, person.middle
    zero = torch.zeros_like(eyes.apart)
    half = middle.half * (1 + 0.14 * scene.smile)
    corner = middle.mouth + middle.corner - 2.2 * scene.smile
    points = (
        (-eyes.apart, eyes.at, 0.0),
        (eyes.apart, eyes.at, 0.0),
        (zero, middle.tip, NOSE_DEPTH),
        (-half, corner, MOUTH_DEPTH),
        (half, corner, MOUTH_DEPTH),
    )
    cos_yaw, cos_pitch = (1 - scene.yaw.square()).sqrt(), (1 - scene.pitch.square()).sqrt()
    x = torch.cat([(u * cos_yaw + z * scene.yaw)[:, :, 0] for u, _, z in points], dim=1)
    y = torch.cat([(v * cos_pitch + z * scene.pitch)[:, :, 0] for _, v, z in points], dim=1)
    return x, y


def place(person: Identity, scene: Scene, size: int) -> tuple[Frame, Tensor]:
    """Aligns every head as `fastadv.data.align` would, with a small error, as a detector makes.

    The similarity `w = a z + b` that maps the five points nearest to the template is the closed form of
    `alignment.similarity`; roll, zoom and shift then move the picture around the template's centre.

    Returns:
        The frame that the layers are drawn in, and the landmarks, (N, 5, 2) as (x, y) in pixels of the image.
    """
    x, y = landmarks_in_plane(person, scene)
    wanted = torch.tensor(template(112), dtype=torch.float32) - torch.tensor(CENTER)
    mean_x, mean_y = _mean(x), _mean(y)
    target_x, target_y = float(wanted[:, 0].mean()), float(wanted[:, 1].mean())
    zx, zy = x - mean_x, y - mean_y
    wx, wy = wanted[:, 0] - target_x, wanted[:, 1] - target_y
    spread = _mean(zx * zx + zy * zy)
    real = _mean(zx * wx + zy * wy) / spread
    imaginary = _mean(zx * wy - zy * wx) / spread
    roll, zoom = scene.roll[:, :, 0], scene.zoom[:, :, 0]
    turn = (1 - roll * roll).sqrt()
    # a = zoom · e^{i roll} · a, b so that the centre of the points goes to that of the template, and shift
    real, imaginary = zoom * (turn * real - roll * imaginary), zoom * (roll * real + turn * imaginary)
    to_x, to_y = target_x + scene.shift_x[:, :, 0], target_y + scene.shift_y[:, :, 0]
    seen = torch.stack(
        [zx * real - zy * imaginary + to_x + CENTER[0], zx * imaginary + zy * real + to_y + CENTER[1]], dim=2
    )
    scale = size / 112
    ticks = (torch.arange(size, dtype=torch.float32) + 0.5) / scale
    px = ticks.view(1, 1, -1) - CENTER[0] - to_x[..., None]
    py = ticks.view(1, -1, 1) - CENTER[1] - to_y[..., None]
    squared = (real * real + imaginary * imaginary)[..., None]
    real, imaginary = real[..., None] / squared, imaginary[..., None] / squared
    cos_yaw, cos_pitch = (1 - scene.yaw.square()).sqrt(), (1 - scene.pitch.square()).sqrt()
    frame = Frame(
        x=((px * real + py * imaginary) + mean_x[..., None]) / cos_yaw,
        y=((py * real - px * imaginary) + mean_y[..., None]) / cos_pitch,
        du=scene.yaw / cos_yaw,
        dv=scene.pitch / cos_pitch,
        pixel=1 / squared.sqrt() / scale,
        size=size,
    )
    return frame, seen * scale


def _mean(values: Tensor) -> Tensor:
    """The mean of the five columns, added in a fixed order."""
    total = values[:, 0] + values[:, 1] + values[:, 2] + values[:, 3] + values[:, 4]
    return (total / 5)[:, None]
