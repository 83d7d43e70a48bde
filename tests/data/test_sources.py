"""Folders of identities, LFW, and lists of pairs."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastadv.data import (
    LFW,
    AlignmentError,
    IdentityFolder,
    ImageError,
    Pair,
    PairError,
    SourceError,
    align,
    face_id,
    read_image,
    read_pairs_csv,
    to_tensor,
    write_pairs_csv,
    write_png,
)
from fastadv.data.alignment import template

POINTS = " ".join(f"{v:.4f}" for v in (template(112) * 1.2 + 40).ravel())


def noise(seed: int, height: int = 112, width: int = 112) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "faces"
    for index, (identity, image) in enumerate([("Bob", "b2"), ("Bob", "b1"), ("Ann", "a")]):
        (root / identity).mkdir(parents=True, exist_ok=True)
        write_png(root / identity / f"{image}.png", noise(index))
    (root / "Ann" / "notes.txt").write_text("ignored")
    (root / ".cache").mkdir()
    (root / "README").write_text("ignored")
    return root


def test_identity_folder(folder: Path) -> None:
    source = IdentityFolder(folder)
    assert source.names == ("Ann/a", "Bob/b1", "Bob/b2")
    assert len(source) == 3
    assert "Ann/a" in source
    face = source.load("Bob/b2")
    assert face.name == "Bob/b2"
    assert face.identity == "Bob"
    assert face.source_hash == hashlib.sha256((folder / "Bob" / "b2.png").read_bytes()).hexdigest()
    assert torch.equal(face.image, to_tensor(noise(0)))  # it has the size already: left alone
    np.testing.assert_array_equal(face.matrix, np.eye(2, 3))


def test_size_none_is_the_whole_file(folder: Path) -> None:
    write_png(folder / "Ann" / "a.png", noise(5, 30, 20))
    face = IdentityFolder(folder, size=None).load("Ann/a")
    assert face.image.shape == (3, 30, 20)
    assert face.matrix is None


def test_other_sizes_are_brought_to_size(folder: Path) -> None:
    write_png(folder / "Ann" / "a.png", noise(5, 300, 200))
    face = IdentityFolder(folder, size=160).load("Ann/a")
    assert face.image.shape == (3, 160, 160)
    np.testing.assert_allclose(face.matrix, [[0.8, 0, 0], [0, 0.8, -40]])
    grid = face.image * 255
    assert torch.equal(face.image, torch.round(grid) / 255)


def test_landmarks_align(folder: Path, tmp_path: Path) -> None:
    write_png(folder / "Ann" / "a.png", noise(5, 250, 250))
    marks = tmp_path / "marks.txt"
    marks.write_text(f"Ann/a.png {POINTS}\n")
    source = IdentityFolder(folder, landmarks=marks)
    crop, matrix = align(noise(5, 250, 250), source.landmarks["Ann/a"])
    face = source.load("Ann/a")
    assert torch.equal(face.image, to_tensor(crop))
    np.testing.assert_array_equal(face.matrix, matrix)
    with pytest.raises(AlignmentError, match=r"b1\.png: expected landmarks of Bob/b1, got none"):
        source.load("Bob/b1")
    stream = source.stream(on_error="skip")
    assert [face.name for face in stream] == ["Ann/a"]
    assert [skipped.name for skipped in stream.skipped] == ["Bob/b1", "Bob/b2"]
    with pytest.raises(ValueError, match="size: expected a number of pixels with landmarks, got None"):
        IdentityFolder(folder, size=None, landmarks=marks)


def test_degenerate_landmarks_name_the_file(folder: Path) -> None:
    source = IdentityFolder(folder, landmarks={"Ann/a": np.zeros((5, 2))})
    with pytest.raises(
        AlignmentError, match=r"Ann/a\.png: landmarks: expected different places, got points that coincide"
    ):
        source.load("Ann/a")


def test_ids_are_known_and_depend_on_the_name_alone(folder: Path) -> None:
    assert face_id("Aaron_Peirsol/Aaron_Peirsol_0001") == 1854978755318513781
    assert 0 <= face_id("") < 2**63
    assert IdentityFolder(folder).load("Ann/a").id == face_id("Ann/a")


@pytest.mark.parametrize("workers", [1, 3])
def test_stream_is_load_in_order(folder: Path, workers: int) -> None:
    source = IdentityFolder(folder)
    names = ["Bob/b2", "Ann/a", "Bob/b1", "Ann/a"]
    faces = list(source.stream(names, workers=workers, ahead=2))
    assert [face.name for face in faces] == names
    assert all(torch.equal(face.image, source.load(face.name).image) for face in faces)
    assert [face.name for face in source.stream()] == list(source.names)


def test_a_bad_file_is_raised_or_skipped(folder: Path) -> None:
    (folder / "Bob" / "b1.png").write_text("no image")
    source = IdentityFolder(folder)
    with pytest.raises(ImageError, match=r"b1\.png: not a JPEG"):
        list(source.stream())
    stream = source.stream(on_error="skip")
    assert [face.name for face in stream] == ["Ann/a", "Bob/b2"]
    assert stream.skipped[0].name == "Bob/b1"
    assert "not a JPEG" in stream.skipped[0].reason


def test_unknown_names(folder: Path) -> None:
    source = IdentityFolder(folder)
    with pytest.raises(KeyError, match="name: expected one of the 3 images, got Eve/e"):
        source.load("Eve/e")
    with pytest.raises(KeyError, match="expected some of the 3 images, got Eve/e"):
        source.stream(["Ann/a", "Eve/e"])
    with pytest.raises(ValueError, match="expected several names"):
        source.stream("Ann/a")


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="got no such folder"):
        IdentityFolder(tmp_path / "none")
    with pytest.raises(SourceError, match="expected a folder of identities, got a file"):
        IdentityFolder(folder / "README")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"expected images .*/<identity>/<image>, got none"):
        IdentityFolder(tmp_path / "empty")
    for name in "CDEFGHI":
        (folder / name).mkdir()
    with pytest.raises(
        SourceError, match=r"expected an image of each identity, got none of C, D, E, F, G and 2 more \(7 in all\)"
    ):
        IdentityFolder(folder)


def test_two_files_of_one_name(folder: Path) -> None:
    (folder / "Ann" / "a.jpg").touch()
    with pytest.raises(SourceError, match="expected one image of each name, got"):
        IdentityFolder(folder)


def test_bad_sizes(folder: Path) -> None:
    for size in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="size: expected a positive number"):
            IdentityFolder(folder, size=size)


# LFW


@pytest.fixture
def tiny_lfw(tmp_path: Path) -> Path:
    root = tmp_path / "lfw"
    for person, count in (("Ann_Lee", 2), ("Bob", 1), ("Cy", 2)):
        (root / "images" / person).mkdir(parents=True)
        for number in range(1, count + 1):
            write_png(root / "images" / person / f"{person}_{number:04d}.png", noise(number, 250, 250))
    (root / "pairs.txt").write_text(
        "2\t1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBob\t1\nCy\t1\t2\nBob\t1\tCy\t2\n", encoding="utf-8"
    )
    (root / "pairsDevTest.txt").write_text("1\nCy\t1\t2\nBob\t1\tCy\t2\n", encoding="utf-8")
    return root


def test_lfw_pairs(tiny_lfw: Path) -> None:
    lfw = LFW(tiny_lfw)
    assert len(lfw) == 5
    assert lfw.pairs == (
        Pair(first="Ann_Lee/Ann_Lee_0001", second="Ann_Lee/Ann_Lee_0002", same=True, fold=0),
        Pair(first="Ann_Lee/Ann_Lee_0001", second="Bob/Bob_0001", same=False, fold=0),
        Pair(first="Cy/Cy_0001", second="Cy/Cy_0002", same=True, fold=1),
        Pair(first="Bob/Bob_0001", second="Cy/Cy_0002", same=False, fold=1),
    )
    assert [pair.fold for pair in lfw.dev_pairs] == [None, None]


def test_lfw_flat_layout(tiny_lfw: Path) -> None:
    for person in (tiny_lfw / "images").iterdir():
        person.rename(tiny_lfw / person.name)
    (tiny_lfw / "images").rmdir()
    assert len(LFW(tiny_lfw).pairs) == 4


def test_lfw_uses_landmarks_where_they_are(tiny_lfw: Path) -> None:
    fallback = LFW(tiny_lfw).load("Bob/Bob_0001")
    np.testing.assert_allclose(fallback.matrix[0, 0], 112 / 131.4)
    (tiny_lfw / "landmarks.txt").write_text(f"Bob/Bob_0001.jpg {POINTS}\n")
    aligned = LFW(tiny_lfw).load("Bob/Bob_0001")
    np.testing.assert_allclose(aligned.matrix, [[1 / 1.2, 0, -40 / 1.2], [0, 1 / 1.2, -40 / 1.2]], atol=1e-3)
    assert LFW(tiny_lfw, size=160).load("Bob/Bob_0001").image.shape == (3, 160, 160)
    assert LFW(tiny_lfw, size=None).load("Bob/Bob_0001").image.shape == (3, 250, 250)


def test_lfw_names_missing_images(tiny_lfw: Path) -> None:
    (tiny_lfw / "images" / "Cy" / "Cy_0002.png").unlink()
    with pytest.raises(SourceError, match=r"pairs\.txt: images are missing below .*: Cy/Cy_0002"):
        _ = LFW(tiny_lfw).pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: expected the number of folds"),
        ("ten 3\n", r":1: expected the number of folds"),
        ("1 1\nCy 1 2\n", "expected 2 pairs after the first line, got 1"),
        ("1 1\nCy 1 two\nBob 1 Cy 1\n", r":2: expected 'person number number', got 'Cy 1 two'"),
        ("1 1\nCy 1 2\nBob 1 2\n", r":3: expected 'person number person number', got 'Bob 1 2'"),
        ("1 1\nCy 1 2\nCy 1 Cy 2\n", r":3: expected two people, got Cy and Cy"),
        ("1 1\nCy 1 Bob 1\nBob 1 Cy 1\n", r":2: expected one person"),
    ],
)
def test_malformed_lfw_pairs(tiny_lfw: Path, text: str, message: str) -> None:
    (tiny_lfw / "pairs.txt").write_text(text)
    with pytest.raises(SourceError, match=rf"pairs\.txt:? ?{message}"):
        _ = LFW(tiny_lfw).pairs


def test_missing_lfw_pairs(tiny_lfw: Path) -> None:
    (tiny_lfw / "pairs.txt").unlink()
    with pytest.raises(SourceError, match=r"pairs\.txt: the pairs cannot be read"):
        _ = LFW(tiny_lfw).pairs


@pytest.mark.faces
def test_the_real_lfw(lfw_root: Path) -> None:
    lfw = LFW(lfw_root)
    assert len(lfw.pairs) == 6000
    assert sum(pair.same for pair in lfw.pairs) == 3000
    assert [sum(pair.fold == fold for pair in lfw.pairs) for fold in range(10)] == [600] * 10
    assert len(lfw.dev_pairs) == 1000
    names = lfw.names[::500]
    faces = list(lfw.stream(names))
    assert [face.name for face in faces] == list(names)
    for face in faces:
        assert face.image.shape == (3, 112, 112)
        again, matrix = align(read_image(lfw.path(face.name)), lfw.landmarks[face.name])
        assert torch.equal(face.image, to_tensor(again))
        np.testing.assert_array_equal(face.matrix, matrix)


# CSV


def test_pairs_csv_round_trip(tmp_path: Path) -> None:
    pairs = (
        Pair(first="a/1", second='b, "c"/2', same=True, fold=3),
        Pair(first="é/1", second="b/2", same=False, fold=0),
    )
    write_pairs_csv(tmp_path / "p.csv", pairs)
    assert read_pairs_csv(tmp_path / "p.csv") == pairs
    write_pairs_csv(tmp_path / "q.csv", [Pair(first="a", second="b", same=True)])
    assert (tmp_path / "q.csv").read_bytes() == b"first,second,same\na,b,1\n"


def test_pairs_csv_of_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbffirst, second ,same\r\na, b,TRUE\r\n\r\nc,d,false\r\n")
    assert [pair.same for pair in read_pairs_csv(tmp_path / "p.csv")] == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.csv: expected the header .*, got no pairs"),
        ("first,second,same\n", "p.csv: expected the header .*, got no pairs"),
        ("a,b,1\n", r"p.csv:1: expected the header"),
        ("first,second,same\na,b,1\na,b\n", r"p.csv:3: expected 3 columns, got 2"),
        ("first,second,same\na,b,yes\n", r"p.csv:2: same: expected 1, 0, true or false, got 'yes'"),
        ("first,second,same,fold\na,b,1,x\n", r"p.csv:2: fold: expected a whole number from 0"),
        ("first,second,same,fold\na,b,1,-1\n", r"p.csv:2: fold: expected a whole number from 0"),
        ("first,second,same\n,b,1\n", r"p.csv:2: pair: expected two names"),
        ('first,second,same\n"a,b,1\n', r"p.csv:\d: unexpected end"),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(PairError, match=message):
        read_pairs_csv(tmp_path / "p.csv")


def test_csv_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="cannot be read"):
        read_pairs_csv(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\x00")
    with pytest.raises(PairError, match="cannot be read"):
        read_pairs_csv(tmp_path / "binary.csv")
    mixed = [Pair(first="a", second="b", same=True), Pair(first="a", second="b", same=True, fold=1)]
    for pairs in ([], mixed):
        with pytest.raises(PairError, match="expected at least one, with folds for all or for none"):
            write_pairs_csv(tmp_path / "p.csv", pairs)
    assert not (tmp_path / "p.csv").exists()
