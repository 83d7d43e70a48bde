"""What a data set holds and its reader does not take: one rule for folder and tar, and nothing in silence."""

import io
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from image_bytes import encoded
from PIL import Image

from fastadv.core.notices import Notice
from fastadv.data import LFW, IdentityFolder, Shards, SourceError, formats
from fastadv.runs.inputs import open_faces

PIXELS = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
HEIC = b"\0\0\0\x18ftypheic" + bytes(20)


JPEG, PNG, GIF, JP2, WEBP = (encoded(PIXELS, format) for format in ("JPEG", "PNG", "GIF", "JPEG2000", "WEBP"))
MPO = encoded(PIXELS, "MPO", save_all=True, append_images=[Image.fromarray(PIXELS).resize((8, 8))])
FILES = {
    "a/1.jpg": JPEG,
    "a/2.JFIF": JPEG,
    "a/3.jpe": JPEG,
    "a/4.mpo": MPO,
    "a/5.jpg": WEBP,  # by content, not by extension
    "a/6.heic": JPEG,
    "a/7.gif": GIF,
    "a/8.jp2": JP2,
    "a/9.HEIC": HEIC,
    "a/10": JPEG,
    "a/11.jpg.bak": JPEG,
    "a/Thumbs.db": b"\xd0\xcf\x11\xe0",
    "a/notes.txt": b"hello",
    "a/._1.jpg": b"\0\5\x16\7",
    "a/.cache/1.jpg": JPEG,
    "__MACOSX/a/1.jpg": b"",
    "x.jpg/1.png": PNG,
    "b/c/1.png": PNG,
    "stray.png": PNG,
    "README.md": b"text",
}
TAKEN = ("a/1", "a/2", "a/3", "a/4", "a/5", "a/6", "b/c/1", "x.jpg/1")


@pytest.fixture(autouse=True)
def no_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the extra."""
    monkeypatch.setattr(formats, "reads_heic", lambda: False)


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def shards(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(params=["folder", "tar"])
def opened(request, tmp_path: Path):
    """Opens files as a folder and as a tar."""

    def open_files(files: dict[str, bytes]) -> IdentityFolder | Shards:
        if request.param == "folder":
            return IdentityFolder(folder(tmp_path / "f", files))
        return Shards(shards(tmp_path / "x.tar", files))

    return open_files


def test_one_rule_for_folder_and_tar(opened) -> None:
    with pytest.warns(Notice) as said:
        source = opened(FILES)
    assert source.names == TAKEN
    nested, left = (str(each.message) for each in said)
    assert (
        "1 of 8 images lie deeper than <identity>/<image>: each folder is an identity of its own, such as b/c" in nested
    )
    assert "images left out: 1 .gif, 1 .heic, 1 .jp2 (formats that are not read, such as a/" in left
    assert "2 without the extension of an image (such as a/10)" in left
    assert "1 without an identity, expected <identity>/<image> (such as stray.png)" in left
    for ignored in ("Thumbs", "notes", "cache", "MACOSX", "README"):
        assert ignored not in left
    for face in source.stream():
        assert face.image.shape == (3, 112, 112)


def test_a_plain_data_set_says_nothing(opened) -> None:
    assert opened({"a/1.jpg": JPEG, "b/1.png": PNG, "a/notes.txt": b"x", "b/.hidden.gif": GIF}).names == ("a/1", "b/1")


def test_an_identity_of_files_that_are_not_read_names_them(opened) -> None:
    files = {"a/1.jpg": JPEG, "c/1.HEIC": HEIC, "c/2.heic": HEIC, "c/3.gif": GIF}
    with pytest.raises(
        SourceError, match=r"expected an image of each identity, got none of c \(left out: 1 \.gif, 2 \.heic\)"
    ):
        opened(files)


def test_nothing_but_files_that_are_not_read(opened) -> None:
    with pytest.raises(SourceError, match=r"got none; left out: 2 \.heic \(formats that are not read"):
        opened({"a/1.heic": HEIC, "b/1.heic": HEIC})


def test_nothing_but_images_without_a_folder(opened) -> None:
    with pytest.raises(SourceError, match=r"got none; left out: 2 without an identity"):
        opened({"1.png": PNG, "2.png": PNG})


def test_two_images_of_one_name(opened) -> None:
    assert opened({"a/1.jpg": JPEG, "b/1.jpg": JPEG}).names == ("a/1", "b/1")
    with pytest.raises(
        SourceError, match="expected one image of each name|expected one image in the sample a/1, got 2"
    ):
        opened({"a/1.jpg": JPEG, "a/1.jfif": JPEG, "b/1.jpg": JPEG})


def test_the_original_beside_the_converted_image_is_said(opened) -> None:
    with pytest.warns(Notice, match=r"images left out: 1 \.heic"):
        assert opened({"a/1.heic": HEIC, "a/1.jpg": JPEG}).names == ("a/1",)


def test_links(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", {"a/1.jpg": JPEG, "b/1.jpg": JPEG})
    (root / "a" / "2.jpg").symlink_to("nowhere.jpg")
    (root / "a" / "3.jpg").symlink_to("1.jpg")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "4.jpg").symlink_to("4.jpg")  # to itself
    (root / "linked").symlink_to("b")
    with pytest.warns(Notice) as said:
        source = IdentityFolder(root)
    assert source.names == ("a/1", "a/3", "b/1", "linked/1")
    (left,) = (str(each.message) for each in said)
    assert "2 of links that lead nowhere and of what is no plain file (such as a/2.jpg)" in left
    assert "1 of links to a folder that they lie in (such as a/up)" in left


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", {"a/1.jpg": JPEG})
    os.mkfifo(root / "a" / "2.jpg")
    with pytest.warns(Notice, match=r"1 of links that lead nowhere and of what is no plain file \(such as a/2\.jpg\)"):
        assert IdentityFolder(root).names == ("a/1",)


def test_labels_and_dots_in_a_tar(tmp_path: Path) -> None:
    files = {
        "j.r_1.png": PNG,
        "j.r_1.cls": b"Jo",
        "j.r_2.png": PNG,
        "j.r_2.json": b'{"identity": "Jo"}',
        "7.cls": b"Bo",
        "7.jpg": JPEG,
        "7.mask.png": PNG,
    }
    with pytest.warns(Notice, match=r"1 beside the image of a sample with a label \(such as 7\.mask\.png\)"):
        assert Shards(shards(tmp_path / "x.tar", files)).names == ("Bo/7", "Jo/j.r_1", "Jo/j.r_2")


def test_images_beside_the_folder_that_is_read(tmp_path: Path) -> None:
    root = folder(tmp_path, {"images/a/a_0001.jpg": JPEG, "masks/a/1.png": PNG, "run/run.json": b"{}", "x.png": PNG})
    folder(root / "run", {"images/a/1.png": PNG})
    folder(root / "subsets", {"list.txt": b"a"})
    with pytest.warns(Notice, match=r"only images/ is read; images left out: masks/, x\.png$"):
        assert LFW(root).names == ("a/a_0001",)


def test_a_person_called_images(tmp_path: Path) -> None:
    root = folder(tmp_path, {"images/1.jpg": JPEG, "bob/1.jpg": JPEG})
    source = open_faces(root, size=112)
    assert isinstance(source, IdentityFolder)
    assert source.names == ("bob/1", "images/1")


def test_a_run_is_taken_as_its_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "run", {"images/a/1__b+2.png": PNG, "images/b/2.png": PNG, "run.json": b"{}"})
    folder(root, {"manifest.jsonl": b"", "manifest.parquet": b""})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_faces(root, size=112)
        faces = list(source.stream())
    assert [face.name for face in faces] == ["a/1__b+2", "b/2"]
    np.testing.assert_array_equal((faces[0].image.numpy() * 255).round(), np.moveaxis(PIXELS, -1, 0))
    with pytest.raises(
        ValueError, match="landmarks: expected none for .*run, a run, whose images are aligned already, got"
    ):
        open_faces(root, size=112, landmarks=tmp_path / "l.txt")
