"""Templates by name and from files, and alignment onto them."""

import numpy as np
import pytest
from PIL import Image

from fastadv.data import TEMPLATES, Template, align
from fastadv.data.alignment import matrix_of, template, warp
from fastadv.data.templates import open_template

ARCFACE = TEMPLATES["arcface"]


def test_the_named_ones():
    assert {name: made.size for name, made in TEMPLATES.items()} == {
        "arcface": (112, 112),
        "sphereface": (112, 96),
        "facenet": (160, 160),
        "dlib": (150, 150),
    }
    np.testing.assert_array_equal(ARCFACE.array, template(112))
    np.testing.assert_array_equal(TEMPLATES["facenet"].array, template(160))
    # of the matcher of SphereFace's authors
    sphereface = [(30.2946, 51.6963), (65.5318, 51.5014), (48.0252, 71.7366), (33.5493, 92.3655), (62.7299, 92.2041)]
    np.testing.assert_allclose(TEMPLATES["sphereface"].array, sphereface, atol=1e-9)


def test_dlib_s_is_the_mean_face_of_its_68_points():
    """Points 36 to 41 and 42 to 47 (the eyes), 30, 48 and 54 of mean_face_shape, (x + 0.25) / 1.5 of the side."""
    left = [(0.121737, 0.216423), (0.187122, 0.178758), (0.265825, 0.179852)]
    left += [(0.334606, 0.231733), (0.260918, 0.245099), (0.182743, 0.244077)]
    right = [(0.645647, 0.231733), (0.714428, 0.179852), (0.793132, 0.178758)]
    right += [(0.858516, 0.216423), (0.79751, 0.244077), (0.719335, 0.245099)]
    others = [(0.490127, 0.515625), (0.254149, 0.780233), (0.726104, 0.780233)]
    points = np.array([np.mean(left, 0), np.mean(right, 0), *others])
    np.testing.assert_allclose(TEMPLATES["dlib"].array, (points + 0.25) / 1.5 * 150, atol=1e-3)


def test_a_margin_shows_more_at_the_same_size():
    wide = ARCFACE.widened(0.5)
    assert wide.size == ARCFACE.size
    np.testing.assert_allclose(wide.array, (ARCFACE.array - 56) / 2 + 56)  # about the centre
    assert ARCFACE.widened(0) == ARCFACE
    with pytest.raises(ValueError, match=r"margin: expected a number in \[0, 2\], got -0.1"):
        ARCFACE.widened(-0.1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_face_that_lies_as_the_template_is_cut_out_as_it_is(name):
    made = TEMPLATES[name]
    image = np.random.default_rng(0).integers(0, 256, (*made.size, 3), dtype=np.uint8)
    crop, matrix = align(image, made.array, made)
    np.testing.assert_array_equal(crop, image)
    np.testing.assert_allclose(matrix, np.eye(2, 3), atol=1e-12)


def test_a_size_is_the_template_of_that_size():
    image = np.random.default_rng(0).integers(0, 256, (200, 210, 3), dtype=np.uint8)
    points = ARCFACE.array * 1.3 + (20, 11)
    np.testing.assert_array_equal(align(image, points, 112)[0], align(image, points, ARCFACE)[0])
    np.testing.assert_array_equal(align(image, points, 160)[0], align(image, points, TEMPLATES["facenet"])[0])


def test_a_large_face_is_averaged_not_sampled():
    """Columns that alternate between black and white become grey; a face four times as large is a mean of 4x4."""
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    crop, matrix = align(stripes, ARCFACE.array * 4 + 1)
    assert (np.abs(crop.astype(int) - 127) <= 1).all()
    np.testing.assert_allclose(matrix, matrix_of(ARCFACE.array * 4 + 1))
    image = np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    crop, _ = align(image, ARCFACE.array * 4)
    expected = image.reshape(112, 4, 112, 4, 3).mean((1, 3))
    assert np.abs(crop - expected).max() <= 0.5 + 1e-6


def test_a_face_that_shrinks_by_less_than_two_is_sampled_as_ever():
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    crop, matrix = align(image, ARCFACE.array * 1.9)
    np.testing.assert_array_equal(crop, warp(image, matrix, (112, 112)))


def test_a_face_at_the_border_of_a_large_picture_is_black_beyond():
    image = np.full((1500, 1400, 3), 200, np.uint8)
    crop, _ = align(image, ARCFACE.array * 5 - (280, 0))
    assert not crop[:, :55].any()
    assert (crop[:, 57:] == 200).all()


# from a file


def written(path, text):
    path.write_text(text)
    return path


def test_a_file_has_size_and_five_points(tmp_path):
    lines = "\n".join(f"{x} {y}" for x, y in TEMPLATES["sphereface"].points)
    path = written(tmp_path / "own", f"# mine\n96 112  # width and height\n{lines}\n")
    assert open_template(path) == TEMPLATES["sphereface"]
    assert open_template("dlib") is TEMPLATES["dlib"]


POINTS = "38 51 73 51 56 71 41 92 70 92"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("112 112 1 2 3", "expected width and height of the crop, then five points x y, 12 numbers, got '112 112 1 2"),
        ("", "12 numbers, got ''"),
        (f"112 112 {POINTS} 1", "12 numbers, got"),
        (f"a b {POINTS}", "12 numbers, got 'a b"),
        (f"8 112 {POINTS}", r"template width: expected an integer in \[16, 4096\], got 8"),
        ("112 112 73 51 38 51 56 71 70 92 41 92", "template: expected left eye, right eye, nose, .* got"),
        ("112 112 38 51 38 51 56 71 38 51 38 51", "template: expected left eye, right eye, nose, .* got"),
        (f"112 112 {POINTS.replace('56', 'nan')}", r"template: expected five points \(x, y\), got"),
    ],
)
def test_a_file_that_is_no_template_is_refused(text, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        open_template(written(tmp_path / "own", text))


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(
        ValueError, match="template: expected one of arcface, .* a file, got 'arcfce'; did you mean 'arc"
    ):
        open_template("arcfce")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"points": ((1, 2),)}, "template: expected five points"),
        ({"points": "abc"}, "template: expected five points"),
        ({"size": (112,)}, "template: expected a height and a width, got"),
        ({"size": (112.0, 112)}, "template height: expected an integer"),
    ],
)
def test_a_template_of_wrong_parts_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        Template(**{"points": ARCFACE.points, "size": ARCFACE.size, **settings})


def test_pillow_reduces_as_described():
    """What `align` relies on: the mean of whole blocks, and of what there is at the right and lower border."""
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    got = np.asarray(Image.fromarray(image).reduce(4))
    assert got.shape == (3, 2, 3)
    assert np.abs(got[0, 0] - image[:4, :4].mean((0, 1))).max() < 1
    assert np.abs(got[2, 1] - image[8:, 4:].mean((0, 1))).max() < 1
