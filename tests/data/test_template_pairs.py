"""Templates of several images: IJB-B and IJB-C, YouTube Faces, and their verification."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastadv import load
from fastadv.core.errors import Error
from fastadv.data import (
    IJB,
    IdentityFolder,
    PairError,
    SourceError,
    TemplatePairs,
    read_ytf,
    render_faces,
    to_uint8,
    write_png,
)
from fastadv.data.template_pairs import template_embeddings
from fastadv.runs.inputs import PairChoice, RunInputs, open_faces
from fastadv.studies.verify import VerifyPlan, describe, verify_folder, verify_templates

PEOPLE = 6
FACES = render_faces([k // 4 for k in range(4 * PEOPLE)], [k % 4 for k in range(4 * PEOPLE)], seed=7).images
# images 0 and 1 of a person are two frames of one video; 2 is a photograph: one template; 3 is another template
POINTS = "38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2"


@pytest.fixture(scope="module")
def ijb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("IJBX")
    (root / "loose_crop").mkdir()
    (root / "meta").mkdir()
    lists: dict[str, list[str]] = {"face_tid_mid": [], "name_5pts_score": [], "template_pair_label": []}
    for k, face in enumerate(FACES):
        write_png(root / "loose_crop" / f"{k + 1}.jpg", to_uint8(face))
        person, own = divmod(k, 4)
        template, medium = (
            (10 * person + 1, (100 * person + (own == 2))) if own < 3 else (10 * person + 5, 100 * person + 9)
        )
        lists["face_tid_mid"].append(f"{k + 1}.jpg {template} {medium}")
        lists["name_5pts_score"].append(f"{k + 1}.jpg {POINTS} 0.99")
    for a in range(PEOPLE):
        for b in range(PEOPLE):
            lists["template_pair_label"].append(f"{10 * a + 1} {10 * b + 5} {int(a == b)}")
    for name, lines in lists.items():
        (root / "meta" / f"ijbx_{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_the_lists_of_ijb(ijb: Path) -> None:
    source = open_faces(ijb, size=112)
    assert isinstance(source, IJB)
    assert len(source) == len(FACES)
    assert set(source.landmarks or ()) == set(source.names)
    found = source.template_pairs()
    assert found.templates == 2 * PEOPLE
    assert found.images[:4] == ("loose_crop/1", "loose_crop/2", "loose_crop/3", "loose_crop/4")
    assert found.template[:4].tolist() == [0, 0, 0, 1]
    assert found.media[:4].tolist() == [0, 0, 1, 9]
    assert found.first[:2].tolist() == [0, 0]
    assert found.second[:2].tolist() == [1, 3]
    assert found.same.sum() == PEOPLE


def test_a_template_is_the_sum_of_the_means_of_its_media() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    protocol = TemplatePairs(
        images=("a", "b", "c", "d", "a"),
        template=np.array([0, 0, 0, 1, 1]),
        media=np.array([3, 3, 4, 3, 5]),
        first=np.array([0]),
        second=np.array([1]),
        same=np.array([True]),
    )
    found = template_embeddings(protocol, dict(zip("abcd", rows, strict=True)))
    for got, sums in zip(found, ((rows[0] + rows[1]) / 2 + rows[2], rows[3] + rows[0]), strict=True):
        np.testing.assert_allclose(got, sums / np.linalg.norm(sums), atol=1e-6)
    with pytest.raises(Error, match="expected embeddings with a mean, got some of template 1 that cancel out"):
        template_embeddings(protocol, dict(zip("abcd", (rows[0], rows[1], rows[2], -rows[0]), strict=True)))


def test_verification_of_templates_equals_its_formula(ijb: Path, tmp_path: Path) -> None:
    plan = VerifyPlan(inputs=RunInputs(data=ijb, model="synth-mobile", out=tmp_path / "run"))
    found = verify_folder(plan)
    model = load("synth-mobile")
    source = IJB(ijb)
    with torch.no_grad():
        e = model(torch.stack([source.load(f"loose_crop/{k + 1}").image for k in range(len(FACES))])).double()
    sums = (e[0::4] + e[1::4]) / 2 + e[2::4]
    expected = (sums / sums.norm(dim=1, keepdim=True)) @ e[3::4].T
    np.testing.assert_allclose(found.scores, expected.ravel().numpy(), atol=1e-5)
    assert [far for far, _ in found.further] == [1e-1]  # of 30 negative pairs
    saved = json.loads((tmp_path / "run" / "verification.json").read_text())
    assert saved == json.loads(json.dumps(describe(found)))
    assert saved["tar_at_far"] == {"0.1": found.further[0][1]}


def ytf(root: Path) -> Path:
    for person in range(PEOPLE):
        for video in range(2):
            for frame in range(2):
                path = root / f"P{person}" / str(video) / f"{video}.{frame}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_png(path, to_uint8(FACES[4 * person + 2 * video + frame]))
    lines = ["split number, first name, second name, is same"]
    for a in range(PEOPLE):
        lines += [f"{a % 2 + 1}, P{a}/0, P{a}/1, 1", f"{a % 2 + 1}, P{a}/0, P{(a + 1) % PEOPLE}/1, 0"]
    (root.parent / "splits.txt").write_text("\n".join(lines))
    return root.parent / "splits.txt"


@pytest.mark.filterwarnings("ignore:.*lie deeper:fastadv.core.notices.Notice")
def test_videos_of_youtube_faces(tmp_path: Path) -> None:
    splits = ytf(tmp_path / "frames")
    source = IdentityFolder(tmp_path / "frames")
    protocol = read_ytf(source, splits)
    assert protocol.templates == 2 * PEOPLE
    assert set((protocol.folds if protocol.folds is not None else np.array([])).tolist()) == {0, 1}
    plan = VerifyPlan(inputs=RunInputs(data=tmp_path / "frames", model="synth-mobile"), pairs=PairChoice(file=splits))
    found = verify_folder(plan)
    again = verify_templates(source, protocol, load("synth-mobile"))
    assert np.array_equal(found.scores, again.scores)
    assert found.clean.accuracy is not None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1, P0/0, P9/1, 1", ":2: expected videos among the images, got P9/1, which has none"),
        ("1, P0/0, P1/1, 2", ":2: expected a split, two videos and 1 or 0"),
        ("", "expected a line per pair of videos, got none"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*lie deeper:fastadv.core.notices.Notice")
def test_lists_of_videos_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    splits = ytf(tmp_path / "frames")
    splits.write_text(f"split number, first name, second name, is same\n{line}\n")
    with pytest.raises(PairError, match=message):
        read_ytf(IdentityFolder(tmp_path / "frames"), splits)


def test_what_templates_do_not_take(ijb: Path) -> None:
    from fastadv import attacks

    given = RunInputs(data=ijb, model="synth-mobile")
    with pytest.raises(Error, match="attack: expected none with pairs of templates, got fim"):
        verify_folder(VerifyPlan(inputs=given, attack=attacks.fim()))
    with pytest.raises(Error, match="folds, limit: expected none with pairs of templates"):
        verify_folder(VerifyPlan(inputs=given, pairs=PairChoice(limit=4)))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("template_pair_label", "1 77 0\n", "expected templates with images, got 77"),
        ("template_pair_label", "1 5\n", "expected two templates and 1 or 0 a line, got 2 numbers"),
        ("template_pair_label", "1 5 x\n", "expected two templates and 1 or 0 a line, got others"),
        ("face_tid_mid", "1.jpg 1\n", ":1: expected an image, a template and a medium, got '1.jpg 1'"),
        ("face_tid_mid", "77.jpg 1 1\n", "images are missing: .*77.jpg"),
    ],
)
def test_lists_of_templates_that_cannot_be_used(ijb: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / "meta").mkdir()
    for path in (ijb / "meta").iterdir():
        (tmp_path / "meta" / path.name).write_text(text if file in path.name else path.read_text())
    (tmp_path / "loose_crop").symlink_to(ijb / "loose_crop")
    with pytest.raises(SourceError, match=message):
        IJB(tmp_path).template_pairs()
