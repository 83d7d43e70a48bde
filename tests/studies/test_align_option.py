"""`--align`: faces found while a command runs, kept beside its run; in Python, with a detector that knows the faces."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photographs import Drawn
from run_files import content

from fastadv.attacks import by_name
from fastadv.core.errors import Error
from fastadv.core.notices import Notice
from fastadv.data import RunFolderError, SourceError, align, face_search, read_image, read_landmarks, to_uint8
from fastadv.data.face_search import FaceSearch
from fastadv.data.kept_landmarks import is_found_list
from fastadv.models import load
from fastadv.runs.goals import GoalChoice
from fastadv.runs.inputs import PairChoice, RunInputs, open_faces
from fastadv.runs.merging import merge_shards
from fastadv.runs.sharding import Shard
from fastadv.studies.align.folder import AlignPlan, align_folder
from fastadv.studies.attack import AttackPlan, attack_as_planned
from fastadv.studies.verify import VerifyPlan, verify_folder

PEOPLE = 4


@pytest.fixture
def drawn():
    return Drawn()


@pytest.fixture
def photos(drawn, tmp_path):
    """Photographs that lie in no folder of a person, and a list of pairs as spreadsheets write them."""
    root = tmp_path / "photos"
    for person in range(PEOPLE):
        for image in range(2):
            drawn.draw(root / f"p{person} {image}.png", person, image)
    lines = ["file_x,file_y,Decision"]
    lines += [f"p{k} 0.png,p{k} 1.png,Yes" for k in range(PEOPLE)]
    lines += [f"p{k} 0.png,p{(k + 1) % PEOPLE} 1.png,No" for k in range(PEOPLE)]
    (root / "master.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    return root


@pytest.fixture
def two_at_a_time(monkeypatch):
    monkeypatch.setattr(face_search, "_MOST", 2)


def plan(photos, drawn, out=None, *, given=None, attack=None, folds=None, **settings):
    inputs = RunInputs(
        data=photos, model="synth-mobile", search=FaceSearch(detector=drawn, **settings), out=out, **(given or {})
    )
    return VerifyPlan(inputs=inputs, pairs=PairChoice(file=photos / "master.csv", folds=folds), attack=attack)


def landmarks(out):
    return (out / "landmarks.txt").read_text()


def test_pairs_of_a_flat_folder_are_verified_as_after_align(photos, drawn, tmp_path):
    found = verify_folder(plan(photos, drawn))
    assert found.clean.pairs == 2 * PEOPLE
    assert len(set(found.scores.tolist())) > 2
    align_folder(AlignPlan(photos=photos, out=tmp_path / "faces"), drawn)
    for data, points in ((tmp_path / "faces", None), (photos, tmp_path / "faces" / "landmarks.txt")):
        again = VerifyPlan(
            inputs=RunInputs(data=data, model="synth-mobile", landmarks=points),
            pairs=PairChoice(file=photos / "master.csv"),
        )
        np.testing.assert_array_equal(verify_folder(again).scores, found.scores)


def test_what_is_found_is_kept_beside_the_run_and_taken_again(photos, drawn, tmp_path):
    out = tmp_path / "run"
    first = verify_folder(plan(photos, drawn, out))
    assert sum(drawn.calls) == 2 * PEOPLE
    names = [f"p{k} {i}/p{k} {i}" for k in range(PEOPLE) for i in (0, 1)]
    assert list(read_landmarks(out / "landmarks.txt")) == names
    assert is_found_list(out / "landmarks.txt")
    before = content(out)
    assert verify_folder(plan(photos, drawn, out)).clean == first.clean
    assert sum(drawn.calls) == 2 * PEOPLE
    assert content(out) == before
    config = json.loads(before["run.json"])["config"]
    assert config["detector"] == {"name": "drawn", "choice": "largest", "least score": 0.7}
    listed = RunInputs(data=photos, model="synth-mobile", landmarks=out / "landmarks.txt")
    again = verify_folder(VerifyPlan(inputs=listed, pairs=PairChoice(file=photos / "master.csv")))
    np.testing.assert_array_equal(again.scores, first.scores)


@pytest.mark.parametrize("torn", [0, 30])
def test_interrupted_while_faces_are_found_it_ends_with_the_same_bytes(photos, drawn, tmp_path, two_at_a_time, torn):
    verify_folder(plan(photos, drawn, tmp_path / "whole"))
    drawn.calls.clear()
    drawn.left = 2
    with pytest.raises(KeyboardInterrupt):
        verify_folder(plan(photos, drawn, tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["landmarks.txt"]
    if torn:  # as a power cut leaves it
        (tmp_path / "out" / "landmarks.txt").write_bytes((tmp_path / "out" / "landmarks.txt").read_bytes()[:-torn])
    drawn.left = None
    drawn.calls.clear()
    verify_folder(plan(photos, drawn, tmp_path / "out"))
    assert sum(drawn.calls) == 2 * PEOPLE - 4 + bool(torn)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_run_goes_on_with_its_own_photographs_and_search_only(photos, drawn, tmp_path):
    out = tmp_path / "run"
    verify_folder(plan(photos, drawn, out))
    before = content(out)
    with pytest.raises(RunFolderError, match=r"landmarks.txt: expected the options of --align that the run began with"):
        verify_folder(plan(photos, drawn, out, choice="central"))
    drawn.identity = {"name": "drawn", "weights": "others"}
    with pytest.raises(RunFolderError, match="expected the options of --align"):
        verify_folder(plan(photos, drawn, out))
    drawn.identity = {"name": "drawn"}
    kept = (photos / "p1 0.png").read_bytes()
    drawn.draw(photos / "p1 0.png", 9, 9)
    with pytest.raises(RunFolderError, match="expected the photographs that the run began with, got others, first for"):
        verify_folder(plan(photos, drawn, out))
    (photos / "p1 0.png").write_bytes(kept)
    drawn.draw(photos / "p9 0.png", 9, 0)
    with pytest.raises(RunFolderError, match="photographs that the run began with, got further ones, first p9 0/p9 0;"):
        verify_folder(plan(photos, drawn, out))
    (photos / "p9 0.png").unlink()
    without = RunInputs(data=tmp_path / "faces", model="synth-mobile", out=out)
    align_folder(AlignPlan(photos=photos, out=tmp_path / "faces"), drawn)
    with pytest.raises(RunFolderError, match="holds another run; "):
        verify_folder(VerifyPlan(inputs=without, pairs=PairChoice(file=photos / "master.csv")))
    assert content(out) == before
    verify_folder(plan(photos, drawn, out, choice="central", given={"fresh": True}))
    assert json.loads((out / "run.json").read_bytes())["config"]["detector"]["choice"] == "central"


def test_photographs_that_change_before_the_run_has_begun_are_searched_again(photos, drawn, tmp_path, two_at_a_time):
    drawn.left = 2
    with pytest.raises(KeyboardInterrupt):
        verify_folder(plan(photos, drawn, tmp_path / "out"))
    drawn.left = None
    drawn.draw(photos / "p0 0.png", 9, 9)
    verify_folder(plan(photos, drawn, tmp_path / "out"))
    verify_folder(plan(photos, drawn, tmp_path / "anew"))
    assert content(tmp_path / "out") == content(tmp_path / "anew")


def test_photographs_without_a_face_are_left_out_with_their_pairs(photos, drawn, tmp_path):
    drawn.draw(photos / "p1 0.png", 1, 0, faces=0)
    (photos / "p2 0.png").write_bytes(b"no picture")
    with pytest.warns(Notice) as said:
        found = verify_folder(plan(photos, drawn, tmp_path / "out"))
    assert found.clean.pairs == 2 * PEOPLE - 4
    texts = [str(each.message) for each in said]
    (left,) = (text for text in texts if "2 of 8 photographs are left out" in text)
    assert "p1 0/p1 0 (no face was found)" in left
    assert "p2 0/p2 0 (" in left
    assert "pairs: 4 of 8 left out: no face in p1 0.png, p2 0.png" in texts
    assert '"skipped": "no face was found"' in landmarks(tmp_path / "out")
    drawn.calls.clear()
    with pytest.warns(Notice):
        verify_folder(plan(photos, drawn, tmp_path / "out"))
    assert drawn.calls == []


def test_a_folder_without_any_face_is_refused(drawn, tmp_path):
    drawn.draw(tmp_path / "photos" / "a.png", 0, 0, faces=0)
    with pytest.raises(SourceError, match=r"expected photographs with a face that can be aligned, got none: a/a \(no"):
        open_faces(tmp_path / "photos", size=112, search=FaceSearch(detector=drawn))


def test_the_largest_or_the_most_central_face(drawn, tmp_path):
    drawn.draw(tmp_path / "photos" / "a.png", 0, 0, faces=2)
    image = read_image(tmp_path / "photos" / "a.png")
    (faces,) = drawn([image])
    for choice, face in (("largest", 1), ("central", 0)):
        source = open_faces(tmp_path / "photos", size=112, search=FaceSearch(detector=drawn, choice=choice))
        crop, _ = align(image, faces.landmarks[face].round(3), 112)
        np.testing.assert_array_equal(to_uint8(source.load("a/a").image), crop)
    drawn.draw(tmp_path / "photos" / "b.png", 1, 0)
    with pytest.warns(Notice, match="no face has a score of at least 0.95; the best has 0.900"):
        source = open_faces(tmp_path / "photos", size=112, search=FaceSearch(detector=drawn, least_score=0.95))
    assert source.names == ("a/a",)


def test_the_template_is_the_networks(photos, drawn, tmp_path):
    """Also of images that are not square, and of points of its own."""
    points = tuple((x * 0.5 + 20, y * 0.5 + 30) for x, y in ((38, 52), (74, 52), (56, 72), (42, 92), (71, 92)))
    for size, template in (((112, 96), None), (112, points)):
        source = open_faces(photos, size=size, template=template, search=FaceSearch(detector=drawn))
        name = source.names[3]
        assert source.path(name).name == f"{name.partition('/')[2]}.png"
        crop, _ = align(read_image(source.path(name)), source.landmarks[name], size, onto=template)
        np.testing.assert_array_equal(to_uint8(source.load(name).image), crop)


def test_layouts_of_other_data_sets(drawn, tmp_path):
    """LFW with its pairs, a list of images, and folders in folders."""
    lfw = tmp_path / "lfw"
    for person in ("A_B", "C_D"):
        for k in (1, 2):
            drawn.draw(lfw / "images" / person / f"{person}_000{k}.png", ord(person[0]), k)
    (lfw / "pairs.txt").write_text("1\t1\nA_B\t1\t2\nA_B\t1\tC_D\t1\n")
    (lfw / "landmarks.txt").write_text("A_B/A_B_0001 1 2 3 4 5 6 7 8 9 10\n")  # another list, which is not read
    source = open_faces(lfw, size=112, search=FaceSearch(detector=drawn))
    assert [(p.first, p.second) for p in source.pairs] == [
        ("A_B/A_B_0001", "A_B/A_B_0002"),
        ("A_B/A_B_0001", "C_D/C_D_0001"),
    ]
    (tmp_path / "list.txt").write_text("lfw/images/A_B/A_B_0001.png ann\nlfw/images/C_D/C_D_0002.png cat\n")
    listed = open_faces(tmp_path / "list.txt", size=112, search=FaceSearch(detector=drawn))
    assert listed.names == ("ann/lfw_images_A_B_A_B_0001", "cat/lfw_images_C_D_C_D_0002")
    drawn.draw(tmp_path / "deep" / "a" / "b" / "c.png", 0, 0)
    with pytest.warns(Notice, match="deeper than <identity>/<image>"):
        assert open_faces(tmp_path / "deep", size=112, search=FaceSearch(detector=drawn)).names == ("a/b/c",)


def test_faces_that_are_aligned_already_and_lists_are_refused(photos, drawn, tmp_path):
    align_folder(AlignPlan(photos=photos, out=tmp_path / "faces"), drawn)
    search = FaceSearch(detector=drawn)
    for root in (tmp_path / "faces", tmp_path / "lfw.bin"):
        with pytest.raises(Error, match=f"align: expected photographs, got {root}, whose images are aligned already"):
            open_faces(root, size=112, search=search)
    with pytest.raises(Error, match="align: expected no landmarks with it, got points.txt"):
        open_faces(photos, size=112, search=search, landmarks=Path("points.txt"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"choice": "all"}, "faces: expected one of largest, central, got 'all'"),
        ({"least_score": 1.5}, r"least_score: expected a number in \[0, 1\], got 1.5"),
    ],
)
def test_a_wrong_search_is_refused(settings, text, drawn):
    with pytest.raises(Error, match=text):
        FaceSearch(detector=drawn, **settings)


def test_a_folder_with_something_else_is_left_alone(photos, drawn, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("mine.txt", "landmarks.txt"):
        (out / name).write_text("x")
        before = content(out)
        with pytest.raises(RunFolderError, match="out: expected a new or empty folder"):
            verify_folder(plan(photos, drawn, out))
        assert content(out) == before


def attack_plan(photos, drawn, gallery, out):
    aim = GoalChoice(goal="identify-as", neighbours=1)
    inputs = RunInputs(data=photos, model="synth-mobile", search=FaceSearch(detector=drawn), out=out)
    return AttackPlan(inputs=inputs, attack=by_name("fim", eps=0.03, steps=2), aim=aim, gallery=gallery, limit=3)


def test_a_gallery_of_photographs_or_of_aligned_faces(photos, drawn, tmp_path):
    for person in range(PEOPLE):
        drawn.draw(tmp_path / "gallery" / f"p{person} 0" / "x.png", person, 7)
        shutil.copytree(tmp_path / "gallery" / f"p{person} 0", tmp_path / "gallery" / f"p{person} 1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        first = attack_as_planned(attack_plan(photos, drawn, tmp_path / "gallery", tmp_path / "one"))
        align_folder(AlignPlan(photos=tmp_path / "gallery", out=tmp_path / "faces"), drawn)
        other = attack_as_planned(attack_plan(photos, drawn, tmp_path / "faces", tmp_path / "two"))
    assert first.images == other.images == 3
    assert {"landmarks.txt", "gallery-landmarks.txt"} <= {p.name for p in (tmp_path / "one").iterdir()}
    assert not (tmp_path / "two" / "gallery-landmarks.txt").exists()
    images = {name: data for name, data in content(tmp_path / "one").items() if name.startswith("images/")}
    assert len(images) == 3
    assert images == {n: data for n, data in content(tmp_path / "two").items() if n.startswith("images/")}


def test_shards_find_the_faces_once_and_merge_to_the_run_of_one_process(photos, drawn, tmp_path):
    for person in range(PEOPLE):
        drawn.draw(tmp_path / "gallery" / f"p{person} 0" / "x.png", person, 7)
        shutil.copytree(tmp_path / "gallery" / f"p{person} 0", tmp_path / "gallery" / f"p{person} 1")
    single, sharded = (attack_plan(photos, drawn, tmp_path / "gallery", tmp_path / name) for name in ("one", "two"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        attack_as_planned(single)
        drawn.calls.clear()
        for k, looked in ((2, 2 * PEOPLE + 2 * PEOPLE), (1, 0), (3, 0)):
            attack_as_planned(replace(sharded, shard=Shard(number=k, count=3)))
            assert sum(drawn.calls) == looked
            drawn.calls.clear()
    merge_shards(tmp_path / "two")
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert "gallery-landmarks.txt" in content(tmp_path / "two")


def test_the_search_is_part_of_what_a_source_is(photos, drawn):
    source = open_faces(photos, size=112, search=FaceSearch(detector=drawn))
    model = load("synth-mobile")
    assert model.input_size == source.shape
    assert source.identity()["detector"] == {"name": "drawn", "choice": "largest", "least score": 0.7}
    other = open_faces(photos, size=112, search=FaceSearch(detector=drawn, least_score=0.5))
    assert source.identity() != other.identity()
    assert source.identity()["landmarks"] == other.identity()["landmarks"]
