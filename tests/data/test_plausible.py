"""Landmarks that cannot be right are refused, with what they would fit as; what would stop a run is found before it."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastadv.core.notices import Notice
from fastadv.data import LFW, AlignmentError, IdentityFolder, ImageError, Shards, read_landmarks, write_png
from fastadv.data.alignment import template
from fastadv.data.images import encode_png
from fastadv.data.plausible import MAX_FACE, check_inside, residuals, settle_list

GOOD = np.array([[107.6, 108.7], [146.5, 109.2], [127.3, 140.2], [110.6, 156.7], [143.5, 156.9]])  # in 250x250
WRONG = {
    "y1..y5 x1..x5": (GOOD.T[::-1].reshape(5, 2), "they would fit as y1..y5 x1..x5"),
    "mouth corners": (GOOD[[0, 1, 2, 4, 3]], "x y pairs with the mouth corners exchanged"),
    "eyes": (GOOD[[1, 0, 2, 3, 4]], "x y pairs with the eyes exchanged"),
    "the subject's left": (GOOD[[1, 0, 2, 4, 3]], "with left and right exchanged"),
    "y from below": (GOOD * (1, -1) + (0, 250), "y counted from the bottom"),
    "nose first": (GOOD[[2, 0, 1, 3, 4]], "in the order nose, left eye, right eye"),
    "fractions": (GOOD / 250, "they look like fractions"),
    "a tenth": (GOOD / 10, "faces with 3.9 pixels between the eyes"),
    "no face": (GOOD[[3, 2, 0, 4, 1]] ** 1.3, "landmarks: expected x y in pixels of left eye"),
}


PUBLISHED = {
    "x1..x5 y1..y5": (GOOD.T.reshape(5, 2), 1),
    "y x pairs": (GOOD[:, ::-1], 1),
    "x y pairs with left and right exchanged": (GOOD[[1, 0, 2, 4, 3]], 5),
    "x1..x5 y1..y5 with left and right exchanged": (GOOD[[1, 0, 2, 4, 3]].T.reshape(5, 2), 5),
}


def faces(root: Path, count: int = 3, side: int = 250) -> Path:
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    for k in range(count):
        (root / f"p{k}").mkdir(parents=True)
        write_png(root / f"p{k}" / "1.png", image)
    return root


def everybody(points: np.ndarray, count: int = 3) -> dict[str, np.ndarray]:
    return {f"p{k}/1": points for k in range(count)}


@pytest.mark.parametrize("what", WRONG)
def test_a_list_that_cannot_be_right_is_refused_when_the_source_is_opened(tmp_path: Path, what: str) -> None:
    points, message = WRONG[what]
    with pytest.raises(AlignmentError, match=message):
        IdentityFolder(faces(tmp_path), landmarks=everybody(points))


@pytest.mark.parametrize("what", PUBLISHED)
def test_an_order_that_people_publish_is_read_with_a_warning(tmp_path: Path, what: str) -> None:
    points, least = PUBLISHED[what]
    marks = everybody(points, least) | ({"p0/2": np.full((5, 2), np.nan)} if least > 1 else {})
    with pytest.warns(
        Notice, match=rf"landmarks: read as {what}.*, in which they fit faces: .* 2\.\d, \d+\.\d as"
    ) as said:
        source = IdentityFolder(faces(tmp_path, least), landmarks=marks)
    assert len(said) == 1
    right = IdentityFolder(tmp_path, landmarks=everybody(GOOD, least))
    for name in source.names:
        assert np.array_equal(source.load(name).image, right.load(name).image)


def test_a_right_list_passes_turned_small_and_large() -> None:
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    for points in (GOOD, GOOD @ turn, -GOOD, GOOD * 40, GOOD * 8.2 / 38.9):
        marks = {"a": points}
        assert settle_list(marks, ["a"]) == (marks, ())


def test_residual_is_that_of_the_best_similarity() -> None:
    off = template(112) + np.array([[2, 0], [0, 0], [0, 0], [0, 0], [0, 0]])
    distance, a = residuals(np.stack([template(112) * 2 + 7, off]))
    np.testing.assert_allclose(distance[0], 0, atol=1e-9)
    np.testing.assert_allclose(a[0], 0.5)
    assert 0 < distance[1] < np.sqrt(4 / 5)


def test_a_single_odd_face_among_good_ones_is_said_and_used(tmp_path: Path) -> None:
    marks = everybody(GOOD) | {"p1/1": GOOD[[0, 1, 2, 4, 3]]}
    source = IdentityFolder(faces(tmp_path), landmarks=marks)
    with pytest.warns(Notice, match=r"landmarks: the points of p1/1 fit no face") as said:
        assert len(list(source.stream())) == 3
        source.check(source.names)
    assert len(said) == 1
    IdentityFolder(tmp_path, landmarks=marks).check(["p0/1", "p2/1"])  # nothing of faces that are not used


@pytest.mark.parametrize("scale", [3.0, 2.3])
def test_points_outside_of_the_picture(tmp_path: Path, scale: float) -> None:
    source = IdentityFolder(faces(tmp_path), landmarks=everybody(GOOD * scale))
    message = r"landmarks: expected points inside of the picture of 250x250, got the .* at \("
    with pytest.raises(AlignmentError, match=r"3 of 3 images cannot be used, first .*p0/1\.png: " + message):
        source.stream()
    with pytest.raises(AlignmentError, match=message):
        source.load("p0/1")


def test_a_face_that_the_border_cuts_is_right() -> None:
    check_inside(GOOD - (120, 0), 250, 250)  # the left eye is 12 pixels outside, of 39 between the eyes
    with pytest.raises(AlignmentError, match="got the left eye at"):
        check_inside(GOOD - (130, 0), 250, 250)


def test_a_list_for_smaller_pictures_is_said(tmp_path: Path) -> None:
    """Percent of the picture, or the frame of a thumbnail: neither the fit nor the border tells."""
    source = IdentityFolder(faces(tmp_path), landmarks=everybody(GOOD / 2.5))
    with pytest.warns(Notice, match="all faces lie in the upper left quarter of their images"):
        source.check(source.names)
    IdentityFolder(tmp_path, landmarks=everybody(GOOD)).check(source.names)


def test_points_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    """A photograph that is stored lying: EXIF turns it, and width and height change places."""
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((160, 400, 3), np.uint8)).save(tmp_path / "a" / "1.jpg", exif=exif)
    high = GOOD - (60, -180)  # y up to 337, in a picture of 160x400
    source = IdentityFolder(tmp_path, landmarks={"a/1": high})
    source.check(source.names)
    assert source.load("a/1").image.shape == (3, 112, 112)


def test_images_without_a_line_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    source = IdentityFolder(faces(tmp_path, 8), landmarks=everybody(GOOD, 1))
    with pytest.raises(AlignmentError, match=r"a line for each of the 8 images, got none for p1/1, .* \(7 in all\)"):
        source.stream()
    assert [face.name for face in source.stream(["p0/1"])] == ["p0/1"]
    skipping = source.stream(on_error="skip")
    assert len(list(skipping)) == 1
    assert len(skipping.skipped) == 7


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.full((5, 2), np.nan), "finite"),
        (np.where(np.arange(10).reshape(5, 2) == 3, np.inf, GOOD), "finite"),
        (np.full((5, 2), 80.0), "expected different places, got points that coincide"),
        (GOOD[:4], r"expected shape \(5, 2\)"),
        ("text", r"expected shape \(5, 2\)"),
    ],
)
def test_one_face_with_unusable_points_is_named_before_anything_is_loaded(
    tmp_path: Path, points: object, message: str
) -> None:
    source = IdentityFolder(faces(tmp_path), landmarks=everybody(GOOD) | {"p2/1": points})  # type: ignore[dict-item]
    with pytest.raises(AlignmentError, match=rf"p2/1\.png: landmarks: .*{message}"):
        source.check(source.names)


def test_what_stops_a_run_is_found_in_the_heads_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces(tmp_path, 90, side=112)
    (tmp_path / "p77" / "1.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8))[:24] + b"\x10" + bytes(90))
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 1_000, 8, 2, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (tmp_path / "p88" / "1.png").write_bytes(large + struct.pack(">I", 10) + b"IDAT" + bytes(14))
    source = IdentityFolder(tmp_path)
    with pytest.raises(ImageError, match=r"2 of 90 images cannot be used, first .*p77"):
        source.stream()
    with pytest.raises(ImageError, match=r"p88/1\.png: expected at most 40000000 pixels, got 50000x1000"):
        source.check(["p88/1"])
    seen = []
    real = IdentityFolder._size_of
    monkeypatch.setattr(IdentityFolder, "_size_of", lambda self, name: seen.append(name) or real(self, name))
    source.check(["p1/1", "p2/1"])
    assert seen == []  # looked at already


def test_photographs_without_landmarks_are_said_once(tmp_path: Path) -> None:
    source = IdentityFolder(faces(tmp_path, side=130))
    with pytest.warns(Notice, match=r"no landmarks: the central square of each picture is used \(3 of 3") as said:
        list(source.stream())
        list(source.stream())
    assert len(said) == 1
    for silent in (IdentityFolder(tmp_path, size=130), IdentityFolder(tmp_path, size=None)):
        assert len(list(silent.stream())) == 3


def test_crops_are_taken_as_they_are_in_the_layout_of_lfw(tmp_path: Path) -> None:
    faces(tmp_path / "images", side=112)
    source = LFW(tmp_path)
    crop = np.array(Image.open(tmp_path / "images" / "p0" / "1.png"))
    for face in source.stream():
        np.testing.assert_array_equal((face.image.numpy() * 255).round(), np.moveaxis(crop, -1, 0))
        np.testing.assert_array_equal(face.matrix, np.eye(2, 3))


def test_shards_are_checked_too(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, side in (("a/1", 112), ("b/1", 150)):
            info = tarfile.TarInfo(f"{name}.png")
            data = encode_png(np.zeros((side, side, 3), np.uint8))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.warns(Notice, match=r"no landmarks: .* \(1 of 2, such as b/1\)"):
        assert len(list(Shards(tmp_path / "x.tar").stream())) == 2
    with pytest.raises(
        AlignmentError, match=r"x\.tar/a/1: landmarks: expected points inside of the picture of 112x112"
    ):
        Shards(tmp_path / "x.tar", landmarks={"a/1": GOOD, "b/1": GOOD}).check(["a/1"])


@pytest.mark.faces
def test_the_real_landmarks_pass_one_by_one_and_none_of_them_lies_outside(lfw_root: Path) -> None:
    marks = read_landmarks(lfw_root / "landmarks.txt")
    assert settle_list(marks, marks) == (marks, ())
    distance, _ = residuals(np.stack(list(marks.values())))
    assert 2.5 < np.median(distance) < 3.2
    assert distance.max() < MAX_FACE
    for name, points in list(marks.items())[::10]:
        assert settle_list({name: points}, [name])[1] == ()
        check_inside(points, 250, 250)
