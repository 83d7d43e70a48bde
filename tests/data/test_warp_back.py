"""A crop's change put back into its image: closed forms, the transpose of the alignment, what aligning again finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastadv.data import AlignmentError
from fastadv.data.alignment import inverse, similarity, template, warp
from fastadv.data.warp_back import warp_back

Matrix = NDArray[np.float64]
SIZE = 112
LFW_FACE = np.array([[106.2, 111.4], [147.6, 111.2], [127.0, 134.9], [110.0, 159.1], [144.2, 158.9]])


def turned(scale: float, angle: float, side: int = 250) -> Matrix:
    """The similarity that brings the middle of the image to the middle of the crop."""
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    return np.column_stack([linear, SIZE / 2 - linear @ (side / 2, side / 2)])


def shift(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def noise(seed: int, side: int, low: int = 0, high: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(low, high, (side, side, 3)).astype(np.uint8)


def signs(seed: int, levels: int = 8) -> NDArray[np.float32]:
    """White noise: the finest change there is."""
    return np.random.default_rng(seed).choice([-levels, levels], (SIZE, SIZE, 3)).astype(np.float32) / 255


def difference(after: NDArray[np.uint8], before: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (after.astype(np.float32) - before) / np.float32(255)


def kept(found: NDArray[np.float32], change: NDArray[np.float32]) -> tuple[float, float]:
    """The share of a change that is found again, and the cosine between the two."""
    product = float(np.vdot(found, change))
    size = float(np.linalg.norm(change))
    return product / size**2, product / (size * float(np.linalg.norm(found)))


def transposed(change: NDArray[np.float32], matrix: Matrix, side: int) -> NDArray[np.float32]:
    """The transpose of `warp`: every crop pixel goes to the four pixels that it was read from, by their weights."""
    (a, b, c), (d, e, f) = inverse(matrix)
    x = np.arange(SIZE) + 0.5
    y = x[:, None]
    u, v = (a * x + b * y + c).ravel() - 0.5, (d * x + e * y + f).ravel() - 0.5
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    out = np.zeros((side, side, 3))
    for step_x, weight_x in ((0, 1 - (u - left)), (1, u - left)):
        for step_y, weight_y in ((0, 1 - (v - top)), (1, v - top)):
            np.add.at(out, (top + step_y, left + step_x), (weight_x * weight_y)[:, None] * change.reshape(-1, 3))
    return out.astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1))
def test_the_identity_gives_exactly_the_changed_crop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crop = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    changed = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    got = warp_back(crop, difference(changed, crop), np.eye(2, 3))
    np.testing.assert_array_equal(got, changed)


def test_a_crop_without_resampling_comes_back_exactly() -> None:
    image, change = noise(0, 200, 8, 248), signs(1)
    got = warp_back(image, change, shift(-30, -50))
    np.testing.assert_array_equal(difference(got[50 : 50 + SIZE, 30 : 30 + SIZE], image[50:162, 30:142]), change)
    got[50 : 50 + SIZE, 30 : 30 + SIZE] = image[50:162, 30:142]
    np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize(("x", "y"), [(0.5, 0.5), (0.25, 0.75), (0.1, 0.0)])
def test_a_shift_there_and_back_is_a_known_filter(x: float, y: float) -> None:
    """Reading at a shift t weighs two pixels 1 - t and t; there and back that is t(1-t), (1-t)^2 + t^2, t(1-t)."""
    change = np.zeros((SIZE, SIZE, 3), np.float32)
    change[40, 60] = 1.0
    image, matrix = np.zeros((SIZE, SIZE, 3), np.uint8), shift(x, y)
    found = warp(difference(warp_back(image, change, matrix), image), matrix, (SIZE, SIZE))
    row, column = (np.array([t * (1 - t), (1 - t) ** 2 + t * t, t * (1 - t)]) for t in (y, x))
    np.testing.assert_allclose(found[39:42, 59:62, 0], np.outer(row, column), atol=1 / 255)
    found[39:42, 59:62] = 0
    np.testing.assert_allclose(found, 0, atol=1e-6)


@settings(max_examples=40)
@given(scale=st.floats(0.5, 1.5), angle=st.floats(-3, 3), seed=st.integers(0, 99))
def test_pixels_outside_the_crop_keep_their_bytes_and_none_leaves_the_budget(
    scale: float, angle: float, seed: int
) -> None:
    image, matrix = noise(seed, 160), turned(scale, angle, 160)
    got = warp_back(image, signs(seed), matrix)
    v, u = np.mgrid[:160, :160] + 0.5
    x, y = np.moveaxis(np.stack([u, v, np.ones_like(u)], axis=-1) @ matrix.T, -1, 0)
    outside = (x < 0) | (x >= SIZE) | (y < 0) | (y >= SIZE)
    np.testing.assert_array_equal(got[outside], image[outside])
    assert np.abs(got.astype(int) - image).max() <= 8


@settings(max_examples=25)
@given(scale=st.floats(0.6, 1.1), angle=st.floats(-1, 1), seed=st.integers(0, 99))
def test_for_smooth_images_it_is_the_transpose_of_alignment_up_to_the_area(
    scale: float, angle: float, seed: int
) -> None:
    """<x, back(d)> scale^2 = <align(x), d>: the change of variables of an integral."""
    rng = np.random.default_rng(seed)
    matrix = turned(scale, angle)
    v, u = np.mgrid[:250, :250] / 40.0
    phases = rng.uniform(0, 6, (3, 2))
    x = np.stack([np.sin(u + p) * np.cos(v + q) for p, q in phases], axis=-1).astype(np.float32)
    t = np.linspace(-1, 1, SIZE)
    hill = np.clip(1 - t**2, 0, None)
    change = (np.outer(hill, hill)[..., None] * rng.uniform(0.1, 0.4, 3)).astype(np.float32)
    grey = np.full((250, 250, 3), 100, np.uint8)
    back = difference(warp_back(grey, change, matrix), grey)
    there = float(np.vdot(warp(x, matrix, (SIZE, SIZE)), change))
    size = float(np.linalg.norm(warp(x, matrix, (SIZE, SIZE))) * np.linalg.norm(change))
    assert float(np.vdot(x, back)) * scale**2 == pytest.approx(there, abs=0.01 * size)


@pytest.mark.parametrize("angle", [0.1, 0.5, 1.0])
def test_four_ninths_of_white_noise_come_back_at_equal_resolution(angle: float) -> None:
    """((1-t)^2 + t^2)((1-s)^2 + s^2), in the mean over all places between the pixels."""
    image, change, matrix = noise(0, 250, 8, 248), signs(1), turned(1.0, angle)
    found = warp(difference(warp_back(image, change, matrix), image), matrix, (SIZE, SIZE))
    assert kept(found, change)[0] == pytest.approx(4 / 9, abs=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_on_lfw_s_faces_it_keeps_more_than_the_transpose(seed: int) -> None:
    """Their images are finer than the crops: half of white noise comes back, nearly all of what is smooth."""
    rng = np.random.default_rng(seed)
    matrix = similarity(LFW_FACE + rng.normal(0, 1.5, (5, 2)), template(SIZE))
    image, change = noise(seed, 250, 16, 240), signs(seed)
    found = warp(difference(warp_back(image, change, matrix), image), matrix, (SIZE, SIZE))
    share, cosine = kept(found, change)
    assert share > 0.48
    assert cosine > 0.87
    assert share > kept(warp(transposed(change, matrix, 250), matrix, (SIZE, SIZE)), change)[0] + 0.03
    smooth = np.repeat(np.repeat(change[::8, ::8], 8, axis=0), 8, axis=1)
    found = warp(difference(warp_back(image, smooth, matrix), image), matrix, (SIZE, SIZE))
    assert min(kept(found, smooth)) > 0.9


def test_values_are_clipped_and_rounded_never_wrapped() -> None:
    image = np.array([[[0] * 3, [3] * 3, [252] * 3, [255] * 3]], np.uint8)
    change = np.array([[[-8] * 3, [-8] * 3, [8] * 3, [8] * 3]], np.float32) / 255
    assert warp_back(image, change, np.eye(2, 3))[0, :, 0].tolist() == [0, 0, 255, 255]
    half = np.full((1, 4, 3), 1.6 / 255, np.float32)
    assert warp_back(image, half, np.eye(2, 3))[0, :, 0].tolist() == [2, 5, 254, 255]


def test_the_arguments_are_left_alone() -> None:
    image, change = noise(0, 150), signs(2)
    before = image.copy(), change.copy()
    warp_back(image, change, turned(0.9, 0.2, 150))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(change, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.zeros((4, 4, 3)), r"change: expected \(h, w, 3\) float32, got \(4, 4, 3\) float64"),
        (np.zeros((4, 4), np.float32), r"change: expected \(h, w, 3\) float32, got \(4, 4\) float32"),
        (np.zeros((4, 4, 1), np.float32), r"change: expected \(h, w, 3\) float32, got \(4, 4, 1\) float32"),
        (np.full((4, 4, 3), np.nan, np.float32), "change: expected finite values"),
    ],
)
def test_another_change_is_refused(change: NDArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warp_back(noise(0, 8), change, np.eye(2, 3))


def test_other_arguments_are_refused() -> None:
    change = np.zeros((4, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"image: expected \(H, W, C\) uint8, got \(8, 8\) uint8"):
        warp_back(np.zeros((8, 8), np.uint8), change, np.eye(2, 3))
    with pytest.raises(ValueError, match=r"image: expected \(H, W, C\) uint8, got \(8, 8, 3\) float32"):
        warp_back(np.zeros((8, 8, 3), np.float32), change, np.eye(2, 3))  # type: ignore[arg-type]
    with pytest.raises(AlignmentError, match="matrix: expected one with an inverse, got"):
        warp_back(noise(0, 8), change, [[1, 2, 0], [2, 4, 0]])
