"""Alignment: closed forms, and points that must land exactly."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastadv.core.notices import Notice
from fastadv.data import AlignmentError, align, read_landmarks
from fastadv.data.alignment import center_crop, inverse, similarity, template, warp

FACE = template(112) * 1.2 + 40.0
floats = st.floats(-200, 200)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_template_is_the_published_one() -> None:
    expected = [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
    np.testing.assert_array_equal(template(112), expected)
    np.testing.assert_allclose(template(160), np.array(expected) * 160 / 112, rtol=1e-15)
    with pytest.raises(ValueError, match="size: expected a positive number of pixels, .*got 0"):
        template(0)


def test_a_crop_that_is_not_square_is_the_middle_of_the_square_of_its_longer_side() -> None:
    np.testing.assert_allclose(template((112, 96)), template(112) - (8, 0))
    np.testing.assert_allclose(template((96, 112)), template(112) - (0, 8))
    np.testing.assert_array_equal(template((160, 160)), template(160))
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (250, 250, 3), dtype=np.uint8)
    square, matrix = align(image, FACE, 112)
    for size, rows, columns in (((112, 96), slice(None), slice(8, 104)), ((96, 112), slice(8, 104), slice(None))):
        crop, moved = align(image, FACE, size)
        assert crop.shape == (*size, 3)
        np.testing.assert_array_equal(crop, square[rows, columns])
        shift = (columns.start or 0, rows.start or 0)
        np.testing.assert_allclose(moved[:, 2], matrix[:, 2] - shift, atol=1e-9)
        cut, _ = center_crop(square, size)
        np.testing.assert_array_equal(cut, crop)
        same, identity = center_crop(crop, size)
        np.testing.assert_array_equal(same, crop)
        np.testing.assert_array_equal(identity, np.eye(2, 3))
    for wrong in ((112,), (112, 0), (112, 96.0), (1, 2, 3)):
        with pytest.raises(ValueError, match="size: expected a positive number of pixels, or a height and a width"):
            template(wrong)


def test_landmarks_may_go_to_other_points() -> None:
    own = template(112) * 0.7 + (16, 20)
    crop, matrix = align(np.zeros((250, 250, 3), np.uint8), FACE, (120, 110), onto=own)
    assert crop.shape == (120, 110, 3)
    np.testing.assert_allclose(apply(matrix, FACE), own, atol=1e-9)


@given(angle=st.floats(-3.1, 3.1), scale=st.floats(0.05, 20), x=floats, y=floats)
def test_an_exact_similarity_is_found(angle: float, scale: float, x: float, y: float) -> None:
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    true = np.array([[cosine, -sine, x], [sine, cosine, y]])
    np.testing.assert_allclose(similarity(FACE, apply(true, FACE)), true, atol=1e-9 * (1 + scale * 200))


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Umeyama 1991, equations 40 to 43, by the singular value decomposition."""
    ms, mt = source.mean(0), target.mean(0)
    u, d, vt = np.linalg.svd((target - mt).T @ (source - ms) / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / ((source - ms) ** 2).sum(1).mean()
    return np.concatenate([scale * rotation, (mt - scale * rotation @ ms)[:, None]], axis=1)


@given(st.integers(0, 2**32 - 1))
def test_equals_umeyama(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = FACE + rng.normal(0, 8, (5, 2)), template() + rng.normal(0, 4, (5, 2))
    got = similarity(source, target)
    np.testing.assert_allclose(got, umeyama(source, target), atol=1e-9)
    assert np.linalg.det(got[:, :2]) > 0

    def error(matrix: np.ndarray) -> float:
        return float(((apply(matrix, source) - target) ** 2).sum())

    moved = got + rng.normal(0, 1e-3) * np.array([[0, -1, 0], [1, 0, 0]])  # another rotation and scale
    assert error(got) <= error(moved) + 1e-12


@given(st.lists(floats, min_size=6, max_size=6))
def test_inverse_is_the_inverse(values: list[float]) -> None:
    matrix = np.array(values).reshape(2, 3)
    determinant = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
    if abs(determinant) < 1e-2:
        return
    there_and_back = apply(inverse(matrix), apply(matrix, FACE))
    np.testing.assert_allclose(there_and_back, FACE, atol=1e-6)


def test_identity_warp_is_bit_equal() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp(image, np.eye(2, 3), (9, 11)), image)


def test_whole_pixel_shift_is_bit_equal_and_zero_outside() -> None:
    image = np.random.default_rng(0).integers(1, 256, (9, 11, 3), dtype=np.uint8)
    got = warp(image, [[1, 0, 3], [0, 1, -2]], (9, 11))
    np.testing.assert_array_equal(got[:7, 3:], image[2:, :-3])
    assert not got[7:].any()
    assert not got[:, :3].any()


def test_a_half_size_crop_averages_blocks() -> None:
    """Pixel edges: scaling by 1/2 about the corner puts every sample amid a 2x2 block; nothing is shifted."""
    image = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    got = warp(image, [[0.5, 0, 0], [0, 0.5, 0]], (4, 4))
    np.testing.assert_allclose(got, image.reshape(4, 2, 4, 2, 3).mean((1, 3)), atol=1e-6)


@given(angle=st.floats(-0.5, 0.5), scale=st.floats(0.5, 2), x=st.floats(-5, 5), y=st.floats(-5, 5))
def test_a_known_point_lands_exactly(angle: float, scale: float, x: float, y: float) -> None:
    """On an image that holds its own pixel-edge coordinates, bilinear sampling is exact."""
    rows, columns = np.mgrid[:60, :60].astype(np.float32) + 0.5
    image = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cosine, -sine, x], [sine, cosine, y]])
    got = warp(image, matrix, (40, 40))
    v, u = np.mgrid[:40, :40] + 0.5
    wanted = apply(inverse(matrix), np.stack([u, v], axis=-1).reshape(-1, 2)).reshape(40, 40, 2)
    inner = ((wanted > 0.5) & (wanted < 59.5)).all(-1)
    np.testing.assert_allclose(got[inner][:, :2], wanted[inner], atol=1e-4)
    outside = ((wanted < -1e-9) | (wanted >= 60 + 1e-9)).any(-1)  # but for rounding
    assert not got[outside].any()


def test_uint8_is_rounded_not_cut_off() -> None:
    image = np.array([[[0] * 3, [255] * 3]], np.uint8)
    got = warp(image, [[4, 0, 0], [0, 1, 0]], (1, 8))[0, :, 0]
    assert got.tolist() == [0, 0, 32, 96, 159, 223, 255, 255]  # 31.875, 95.625, 159.375, 223.125


@pytest.mark.parametrize("size", [112, 160])
def test_align_brings_the_eyes_to_the_template(size: int) -> None:
    image = np.zeros((250, 250, 3), np.uint8)
    landmarks = template(112) @ np.array([[0.8, 0.6], [-0.6, 0.8]]) * 1.1 + (90, 20)
    for x, y in landmarks[:2]:
        image[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 255
    crop, matrix = align(image, landmarks, size)
    assert crop.shape == (size, size, 3)
    np.testing.assert_allclose(apply(matrix, landmarks), template(size), atol=1e-9)
    rows, columns = np.nonzero(crop[..., 0] > 127)
    left = columns < size / 2
    for side, goal in ((left, template(size)[0]), (~left, template(size)[1])):
        centre = np.array([columns[side].mean(), rows[side].mean()]) + 0.5
        assert np.abs(centre - goal).max() < 1.0 * size / 112


def test_the_inverse_matrix_returns_a_crop_to_its_place() -> None:
    rows, columns = np.mgrid[:250, :250].astype(np.float32)
    smooth = np.stack([columns, rows, 0.5 * (columns + rows)], axis=-1)
    matrix = similarity(FACE, template())
    crop = warp(smooth, matrix, (112, 112))
    back = warp(crop, inverse(matrix), (250, 250))
    x, y = apply(inverse(matrix), np.array([[56.0, 56.0]]))[0].astype(int)
    np.testing.assert_allclose(
        back[y - 30 : y + 30, x - 30 : x + 30], smooth[y - 30 : y + 30, x - 30 : x + 30], atol=1e-3
    )


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.zeros((5, 2)), "expected different places, got points that coincide"),
        (np.full((5, 2), 123.4), "expected different places, got points that coincide"),
        (np.full((5, 2), np.nan), "finite"),
        (FACE[:4], r"expected shape \(5, 2\)"),
        (FACE[[1, 0, 2, 4, 3]], "mirrored"),
        (FACE * (-1, 1), "mirrored"),
    ],
)
def test_degenerate_landmarks(landmarks: np.ndarray, message: str) -> None:
    with pytest.raises(AlignmentError, match=message):
        align(np.zeros((20, 20, 3), np.uint8), landmarks)


def test_an_upside_down_face_is_no_mirrored_one() -> None:
    _, matrix = align(np.zeros((250, 250, 3), np.uint8), 250 - FACE)
    assert matrix[0, 0] < 0


def test_bad_arguments() -> None:
    with pytest.raises(AlignmentError, match="matrix: expected one with an inverse, got"):
        inverse([[1, 2, 0], [2, 4, 0]])
    with pytest.raises(AlignmentError, match=r"expected finite numbers \(2, 3\)"):
        inverse(np.eye(3))
    with pytest.raises(ValueError, match=r"got \(4, 4\) uint8"):
        warp(np.zeros((4, 4), np.uint8), np.eye(2, 3), (2, 2))
    with pytest.raises(ValueError, match="size: expected a positive height"):
        warp(np.zeros((4, 4, 3), np.uint8), np.eye(2, 3), (0, 2))
    with pytest.raises(AlignmentError, match=r"two \(K, 2\) arrays"):
        similarity(FACE, FACE[:3])


def test_center_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    same, matrix = center_crop(image[:, :8], 8)
    np.testing.assert_array_equal(same, image[:, :8])
    np.testing.assert_array_equal(matrix, np.eye(2, 3))
    crop, matrix = center_crop(image, 4)
    assert crop.shape == (4, 4, 3)
    np.testing.assert_allclose(apply(matrix, np.array([[2.0, 0.0], [10.0, 8.0]])), [[0, 0], [4, 4]])


def test_read_landmarks(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.txt"
    numbers = " ".join(str(v) for v in range(10))
    path.write_text(f"# a comment\n\nA/a.b.jpg {numbers} 0.99\nB/c {numbers}\n.hid {numbers}\n")
    found = read_landmarks(path)
    assert set(found) == {"A/a.b", "B/c", ".hid"}
    np.testing.assert_array_equal(found["B/c"], np.arange(10.0).reshape(5, 2))
    assert found["A/a.b"].dtype == np.float64


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("A/a.jpg 1 2 3", "got 3 numbers"),
        ("A/a.jpg 1 2 3 4 5 6 7 8 9 x", "expected ten numbers with decimal points, got .x."),
        ("A/a.jpg 1 2 3 4 5 6 7 8 9 nan", "finite"),
        ("A/ok.png 0 1 2 3 4 5 6 7 8 9", "expected one line for each image, got a second one for A/ok"),
    ],
)
def test_malformed_landmark_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "landmarks.txt"
    path.write_text(f"A/ok.jpg 0 1 2 3 4 5 6 7 8 9\n\n{line}\n")
    with pytest.raises(AlignmentError, match=rf"landmarks\.txt:3: .*{message}"):
        read_landmarks(path)


def test_unreadable_landmarks(tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match="cannot be read"):
        read_landmarks(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        AlignmentError, match="the landmarks cannot be read: byte 2 is not UTF-16; save the list as UTF-8"
    ):
        read_landmarks(tmp_path / "binary")


FIVE = np.array([[107.6, 108.7], [146.5, 109.2], [127.3, 140.2], [110.6, 156.7], [143.5, 156.9]])
BOX, SCORE = (95.0, 80.0, 160.0, 175.0), (0.98,)
PUBLISHED = {
    "box, points": (*BOX, *FIVE.ravel()),
    "box, points, score": (*BOX, *FIVE.ravel(), *SCORE),
    "box, score, points": (*BOX, *SCORE, *FIVE.ravel()),
    "points, box": (*FIVE.ravel(), *BOX),
    "box, x1..x5 y1..y5": (*BOX, *FIVE.T.ravel()),
    "score, points, box": (*SCORE, *FIVE.ravel(), *BOX),
}


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
@pytest.mark.parametrize("what", PUBLISHED)
def test_lists_with_boxes_and_scores(tmp_path: Path, what: str, separator: str) -> None:
    draw = np.random.default_rng(0)
    path, numbers = tmp_path / "l.txt", np.array(PUBLISHED[what])
    head = separator.join(["file", *(f"column_{k}" for k in range(len(numbers)))])
    rows = [numbers + draw.normal(0, 1, len(numbers)) * (numbers > 1) for _ in range(9)]
    lines = [separator.join([f"p/{k}.jpg", *(f"{v:.3f}" for v in row)]) for k, row in enumerate(rows)]
    path.write_text("\n".join([head, *lines]))
    begin = next(k for k in range(6) if abs(numbers[k] - FIVE[0, 0]) < 1e-9)
    with pytest.warns(Notice, match=rf"numbers {begin + 1} to {begin + 10} are read as the coordinates"):
        found = read_landmarks(path)
    assert list(found) == [f"p/{k}" for k in range(9)]
    for k, row in enumerate(rows):
        np.testing.assert_allclose(found[f"p/{k}"].ravel(), row[begin : begin + 10], atol=1e-3)


def test_the_head_of_celeba_and_quoted_names_of_vggface2(tmp_path: Path) -> None:
    numbers = " ".join(f"{v:.0f}" for v in FIVE.ravel())
    celeba = tmp_path / "celeba.txt"
    sides = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    columns = " ".join(f"{name}_{axis}" for name in sides for axis in "xy")
    celeba.write_text(f"2\n{columns} \n000001.jpg  {numbers}\n000002.jpg  {numbers}\n")
    assert list(read_landmarks(celeba)) == ["000001", "000002"]
    vggface2 = tmp_path / "loose_landmark.csv"
    vggface2.write_text(
        "NAME_ID," + ",".join(f"P{k}{axis}" for k in range(1, 6) for axis in "XY") + "\n"
        f'"n000001/0001_01",{numbers.replace(" ", ",")}\n'
    )
    np.testing.assert_array_equal(read_landmarks(vggface2)["n000001/0001_01"], np.round(FIVE))


def test_a_header_is_in_the_first_lines_only(tmp_path: Path) -> None:
    numbers = " ".join(map(str, range(10)))
    (tmp_path / "l.txt").write_text(f"a/1.jpg {numbers}\n{' '.join('abcdefghijk')}\n")
    with pytest.raises(AlignmentError, match=r"l\.txt:2: expected ten numbers with decimal points, got 'b'"):
        read_landmarks(tmp_path / "l.txt")
