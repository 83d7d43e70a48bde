"""Pictures of synthetic faces: layers from back to front, each a signed distance with a soft edge."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.data.synthetic_identity import Identity, identities
from fastadv.data.synthetic_parts import draw_eyes, draw_glasses, draw_mouth, draw_nose
from fastadv.data.synthetic_scene import Scene, place, scenes
from fastadv.data.synthetic_shapes import Frame, bump, ellipse, paint, rounded_box, shade, wave
from fastadv.ops import philox

_NOISE_LAYER = 2
_CHUNK = 16
_HEAD_DEPTH = -14.0
_BACK_DEPTH = -24.0


def render(seed: int, ids: Tensor, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Draws image `images[i]` of person `ids[i]` for every i.

    A picture is a function of (seed, person, image, size) alone: of nothing else in the batch.

    Args:
        seed: Of the data set, in [0, 2^64).
        ids: (N,) int64, not negative.
        images: (N,) int64 in [0, 2^20).
        size: Side in pixels.

    Returns:
        The images, (N, 3, size, size) uint8, and the landmarks, (N, 5, 2) float32 in pixel-edge coordinates.
    """
    pictures = torch.empty((len(ids), 3, size, size), dtype=torch.uint8)
    points = torch.empty((len(ids), 5, 2))
    for start in range(0, len(ids), _CHUNK):  # small enough for the processor's cache
        part = slice(start, start + _CHUNK)
        pictures[part], points[part] = _render(seed, ids[part], images[part], size)
    return pictures, points


def _render(seed: int, ids: Tensor, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    person, scene = identities(seed, ids), scenes(seed, ids, images)
    frame, points = place(person, scene, size)
    canvas = torch.empty((len(ids), 3, size, size))
    _draw_background(canvas, frame, scene)
    _draw_back(canvas, frame, person, scene)
    head = _draw_skin(canvas, frame, person)
    draw_eyes(canvas, frame, person, scene)
    draw_nose(canvas, frame, person, scene)
    draw_mouth(canvas, frame, person, scene)
    _draw_light(canvas, frame, person, scene, head)
    _draw_hair(canvas, frame, person, scene)
    draw_glasses(canvas, frame, person, scene)
    _draw_occluder(canvas, frame, scene)
    return _photograph(canvas, scene, seed, ids, images), points


def _draw_background(canvas: Tensor, frame: Frame, scene: Scene) -> None:
    whole = frame.window(0, 0, 112, 112)
    turn = scene.background_turn
    along = ((frame.x * turn + frame.y * (1 - turn.abs())) / 100 + 0.5).clamp_(0, 1)
    along += wave(frame.x / 90 + turn * 3) * 0.15
    canvas[:] = scene.background
    paint(canvas, whole, along.clamp_(0, 1), scene.background_other)


def _draw_back(canvas: Tensor, frame: Frame, person: Identity, scene: Scene) -> None:
    """What is behind the face: hair at the sides and above, neck, clothes, ears."""
    outline, surface = person.outline, person.surface
    whole = frame.window(0, 0, 112, 112)
    u, v = frame.layer(_BACK_DEPTH, whole)
    dark = surface.hair * 0.72
    top = ellipse(u, v + 14, outline.width + surface.volume, outline.crown - 12 + surface.volume)
    sides = torch.maximum(u.abs() - (outline.width + surface.volume + wave(v / 60) * 1.5), -14 - v)
    sides = torch.maximum(sides, v - 70 * surface.long)
    behind = torch.where(surface.long > 0, torch.minimum(top, sides), top)
    paint(canvas, whole, frame.cover(behind, 1.5) * (1 - surface.bald), dark)
    low = frame.window(0, 84, 112, 112)
    u, v = frame.layer(_BACK_DEPTH, low)
    neck = torch.maximum(u.abs() - outline.width * 0.62, 20 - v)
    paint(canvas, low, frame.cover(neck, 1.0), surface.skin * 0.72)
    shoulders = 47 + u.abs() * 0.22 - v
    paint(canvas, low, frame.cover(shoulders, 1.0), scene.clothes)
    side = frame.window(0, 34, 112, 92)
    u, v = frame.layer(_BACK_DEPTH, side)
    ear = ellipse(u.abs() - outline.width * 0.97 - outline.ears * 0.5, v + 9, outline.ears + 2.5, outline.ears + 9)
    shown = frame.cover(ear, 0.5) * (1 - surface.long)
    paint(canvas, side, shown, surface.skin * 0.86)


def _head(u: Tensor, v: Tensor, person: Identity) -> tuple[Tensor, Tensor, Tensor]:
    """Signed distance to the face's outline, and u, v over its half axes.

    `q = (u / w)² + t²·(1 - k + k t²)`: an ellipse for k = 0, a square jaw for k > 0, a pointed one for k < 0; below
    the cheeks the half width w shrinks.
    """
    outline = person.outline
    below = v > 0
    t = v / torch.where(below, outline.chin, outline.crown)
    squared = t * t
    square = torch.where(below, outline.square, outline.square * 0 + 0.25)
    width = outline.width * (1 - torch.where(below, outline.taper, outline.taper * 0) * squared.clamp(max=1.2))
    across = u / width
    radius = (across * across + squared * (1 - square + square * squared)).clamp_(min=0).sqrt_()
    return (radius - 1) * (outline.width * 0.9), across, t


def _draw_skin(canvas: Tensor, frame: Frame, person: Identity) -> Tensor:
    """The face with its texture; returns its coverage."""
    surface = person.surface
    whole = frame.window(0, 0, 112, 112)
    u, v = frame.layer(_HEAD_DEPTH, whole)
    cover = frame.cover(_head(u, v, person)[0], 0.6)
    paint(canvas, whole, cover, surface.skin)
    u, v = frame.layer(0.0, whole)
    tone = torch.zeros_like(u)
    for k in range(surface.blobs.shape[1]):
        x, y, radius, depth = ((surface.blobs[:, k, i] - 0.5)[:, None, None] for i in range(4))
        tone += bump(u - x * 76, v - y * 90 + 4, 9 + 14 * (radius + 0.5), 6 + 12 * (radius + 0.5)) * (depth * 0.36)
    shade(canvas, whole, tone * cover)
    cheeks = frame.window(4, 56, 108, 100)
    u, v = frame.layer(0.0, cheeks)
    red = bump(u.abs() - 22, v - 9, 11.0, 9.0) * surface.blush * cover[:, cheeks[0], cheeks[1]]
    paint(canvas, cheeks, red * 0.5, surface.skin * torch.tensor((1.05, 0.72, 0.70)).view(1, 3, 1, 1))
    fold = bump(u.abs() - person.middle.half - 4 - (v - 8) * 0.3, v - 10, 1.4, 7.0) * surface.folds
    shade(canvas, cheeks, fold * -0.35)
    _draw_beard(canvas, frame, person, cover)
    for k in range(surface.moles.shape[1]):
        x, y, radius, there = (surface.moles[:, k, i][:, None, None] for i in range(4))
        u, v = frame.layer(0.0, whole) if k == 0 else (u, v)
        spot = ellipse(u - (x - 0.5) * 62, v - (y * 70 - 34), 0.7 + radius * 1.3, 0.7 + radius * 1.3)
        paint(canvas, whole, frame.cover(spot, 0.5) * ((there > 0.45) * 0.8), surface.skin * 0.35)
    return cover


def _draw_beard(canvas: Tensor, frame: Frame, person: Identity, cover: Tensor) -> None:
    surface, middle = person.surface, person.middle
    low = frame.window(0, 60, 112, 112)
    u, v = frame.layer(0.0, low)
    inside = cover[:, low[0], low[1]]
    edge = 10 - u.abs() * 0.55 + wave(u / 11) * 0.7
    beard = frame.cover(edge + 14 - v, 4.0) * surface.beard
    lips = ellipse(u, v - middle.mouth - 0.5, middle.half + 2.5, middle.upper + middle.lower + 2.0)
    beard *= 1 - frame.cover(lips, 1.5)
    over = ellipse(u, v - middle.mouth + middle.upper + 3.4, middle.half * 0.95, surface.beard * 0 + 2.8)
    hairy = torch.maximum(beard, frame.cover(over, 1.4) * surface.moustache) * inside
    grain = wave(u * 0.37 + v * 0.11) * wave(v * 0.29 - u * 0.07) * 0.16 + 0.9
    paint(canvas, low, hairy * grain, surface.hair * 0.85)


def _draw_light(canvas: Tensor, frame: Frame, person: Identity, scene: Scene, head: Tensor) -> None:
    """Lambert's law on an ellipsoid under the face: `ambient + (1 - ambient)·max(0, n·l)`, and darker edges."""
    whole = frame.window(0, 0, 112, 112)
    u, v = frame.layer(_HEAD_DEPTH * 0.4, whole)
    _, across, along = _head(u, v, person)
    across, along = across * 0.92, along * 0.75
    bulge = (1 - across * across - along * along).clamp_(min=0.02).sqrt_()
    length = (scene.light_x.square() + scene.light_y.square() + 1).sqrt()
    lit = (across * scene.light_x + along * scene.light_y + bulge) / length
    strength = scene.ambient + (1 - scene.ambient) * 1.35 * lit.clamp_(min=0)
    shade(canvas, whole, (strength - 1) * head)


def _draw_hair(canvas: Tensor, frame: Frame, person: Identity, scene: Scene) -> None:
    """What of the hair lies over the forehead and, when it is long, over the sides of the face."""
    outline, surface = person.outline, person.surface
    whole = frame.window(0, 0, 112, 112)
    u, v = frame.layer(-8.0, whole)
    outer = ellipse(u, v + 14, outline.width + surface.volume, outline.crown - 12 + surface.volume)
    bent = surface.line + surface.line_bend * (u * u) / 60 + surface.line_side * u
    bent += wave((u + scene.hair_move) * surface.fringe_rate) * surface.fringe
    cap = torch.maximum(outer, v - bent)
    curtain = outline.width - 4 - u.abs() + wave(v / 50 + scene.hair_move / 9) * 2
    curtain = torch.maximum(curtain, u.abs() - outline.width - surface.volume)
    curtain = torch.maximum(curtain, torch.where(v < -14, outer, -14 - v)) + (1 - surface.long) * 1000
    cover = frame.cover(torch.minimum(cap, curtain), 1.4) * (1 - surface.bald)
    strands = wave(u * 0.31 + wave(v / 40 + u / 70) * 0.5 + scene.hair_move * 0.1)
    strands = (strands + wave(u * 0.13 - v / 90)) * 0.5 * surface.streaks
    light = (scene.light_x * u - (v + 30) * 0.5) / 160 * (1 - scene.ambient)
    color = surface.hair * (1 + strands + light)[:, None]
    paint(canvas, whole, cover, color)


def _draw_occluder(canvas: Tensor, frame: Frame, scene: Scene) -> None:
    whole = frame.window(0, 0, 112, 112)
    u, v = frame.x - scene.occluder_x, frame.y - scene.occluder_y
    box = rounded_box(u, v, scene.occluder_a, scene.occluder_b, scene.occluder_b * 0.3)
    round_ = ellipse(u, v, scene.occluder_a, scene.occluder_b)
    cover = frame.cover(torch.where(scene.occluder_box > 0, box, round_), 0.7) * scene.occluded
    paint(canvas, whole, cover, scene.occluder)


def _photograph(canvas: Tensor, scene: Scene, seed: int, ids: Tensor, images: Tensor) -> Tensor:
    """Exposure, colour of the light, blur, noise, and the 8 bits of a file."""
    canvas -= 0.5
    canvas *= scene.contrast[..., None]
    canvas += 0.5
    canvas *= scene.gain[..., None] * scene.tint
    size = canvas.shape[-1]
    side = scene.blur[..., None]
    for _ in range(2 if size <= 128 else 3):
        wide = F.pad(canvas, (1, 1, 0, 0), mode="replicate")
        canvas = (wide[..., :-2] + wide[..., 2:]).mul_(side).add_(wide[..., 1:-1] * (1 - 2 * side))
        wide = F.pad(canvas, (0, 0, 1, 1), mode="replicate")
        canvas = (wide[..., :-2, :] + wide[..., 2:, :]).mul_(side).add_(wide[..., 1:-1, :] * (1 - 2 * side))
    grain = philox.uniform(seed, ids, images, _NOISE_LAYER, (3, size, size))
    canvas += grain.sub_(0.5).mul_(scene.noise[..., None] * 2)
    return canvas.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
