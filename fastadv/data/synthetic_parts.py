"""Eyes, nose, mouth and glasses of a synthetic face, drawn in place."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.data.synthetic_identity import Identity
from fastadv.data.synthetic_scene import MOUTH_DEPTH, NOSE_DEPTH, Scene
from fastadv.data.synthetic_shapes import Frame, bump, ellipse, paint, rounded_box, shade

_WHITE = torch.tensor((0.93, 0.92, 0.90)).view(1, 3, 1, 1)
_PUPIL = torch.tensor((0.03, 0.03, 0.03)).view(1, 3, 1, 1)
_GLINT = torch.tensor((0.98, 0.98, 0.98)).view(1, 3, 1, 1)
_LIP = torch.tensor((0.66, 0.27, 0.28)).view(1, 3, 1, 1)
_INSIDE = torch.tensor((0.22, 0.06, 0.06)).view(1, 3, 1, 1)
_TEETH = torch.tensor((0.92, 0.90, 0.85)).view(1, 3, 1, 1)
_GLASSES_DEPTH = 9.0
_BROW_DEPTH = 3.0


def draw_eyes(canvas: Tensor, frame: Frame, person: Identity, scene: Scene) -> None:
    """Sockets, eyeballs, lids, brows. Both sides at once: the face is mirrored at u = 0 but for the gaze."""
    eyes, surface = person.eyes, person.surface
    window = frame.window(6, 26, 106, 72)
    u, v = frame.layer(0.0, window)
    right = u >= 0
    s, t = u.abs() - eyes.apart, v - eyes.at
    shade(canvas, window, bump(s + 1.5, t + 1.5, eyes.width * 1.3, eyes.width * 0.85) * -eyes.shadow)
    t = t + s * eyes.tilt
    half = eyes.width
    part = s / half
    arc = (1 - part * part).clamp_(min=0)
    opened = half * eyes.height * (1.12 - scene.squint)
    upper = t + opened * arc  # below the upper lid where positive
    lower = opened * 0.72 * arc - t
    ball = -torch.minimum(upper, lower)
    ball = torch.maximum(ball, s.abs() - half)
    white = frame.cover(ball, 0.3)
    paint(canvas, window, white, _WHITE)
    look = torch.where(right, s - scene.gaze_x, s + scene.gaze_x)
    down = t - scene.gaze_y + opened * 0.14
    iris = ellipse(look, down, eyes.iris, eyes.iris)
    paint(canvas, window, frame.cover(iris, 0.4) * white, eyes.color)
    paint(canvas, window, frame.cover(iris + eyes.iris * 0.55, 0.3) * white, _PUPIL)
    shine = torch.where(right, look, -look) + 0.9 - scene.light_x
    paint(canvas, window, frame.cover(ellipse(shine, down + 1.0, 0.75, 0.75), 0.3) * white * 0.85, _GLINT)
    ends = (1.12 - part.abs()).clamp_(0, 0.25).mul_(4)
    lid = frame.cover(upper.abs() - eyes.lash * 0.8, 0.4) * ends
    paint(canvas, window, lid * 0.85, surface.hair * 0.35 + 0.02)
    paint(canvas, window, frame.cover(lower.abs() - 0.35, 0.5) * ends * 0.4, surface.skin * 0.5)
    fold = frame.cover((t + opened * (0.25 + arc) + 2.0).abs() - 0.4, 0.7) * ends * eyes.crease.clamp(min=0)
    paint(canvas, window, fold * 0.6, surface.skin * 0.5)
    _draw_brows(canvas, frame, person, scene)


def _draw_brows(canvas: Tensor, frame: Frame, person: Identity, scene: Scene) -> None:
    eyes = person.eyes
    window = frame.window(4, 18, 108, 62)
    u, v = frame.layer(_BROW_DEPTH, window)
    s = u.abs() - eyes.apart - 0.8
    part = s / eyes.brow_length
    height = eyes.at - eyes.brow_gap - scene.raise_brows
    curve = height + part * part * eyes.brow_arch - s * (eyes.brow_tilt + scene.frown)
    thick = eyes.brow_thick * (1.15 - part * 0.45)
    brow = torch.maximum((v - curve).abs() - thick, (part.abs() - 1) * 4)
    color = person.surface.hair * 0.7 + person.surface.skin * 0.06
    paint(canvas, window, frame.cover(brow, 0.9) * 0.9, color)


def draw_nose(canvas: Tensor, frame: Frame, person: Identity, scene: Scene) -> None:
    """A ridge that is lit from one side, a tip, wings and nostrils, all by shading the skin."""
    eyes, nose = person.eyes, person.middle
    window = frame.window(22, 38, 92, 92)
    u, v = frame.layer(NOSE_DEPTH * 0.55, window)
    length = nose.tip - eyes.at
    down = ((v - eyes.at) / length).clamp_(0, 1)
    flank = nose.bridge + (nose.width * 0.75 - nose.bridge) * down * down
    along = bump(v * 0, v - nose.tip + length * 0.42, 1.0, length * 0.62)
    side = u / flank
    ridge = bump(side, side * 0, 0.8, 1.0)
    slope = side * bump(side, side * 0, 1.4, 1.0)
    relief = nose.relief
    lit = slope * scene.light_x * 0.55 + (ridge - 0.35) * 0.16 - slope.abs() * 0.20
    shade(canvas, window, lit * along * relief)
    u, v = frame.layer(NOSE_DEPTH, window)
    shade(canvas, window, bump(u - scene.light_x, v - nose.tip + 1.5, 3.2, 2.6) * 0.20 * relief)
    below = bump(u, v - nose.tip - 5.0, nose.width * 0.95, 2.0)
    shade(canvas, window, below * -0.30 * relief)
    s = u.abs() - nose.width * 0.86
    wing = bump(s, v - nose.tip - 1.0, 1.3, 3.4)
    shade(canvas, window, wing * -0.26 * relief)
    hole = ellipse(u.abs() - nose.width * 0.46, v - nose.tip - 4.2, nose.nostril * 1.6, nose.nostril)
    paint(canvas, window, frame.cover(hole, 0.8) * 0.75, person.surface.skin * 0.22)


def draw_mouth(canvas: Tensor, frame: Frame, person: Identity, scene: Scene) -> None:
    """Two lips that part and bend with the expression, teeth, and the shadow below."""
    mouth, surface = person.middle, person.surface
    window = frame.window(20, 74, 92, 112)
    u, v = frame.layer(MOUTH_DEPTH, window)
    half = mouth.half * (1 + 0.14 * scene.smile)
    part = u / half
    squared = part * part
    arc = (1 - squared).clamp_(min=0)
    corner = mouth.corner - 2.2 * scene.smile
    line = v - mouth.mouth - corner * squared
    gap = 5.0 * scene.open * arc
    dip = bump(part, part * 0, 0.22, 1.0) * mouth.bow
    thin = 1 - 0.18 * scene.smile
    top = line + (mouth.upper * thin) * arc.sqrt() + gap * 0.3 - dip
    bottom = (mouth.lower * thin) * arc.sqrt() + gap - line
    lips = torch.maximum(-torch.minimum(top, bottom), u.abs() - half)
    color = surface.skin + (_LIP * (0.35 + 0.65 * surface.skin.mean(1, keepdim=True)) * 1.25 - surface.skin) * (
        mouth.redness[..., None] * 0.8
    )
    paint(canvas, window, frame.cover(lips, 0.7), color)
    shade(canvas, window, frame.cover(lips, 0.7) * (line.clamp(-3, 3) * 0.045))
    inner = torch.maximum(-torch.minimum(line + gap * 0.3, gap - line), u.abs() - half * 0.96)
    hollow = frame.cover(inner, 0.4) * (scene.open > 0)
    paint(canvas, window, hollow, _INSIDE)
    paint(canvas, window, hollow * frame.cover(line - gap * 0.25, 0.6) * 0.9, _TEETH)
    seam = frame.cover(torch.maximum(line.abs() - 0.35, u.abs() - half), 0.6) * (1 - hollow)
    paint(canvas, window, seam * 0.75, color * 0.35)
    under = bump(u, v - mouth.mouth - mouth.lower - gap - 2.6, half * 0.6, 1.8)
    shade(canvas, window, under * -0.22)


def draw_glasses(canvas: Tensor, frame: Frame, person: Identity, scene: Scene) -> None:
    """Two rims, a bridge and temples in front of the eyes, with a pale reflection; worn in most of the images."""
    surface, eyes = person.surface, person.eyes
    window = frame.window(0, 26, 112, 78)
    u, v = frame.layer(_GLASSES_DEPTH, window)
    s, t = u.abs() - eyes.apart, v - eyes.at - 1.5
    corner = surface.frame_height * surface.frame_round
    rim = rounded_box(s, t, surface.frame_width, surface.frame_height, torch.minimum(corner, surface.frame_width))
    worn = surface.glasses * scene.wears
    glare = bump(s + t * 0.6 - scene.light_x * 6, t * 0, 2.6, 1.0)
    paint(canvas, window, frame.cover(rim) * worn * (glare * 0.30 + 0.04), _GLINT)
    inner = eyes.apart - surface.frame_width
    bridge = torch.maximum((t + 2.5).abs() - surface.frame_thick, u.abs() - inner)
    temple = torch.maximum((t + 3.0).abs() - surface.frame_thick, surface.frame_width - s)
    temple = torch.maximum(temple, u.abs() - person.outline.width * 0.97)
    wire = torch.minimum(torch.minimum(rim.abs() - surface.frame_thick, bridge), temple)
    paint(canvas, window, frame.cover(wire, 0.3) * worn, surface.frame)
