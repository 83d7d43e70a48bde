"""One rule for names: files, members of a tar, landmark lists, pair lists."""

import io
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from fastadv.core.errors import Error
from fastadv.data import (
    LFW,
    AlignmentError,
    IdentityFolder,
    Pair,
    PairError,
    Shards,
    SourceError,
    names,
    read_landmarks,
    read_pairs_csv,
    write_png,
)
from fastadv.data.alignment import template
from fastadv.data.images import encode_png
from fastadv.data.lfw import read_lfw_pairs, write_lfw_pairs
from fastadv.data.pair_lists import read_pairs_of

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
NUMBERS = [f"{v:.3f}" for v in (template(112) + 5).ravel()]
ACCENT = "\u00e9"
APART = unicodedata.normalize("NFD", ACCENT)
FILES = ("Mr.A_0001.png", "j.r_1.png", "j.r_2.png", "a b.png", f"{APART}.png", "x.jpg.png", "dr.b_1.a.png")
FOUND = ("Mr.A_0001", "j.r_1", "j.r_2", "a b", ACCENT, "x.jpg", "dr.b_1.a")


def folder(root: Path) -> IdentityFolder:
    for file in FILES:
        (root / "p").mkdir(parents=True, exist_ok=True)
        write_png(root / "p" / file, IMAGE)
    return IdentityFolder(root, size=16)


def shards(path: Path) -> Shards:
    with tarfile.open(path, "w") as archive:
        for file in FILES:
            info = tarfile.TarInfo(f"p/{file}")
            info.size = len(encode_png(IMAGE))
            archive.addfile(info, io.BytesIO(encode_png(IMAGE)))
    return Shards(path, size=16)


def test_a_folder_and_a_tar_give_the_same_names(tmp_path: Path) -> None:
    wanted = tuple(sorted(f"p/{name}" for name in FOUND))
    assert folder(tmp_path / "f").names == wanted
    assert shards(tmp_path / "x.tar").names == wanted


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("p/Mr.A_0001", "p/Mr.A_0001"),
        ("p/Mr.A_0001.png", "p/Mr.A_0001"),
        ("p/Mr.A_0001.HEIC", "p/Mr.A_0001"),  # before it was converted
        ("p/j.r_1", "p/j.r_1"),
        ("p/j.r_1.png", "p/j.r_1"),
        ("./p/a b.png", "p/a b"),
        ("p\\a b.png", "p/a b"),
        (".\\p\\a b", "p/a b"),
        ("  p/a b ", "p/a b"),
        (f"p/{APART}", f"p/{ACCENT}"),
        (f"p/{ACCENT}.png", f"p/{ACCENT}"),
        ("p/x.jpg", "p/x.jpg"),  # as it is, where that exists
        ("p/x.jpg.png", "p/x.jpg"),
        ("p/j", None),
        ("p/dr", None),
        ("p/../p/a b", None),
        ("/p/a b", None),
        ("", None),
        ("p/" + "y" * 5000, None),
    ],
)
def test_what_a_list_writes_is_found(tmp_path: Path, written: str, meant: str | None) -> None:
    assert folder(tmp_path).find(written) == meant


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", "utf-16"], ids=["plain", "mark", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_lists_of_any_editor(tmp_path: Path, start: bytes | str, ends: str) -> None:
    def write(name: str, lines: list[str]) -> Path:
        text = ends.join([*lines, ""])
        data = text.encode("utf-16") if isinstance(start, str) else start + text.encode()
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    source = folder(tmp_path / "f")
    by_tabs = ["\t".join([f"p/{APART}.png", *NUMBERS]), "\t".join(["p/a b", *NUMBERS, "0.9"])]
    found = read_landmarks(write("l.txt", by_tabs))
    assert list(found) == [f"p/{ACCENT}", "p/a b"]
    csv = write("p.csv", ["first,second,same", f"p/{APART}.png,p/a b,1", "p/x.jpg,p\\j.r_1.png,0"])
    assert read_pairs_of(source, csv) == (
        Pair(first=f"p/{ACCENT}", second="p/a b", same=True),
        Pair(first="p/x.jpg", second="p/j.r_1", same=False),
    )
    pairs = read_lfw_pairs(write("pairs.txt", ["1", "Ann Lee\t1\t2", f"Ann Lee\t1\t{APART}\t2"]))
    assert pairs[0].second == "Ann Lee/Ann Lee_0002"


def test_landmarks_by_any_name_reach_their_faces(tmp_path: Path) -> None:
    folder(tmp_path / "f")
    for name in (tmp_path / "f" / "p").iterdir():
        write_png(name, np.zeros((130, 130, 3), np.uint8))
    marks = tmp_path / "l.txt"
    marks.write_text("".join(f"p/{name}\t" + "\t".join(NUMBERS) + "\n" for name in FILES))
    source = IdentityFolder(tmp_path / "f", landmarks=marks)
    assert sorted(source.landmarks) == list(source.names)
    assert len(list(source.stream())) == len(FILES)
    bare = {f"p/{name}": np.array(NUMBERS, float).reshape(5, 2) for name in FOUND}
    assert sorted(IdentityFolder(tmp_path / "f", landmarks=bare).landmarks) == list(source.names)
    with pytest.raises(AlignmentError, match="expected lines for images such as p/Mr.A_0001, got 1 of other names"):
        IdentityFolder(tmp_path / "f", landmarks={"images/p/a b": bare["p/a b"]})
    with pytest.raises(AlignmentError, match="expected each image once, got p/a b twice"):
        IdentityFolder(tmp_path / "f", landmarks={"p/a b": bare["p/a b"], "p/a b.png": bare["p/a b"]})


def line(*fields: str) -> str:
    return " ".join(fields)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (line("Ann Lee/Ann Lee_0001.png", *NUMBERS), "Ann Lee/Ann Lee_0001"),
        (line("Ann Lee/Ann  Lee 7.png", *NUMBERS, "0.5"), "Ann Lee/Ann  Lee 7"),
        (line("Ann Lee/Ann Lee_0001", *NUMBERS), "Ann Lee/Ann Lee_0001"),
        (line("dr.b/dr.b_1.a", *NUMBERS, "0.5"), "dr.b/dr.b_1.a"),
    ],
)
def test_landmarks_of_names_with_spaces(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "l.txt").write_text(text)
    found = read_landmarks(tmp_path / "l.txt")
    assert list(found) == [name]
    np.testing.assert_array_equal(found[name].ravel(), np.array(NUMBERS, float))


def test_a_name_whose_end_cannot_be_told_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(line("Ann Lee/Ann Lee", *NUMBERS, "0.5"))
    with pytest.raises(AlignmentError, match=r"l\.txt:1: cannot tell the name, which has a space, .* put tabs"):
        read_landmarks(tmp_path / "l.txt")


@pytest.mark.parametrize(
    ("same", "other", "wanted"),
    [
        ("Ann Lee\t1\t2", "Ann Lee\t1\tBo Ek\t2", ("Ann Lee", "Bo Ek")),
        ("Ann Lee 1 2", "Ann Lee 1 Bo Ek 2", ("Ann Lee", "Bo Ek")),
        ("Henry 8 1 2", "Henry 8\t1\tBo\t2", ("Henry 8", "Bo")),
        ("0000045 1 2", "0000045 1 0000099 2", ("0000045", "0000099")),
        ("7 1 7 2", "7 1 8 2", ("7", "8")),
    ],
)
def test_pairs_txt_of_people_with_spaces_and_numbers(tmp_path: Path, same: str, other: str, wanted: tuple) -> None:
    (tmp_path / "pairs.txt").write_text(f"1\n{same}\n{other}\n")
    first, second = wanted
    made = read_lfw_pairs(tmp_path / "pairs.txt")
    assert [(p.first, p.second) for p in made] == [
        (f"{first}/{first}_0001", f"{first}/{first}_0002"),
        (f"{first}/{first}_0001", f"{second}/{second}_0002"),
    ]
    write_lfw_pairs(tmp_path / "again.txt", made)
    assert read_lfw_pairs(tmp_path / "again.txt") == made


def test_a_line_of_pairs_that_can_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("1\nAnn 1 2\nAnn 1 3 B 4\n")
    with pytest.raises(SourceError, match=r"pairs\.txt:3: .* put tabs between the fields"):
        read_lfw_pairs(tmp_path / "pairs.txt")


def test_lfw_in_the_other_unicode_form(tmp_path: Path) -> None:
    (tmp_path / APART).mkdir()
    for k in (1, 2):
        write_png(tmp_path / APART / f"{APART}_000{k}.png", IMAGE)
    (tmp_path / "b").mkdir()
    write_png(tmp_path / "b" / "b_0001.png", IMAGE)
    (tmp_path / "pairs.txt").write_text(f"1\n{ACCENT}\t1\t2\n{APART}\t1\tb\t1\n")
    source = LFW(tmp_path, size=16)
    assert {n for p in source.pairs for n in (p.first, p.second)} == set(source.names)


def test_two_forms_of_one_name_are_two_images_of_one_name(tmp_path: Path) -> None:
    for name in (ACCENT, APART):
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / "1.png", IMAGE)
    with pytest.raises(SourceError, match="expected one image of each name, got"):
        IdentityFolder(tmp_path)


def test_missing_images_are_named_with_what_may_be_meant(tmp_path: Path) -> None:
    source = folder(tmp_path / "f")
    (tmp_path / "p.csv").write_text("first,second,same\np/a b,data/f/p/q/none_1.png,1\n")
    with pytest.raises(
        PairError, match=r"1 images of the pairs are missing, first data/f/p/q/none_1\.png; its images are"
    ):
        read_pairs_of(source, tmp_path / "p.csv")
    with pytest.raises(KeyError, match=r"expected some of the 7 images, got data/f/p/j\.r_1\.png; p/j\.r_1 is$"):
        source.stream(["data/f/p/j.r_1.png"])
    with pytest.raises(KeyError, match="expected .* of the 7 images, got .*; p/.* is .in the Unicode form NFC"):
        source.load(f"p/{APART}")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a/b\\c", "backslash"),
        ("a/b\nc", "control character"),
        ("a/../c", "leaves its folder"),
        ("/a", "empty part"),
        ("a/" + "\u00e9" * 126, "longer than 251 bytes"),
        ("\u00e9" * 128 + "/b", "longer than 251 bytes"),
        ("a/\udce9", "the file name is not UTF-8"),
    ],
)
def test_names_that_no_run_could_write(name: str, why: str) -> None:
    assert why in str(names.fault(name))


def test_names_at_the_limit() -> None:
    assert names.fault("\u00e9" * 127 + "/" + "x" * 251) is None


@pytest.mark.parametrize("file", ["b\\c.png", "b\nc.png"])
def test_a_folder_refuses_the_names_that_a_tar_refuses(tmp_path: Path, file: str) -> None:
    (tmp_path / "a").mkdir()
    write_png(tmp_path / "a" / file, IMAGE)
    with pytest.raises(SourceError, match="backslash or a control character; rename it"):
        IdentityFolder(tmp_path)


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(b"caf\xe9/1 1 2")
    for read in (read_landmarks, read_lfw_pairs, read_pairs_csv):
        for path in (tmp_path / "l", tmp_path / "none", tmp_path):
            with pytest.raises(Error, match="cannot be read"):
                read(path)
