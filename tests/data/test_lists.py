"""Lists of images and of pairs, in the forms that data sets publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastadv.core.notices import Notice
from fastadv.data import IdentityFolder, ImageList, Pair, PairError, SourceError, read_pair_list, write_png
from fastadv.data.pair_lists import read_pairs_of
from fastadv.runs.inputs import open_faces

PIXELS = np.zeros((4, 4, 3), np.uint8)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, PIXELS)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("p/1.png\nq/2.png\n", ("p/1", "q/2")),
        ("p/1.png 0\nq/2.png 17\n", ("0/p_1", "17/q_2")),
        ("0\t5\tp/1.png\n1\t6\tq/2.png\n", ("5/p_1", "6/q_2")),  # MXNet
        ("1\tp/1.png\t5\n1\tq/2.png\t6\n", ("5/p_1", "6/q_2")),  # InsightFace
        ("path,label\np/1.png,p\nq/2.png,q\n", ("p/1", "q/2")),
        ("# of two\n\n./p/1.png p\nq\\2.png q\n", ("p/1", "q/2")),
        ("p/a b.png\tAnn Lee\nq/2.png\tq\n", ("Ann Lee/p_a b", "q/2")),
    ],
)
def test_lists_of_images(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    for name in ("p/1.png", "q/2.png", "p/a b.png"):
        picture(tmp_path / name)
    (tmp_path / "list.txt").write_text(text)
    source = open_faces(tmp_path / "list.txt", size=4)
    assert isinstance(source, ImageList)
    assert source.names == tuple(sorted(names))
    assert all(face.image.shape == (3, 4, 4) for face in source.stream())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p/1.png 0\np/1.png 0\n", "list.txt:2: expected each image once, got 0/p_1 twice"),
        ("p/1.png 0\nnothing\n", "list.txt:2: expected the path of an image, got 'nothing'"),
        ("p/1.png 0\np/3.png 0\n", "list.txt: images are missing: .*3.png"),
        ("1.png\n", "list.txt:1: expected a usable name, got 1: the image lies in no folder and has no label"),
        ("../p/1.png\n", "list.txt:1: expected a usable name, .* leaves its folder"),
        ("a header\n", "list.txt: expected lines with the path of an image, got none"),
    ],
)
def test_lists_of_images_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "p/1.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(SourceError, match=message):
        ImageList(tmp_path / "list.txt")


A, B, C = "a/1.png", "a/2.png", "b/1.png"
SAME, OTHER = Pair(first=A, second=B, same=True), Pair(first=A, second=C, same=False)


@pytest.mark.parametrize(
    "text",
    [
        f"{A} 1\n{B} 1\n{A} 0\n{C} 0\n",  # CPLFW
        f"{A} 10\n{B} 10\n\n{A} 0\n{C} 0\n",  # CALFW: the fold
        f"{A} {B} 1\n{A} {C} 0\n",
        f"{A}\t{B}\ttrue\n{A}\t{C}\tfalse\n",
        f"image1,image2,label\n{A},{B},1\n{A},{C},-1\n",
        f"first,second,same\n{A},{B},1\n{A},{C},0\n",
    ],
)
def test_lists_of_pairs(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    assert read_pair_list(tmp_path / "pairs.txt") == (SAME, OTHER)


def test_the_list_of_lfw(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("1\nAnn\t1\t2\nAnn\t1\tBob\t1\n")
    assert [pair.same for pair in read_pair_list(tmp_path / "pairs.txt")] == [True, False]


def cfp(root: Path) -> Path:
    for kind, count in (("F", 2), ("P", 1)):
        folder = {"F": "frontal", "P": "profile"}[kind]
        lines = []
        for who in (1, 2):
            for k in range(count):
                path = f"Data/Images/{who:03d}/{folder}/{k + 1:02d}.png"
                picture(root / path)
                lines.append(f"{len(lines) + 1} ../{path}\n")
        (root / "Protocol").mkdir(exist_ok=True)
        (root / "Protocol" / f"Pair_list_{kind}.txt").write_text("".join(lines))
    for kind, same, different in (("FF", "1,2\n", "1,3\n"), ("FP", "1,1\n", "1,2\n")):
        for fold in ("01", "02"):
            folder = root / "Protocol" / "Split" / kind / fold
            folder.mkdir(parents=True)
            (folder / "same.txt").write_text(same)
            (folder / "diff.txt").write_text(different)
    return root


@pytest.mark.parametrize("below", ["Data", "Data/Images"])
def test_cfp_from_whichever_folder_is_given(tmp_path: Path, below: str) -> None:
    cfp(tmp_path)
    with pytest.warns(Notice, match="images lie deeper"):
        source = IdentityFolder(tmp_path / below, size=4)
    pairs = read_pairs_of(source, tmp_path / "Protocol" / "Split" / "FP")
    assert [(p.same, p.fold) for p in pairs] == [(True, 0), (False, 0), (True, 1), (False, 1)]
    assert all(p.first in source and p.second in source for p in pairs)
    assert pairs[0].first.endswith("001/frontal/01")
    assert pairs[1].second.endswith("002/profile/01")
    frontal = read_pairs_of(source, tmp_path / "Protocol" / "Split" / "FF")
    assert frontal[1].second.endswith("002/frontal/01")


def test_names_without_folders_mean_the_only_image_of_that_name(tmp_path: Path) -> None:
    for name in ("aligned images/Ann_0001.png", "aligned images/Bob_0001.png", "b/twice.png", "c/twice.png"):
        picture(tmp_path / name)
    source = IdentityFolder(tmp_path, size=4)
    file = tmp_path / "pairs_CALFW.txt"
    file.write_text("Ann_0001.png 0\nBob_0001.png 0\n")
    assert read_pairs_of(source, file)[0].first == "aligned images/Ann_0001"
    file.write_text("Ann_0001.png 0\ntwice.png 0\n")
    with pytest.raises(PairError, match=r"1 images of the pairs are missing, first twice\.png"):
        read_pairs_of(source, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a line per pair, got none"),
        (f"{A} 1\n", "expected two lines a pair, got 1 lines"),
        (f"{A} 1\n{B} 0\n", ":1: expected one label for both images of a pair, got 1 and 0"),
        (f"{A} 1\n{B} x\n", ":1: expected an image and a number"),
        (f"{A} {B} 1\n{A} {C}\n", ":2: expected two images and 1 or 0"),
        (f"{A} {B} 1\n{A} {C} 7\n", ":2: expected 1 for the same person and 0 for different people, got '7'"),
    ],
)
def test_lists_of_pairs_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(PairError, match=message):
        read_pair_list(tmp_path / "pairs.txt")


def test_a_cfp_folder_that_cannot_be_used(tmp_path: Path) -> None:
    cfp(tmp_path)
    split = tmp_path / "Protocol" / "Split"
    (split / "FP" / "01" / "same.txt").write_text("1,99\n")
    with pytest.raises(PairError, match=r"same\.txt:1: expected the numbers of two images, got '1,99'"):
        read_pair_list(split / "FP")
    with pytest.raises(PairError, match="expected folders such as 01 with same.txt and diff.txt, got none"):
        read_pair_list(split / "FP" / "01")
