"""`fastadv align` in Python, with a detector whose faces are known: choice, files, resuming, what is left out."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from run_files import content

from fastadv.data import (
    TEMPLATES,
    Detections,
    IdentityFolder,
    RunFolderError,
    SourceError,
    face_search,
    read_image,
    read_landmarks,
    to_uint8,
    write_png,
)
from fastadv.runs.inputs import open_faces
from fastadv.studies.align.folder import AlignPlan, align_folder

FACE = TEMPLATES["arcface"].array - 56


class Known:
    """As many faces as the first pixel says, side by side: each smaller, with a lower score, than the one before."""

    def __init__(self, stop_after=None):
        self.identity = {"name": "known"}
        self.calls, self.left = [], stop_after

    def __call__(self, images, /):
        self.calls.append(len(images))
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return [self.faces(int(image[0, 0, 0]), *image.shape[:2]) for image in images]

    @staticmethod
    def faces(count, height, width):
        scales = np.linspace(0.5, 1.0, count) if count > 1 else np.ones(count)
        centres = np.array([(width * (k + 0.5) / count, height / 2) for k in range(count)]).reshape(-1, 2)
        points = (FACE * scales[:, None, None] + centres[:, None])[::-1]
        return Detections(
            boxes=np.concatenate([points.min(1) - 20, points.max(1) + 20], 1),
            landmarks=points,
            scores=np.linspace(0.99, 0.75, count),
        )


def photograph(path, faces, size=(130, 400), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image[0, 0] = faces
    write_png(path, image)
    return image


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for k, faces in enumerate((1, 3, 0, 2, 1)):
        photograph(root / f"person{k % 2}" / f"{k}.png", faces, seed=k)
    return root


def align(photos, out, detector=None, **settings):
    return align_folder(AlignPlan(photos=photos, out=out, **settings), detector or Known())


def report(out):
    return {row["picture"]: row for row in map(json.loads, (out / "report.jsonl").read_text().splitlines())}


def files(out):
    return sorted(p.relative_to(out / "images").as_posix() for p in (out / "images").rglob("*.png"))


def test_the_largest_face_of_each_photograph(photos, tmp_path):
    out = tmp_path / "faces"
    found = align(photos, out)
    assert (found.pictures, found.aligned, found.faces, found.found, found.without_face) == (5, 4, 4, 7, 1)
    assert files(out) == ["person0/0.png", "person0/4.png", "person1/1.png", "person1/3.png"]
    rows = report(out)
    assert list(rows) == sorted(rows)
    assert rows["person0/2.png"]["skipped"] == "no face was found"
    three = rows["person1/1.png"]
    assert (three["width"], three["height"], three["found"], three["skipped"]) == (400, 130, 3, "")
    (face,) = three["faces"]
    assert (face["name"], face["score"]) == ("person1/1", 0.99)
    np.testing.assert_allclose(np.reshape(face["landmarks"], (5, 2)), Known.faces(3, 130, 400).landmarks[0], atol=1e-3)
    assert any("person0/2.png" in notice for notice in found.notices)


def test_the_central_face_and_all_of_them(photos, tmp_path):
    align(photos, tmp_path / "central", choice="central")
    (face,) = report(tmp_path / "central")["person1/1.png"]["faces"]
    np.testing.assert_allclose(np.mean(face["box"][::2]), 200, atol=2)  # of three in a row, the middle one
    found = align(photos, tmp_path / "all", choice="all")
    assert found.faces == found.found == 7
    assert files(tmp_path / "all")[2:] == [f"person1/{n}.png" for n in ("1", "1__2", "1__3", "3", "3__2")]
    sizes = [
        np.prod(np.subtract(f["box"][2:], f["box"][:2])) for f in report(tmp_path / "all")["person1/1.png"]["faces"]
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_scores_below_the_least_are_left_out(photos, tmp_path):
    found = align(photos, tmp_path / "a", choice="all", least_score=0.8)
    assert (found.found, found.faces) == (7, 5)
    align(photos, tmp_path / "b", least_score=0.995)
    rows = report(tmp_path / "b")
    assert rows["person1/1.png"]["skipped"] == "no face has a score of at least 0.995; the best has 0.990"
    assert rows["person1/1.png"]["found"] == 3
    assert (tmp_path / "b" / "landmarks.txt").read_text().count("\n") == 1


@pytest.mark.parametrize("size", [(130, 400), (700, 900)])
def test_the_list_of_landmarks_aligns_the_photographs_to_the_same_pixels(size, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    big = 4 if size[0] > 400 else 1

    class Scaled(Known):
        @staticmethod
        def faces(count, height, width):
            found = Known.faces(count, height, width)
            centre = (width / 2, height / 2)
            return Detections(
                boxes=found.boxes, landmarks=(found.landmarks - centre) * big + centre, scores=found.scores
            )

    for name in ("a b/1", "ä/2.jpg", "c/3"):
        photograph(photos / f"{name}.png", 1, size=size)
    align(photos, out, Scaled())
    source = IdentityFolder(photos, landmarks=out / "landmarks.txt", size=112)
    assert source.names == ("a b/1", "c/3", "ä/2.jpg")
    for name in source.names:
        written = read_image(out / "images" / f"{name}.png")
        np.testing.assert_array_equal(to_uint8(source.load(name).image), written)
    assert set(read_landmarks(out / "landmarks.txt")) >= {"a b/1", "c/3"}


def test_the_folder_is_data_of_the_other_commands(photos, tmp_path):
    align(photos, tmp_path / "out")
    faces = open_faces(tmp_path / "out", size=112)
    assert faces.names == ("person0/0", "person0/4", "person1/1", "person1/3")
    with pytest.raises(ValueError, match="landmarks: expected none for .*, whose images are aligned already"):
        open_faces(tmp_path / "out", size=112, landmarks=tmp_path / "out" / "landmarks.txt")


def test_template_and_margin(photos, tmp_path):
    align(photos, tmp_path / "a", template="sphereface")
    assert read_image(tmp_path / "a" / "images" / "person0" / "0.png").shape == (112, 96, 3)
    align(photos, tmp_path / "b", template="dlib", margin=0.3)
    assert read_image(tmp_path / "b" / "images" / "person0" / "0.png").shape == (150, 150, 3)


# resuming


@pytest.fixture
def two_at_a_time(monkeypatch):
    monkeypatch.setattr(face_search, "_MOST", 2)


def test_resumed_it_ends_as_without_interruption(photos, tmp_path, two_at_a_time):
    align(photos, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        align(photos, tmp_path / "out", Known(stop_after=1))
    assert len(report(tmp_path / "out")) == 2
    again = Known()
    align(photos, tmp_path / "out", again)
    assert sum(again.calls) == 3
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_interrupted_before_the_first_photograph_it_leaves_nothing(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        align(photos, tmp_path / "out", Known(stop_after=0))
    assert not (tmp_path / "out").exists()


def test_a_second_call_does_nothing(photos, tmp_path):
    first = align(photos, tmp_path / "out")
    before = content(tmp_path / "out")
    again = Known()
    assert align(photos, tmp_path / "out", again) == first
    assert (again.calls, content(tmp_path / "out")) == ([], before)


def test_a_cut_line_and_a_damaged_face_are_made_again(photos, tmp_path):
    align(photos, tmp_path / "out")
    before = content(tmp_path / "out")
    (tmp_path / "out" / "images" / "person0" / "0.png").write_bytes(b"x")
    (tmp_path / "out" / "images" / "person0" / "4.png").unlink()
    text = before["report.jsonl"]
    (tmp_path / "out" / "report.jsonl").write_bytes(b"{}\n[1]\n" + text[: len(text) - 40])
    again = Known()
    align(photos, tmp_path / "out", again)
    assert sum(again.calls) == 3
    assert content(tmp_path / "out") == before


def test_photographs_that_come_change_and_go(photos, tmp_path):
    out = tmp_path / "out"
    align(photos, out, choice="all")
    (photos / "person0" / "0.png").unlink()
    photograph(photos / "person1" / "1.png", 1)
    photograph(photos / "new" / "n.png", 1)
    again = Known()
    found = align(photos, out, again, choice="all")
    assert (sum(again.calls), found.pictures) == (2, 5)
    assert files(out) == ["new/n.png", "person0/4.png", "person1/1.png", "person1/3.png", "person1/3__2.png"]
    align(photos, tmp_path / "anew", choice="all")
    assert content(out) == content(tmp_path / "anew")


def test_another_plan_is_refused_and_fresh_begins_anew(photos, tmp_path):
    out = tmp_path / "out"
    align(photos, out, choice="all")
    for settings, text in (
        ({}, "choice: expected all"),
        ({"choice": "all", "least_score": 0.8}, "least score: expected 0.7"),
        ({"choice": "all", "margin": 0.1}, "template.points: expected those of arcface with a margin of 0"),
        ({"choice": "all", "template": "dlib"}, "template.points: expected those of arcface"),
    ):
        with pytest.raises(RunFolderError, match=f"holds another set of aligned faces; {text}"):
            align(photos, out, **settings)
    align(photos, out, fresh=True)
    align(photos, tmp_path / "anew")
    assert content(out) == content(tmp_path / "anew")


def test_a_folder_with_something_else_is_left_alone(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(RunFolderError, match="out: expected a new or empty folder, or that of a set of aligned faces"):
        align(photos, tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_a_report_cannot_make_it_touch_other_files(photos, tmp_path):
    align(photos, tmp_path / "out")
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"x")
    text = (tmp_path / "out" / "report.jsonl").read_text()
    (tmp_path / "out" / "report.jsonl").write_text(text.replace('"name": "person0/0"', '"name": "../../mine"'))
    align(photos, tmp_path / "out")
    assert mine.read_bytes() == b"x"
    assert len(files(tmp_path / "out")) == 4


# what folders hold


def test_hidden_foreign_and_broken_files_are_counted_and_named(tmp_path):
    root = tmp_path / "photos"
    good = photograph(root / "deep" / "er" / "a.png", 1)
    photograph(root / "plain.png", 1)
    (root / "modes").mkdir()
    plain = Image.fromarray(np.full((130, 200, 3), 1, np.uint8))
    for image in (plain.convert("L"), plain.convert("RGBA"), plain.quantize()):
        image.save(root / "modes" / f"{image.mode}.png")
    others = {
        "cut.png": (root / "plain.png").read_bytes()[:300],
        "empty.jpg": b"",
        "text.jpg": b"hello, this is no image",
        "same.jpg": (root / "plain.png").read_bytes(),
        "same.png": (root / "plain.png").read_bytes(),
        "film.gif": b"GIF89a" + bytes(20),
        "Thumbs.db": b"\xd0\xcf",
        ".hidden.png": (root / "plain.png").read_bytes(),
        "__MACOSX/x.png": b"x",
    }
    for name, data in others.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    if os.geteuid():
        (root / "locked.png").write_bytes(b"x")
        (root / "locked.png").chmod(0)
    found = align(root, tmp_path / "out")
    assert (found.pictures, found.aligned, found.unreadable, found.left_out) == (9 + bool(os.geteuid()), 6, 3, 2)
    rows = report(tmp_path / "out")
    assert "damaged" in rows["cut.png"]["skipped"]
    assert rows["empty.jpg"]["skipped"] == "expected an image file, got an empty one"
    assert "a text" in rows["text.jpg"]["skipped"]
    assert rows["film.gif"]["skipped"] == "the format .gif is not read"
    assert rows["same.png"]["skipped"] == "its face would have the name of that of same.jpg"
    assert str(tmp_path) not in (tmp_path / "out" / "report.jsonl").read_text()
    assert files(tmp_path / "out") == sorted(
        ["deep/er/a.png", "plain/plain.png", "same/same.png", *(f"modes/{mode}.png" for mode in ("L", "RGBA", "P"))]
    )
    said = " ".join(found.notices)
    assert all(name in said for name in ("cut.png", "empty.jpg", "text.jpg", "film.gif", "same.png"))
    assert good.shape == (130, 400, 3)


def test_a_photograph_with_the_name_of_a_further_face_is_left_out(tmp_path):
    root = tmp_path / "photos"
    photograph(root / "p" / "a.png", 2)
    photograph(root / "p" / "a__2.png", 1)
    photograph(root / "p" / "b__2.png", 1)
    found = align(root, tmp_path / "all", choice="all")
    assert (found.pictures, found.left_out) == (2, 1)
    assert report(tmp_path / "all")["p/a__2.png"]["skipped"].startswith("a further face of another photograph")
    assert align(root, tmp_path / "largest").pictures == 3


def test_landmarks_that_cannot_be_aligned_are_the_reason(photos, tmp_path):
    class Mirrored(Known):
        @staticmethod
        def faces(count, height, width):
            found = Known.faces(count, height, width)
            return Detections(boxes=found.boxes, landmarks=found.landmarks[:, [1, 0, 2, 4, 3]], scores=found.scores)

    class Outside(Known):
        @staticmethod
        def faces(count, height, width):
            found = Known.faces(count, height, width)
            return Detections(boxes=found.boxes, landmarks=found.landmarks + 1000, scores=found.scores)

    for detector, text in ((Mirrored(), "mirrored"), (Outside(), "expected points inside of the picture")):
        out = tmp_path / text.split()[0]
        assert align(photos, out, detector).faces == 0
        assert text in report(out)["person0/0.png"]["skipped"]


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(SourceError, match="nowhere: expected a folder, got no such folder"):
        align(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match="expected a folder of photographs, got a file"):
        align(tmp_path / "file", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(SourceError, match=r"empty: expected photographs, got none; left out: 1 .gif"):
        align(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"choice": "smallest"}, "choice: expected one of largest, central, all, got 'smallest'"),
        ({"least_score": 2}, r"least_score: expected a number in \[0, 1\], got 2"),
        ({"workers": 0}, "workers: expected an integer of at least 1, got 0"),
        ({"margin": -1}, r"margin: expected a number in \[0, 2\], got -1"),
        ({"template": "nose"}, "template: expected one of arcface"),
    ],
)
def test_a_wrong_value_is_refused(settings, text, photos, tmp_path):
    with pytest.raises(ValueError, match=text):
        align(photos, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_large_photographs_go_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(face_search, "_TOGETHER", 130 * 400)
    root = tmp_path / "photos"
    for k in range(4):
        photograph(root / "p" / f"{k}.png", 1, size=(130, 400) if k % 2 else (130, 100))
    seen = Known()
    align(root, tmp_path / "out", seen)
    assert seen.calls == [2, 2]  # each small one with the large one that fills the batch
