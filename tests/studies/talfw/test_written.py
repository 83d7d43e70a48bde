"""The adversarial copy of a set of pairs: what is written, and that verifiers read it unchanged."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import content
from talfw_pairs import EPS, PAIRS, make, mode, name, pixels
from torch import nn
from torch.nn import functional as F

import fastadv as fa
from fastadv import attacks
from fastadv.core.notices import Notice
from fastadv.data import LFW, IdentityFolder, RunFolderError, read_manifest
from fastadv.runs import inputs
from fastadv.studies.talfw.files import reader
from fastadv.studies.talfw.measure import choose_targets, claim, plan
from fastadv.studies.verify import verify
from fastadv.surrogates import Ensemble, Surrogate


def test_the_layout_is_lfw_s_own_and_holds_the_images_of_the_pairs(made, lfw):
    out, summary = made
    assert sorted(p.name for p in out.iterdir()) == [
        "checksums.sha256",
        "crops",
        "images",
        "landmarks.txt",
        "pairs.txt",
        "talfw.json",
    ]
    assert (out / "pairs.txt").read_bytes() == (lfw / "pairs.txt").read_bytes()
    faces = LFW(out)
    assert faces.pairs == LFW(lfw).pairs
    assert sorted(faces.names) == sorted({n for p in PAIRS for n in (p.first, p.second)})
    assert (summary.pairs, summary.images, summary.changed, summary.both) == (8, len(faces), 4, 0)
    for each in faces.names:
        np.testing.assert_array_equal(faces.landmarks[each], LFW(lfw).landmarks[each])
    assert reader(LFW(lfw), out) == ("--data", str(out))


def test_no_ending_and_no_coding_tells_a_changed_image_from_another(made, lfw):
    out, summary = made
    chosen = {aim.name for aim in plan(LFW(lfw), PAIRS)}
    assert summary.stored == "png"
    for each in LFW(out).names:
        before, after = LFW(lfw).path(each), LFW(out).path(each)
        assert (after.stem, after.suffix, mode(after)) == (before.stem, ".png", "RGB")
        assert after.read_bytes()[:33] == LFW(out).path(name(0, 1)).read_bytes()[:33]  # the header
        assert (pixels(after) == pixels(before)).all() == (each not in chosen)
    assert {line.split()[0][-4:] for line in (out / "landmarks.txt").read_text().splitlines()[1:]} == {".png"}


def test_chosen_images_change_inside_the_budget_and_in_the_crop_only(made, lfw):
    out, summary = made
    largest, norms = 0, []
    for aim in plan(LFW(lfw), PAIRS):
        before, after = pixels(LFW(lfw).path(aim.name)), pixels(LFW(out).path(aim.name))
        moved = np.abs(after - before)
        assert after.shape == (130, 150, 3)
        assert 0 < moved.max() <= 16
        largest = max(largest, moved.max())
        norms.append(np.linalg.norm((after - before) / 255))
        v, u = np.mgrid[:130, :150] + 0.5
        matrix = LFW(lfw).load(aim.name).matrix
        x, y = np.moveaxis(np.stack([u, v, np.ones_like(u)], axis=-1) @ matrix.T, -1, 0)
        outside = (x < 0) | (x >= 112) | (y < 0) | (y >= 112)
        assert outside.any()
        assert not moved[outside].any()
    assert summary.linf == pytest.approx(largest / 255)
    assert summary.l2 == pytest.approx(np.mean(norms), rel=1e-5)


def test_the_written_images_align_to_the_adversarial_crops(made, lfw):
    """Most of each change survives; the summary says how much, measured here by the reader itself."""
    out, summary = made
    given = returned = 0.0
    for row in read_manifest(out / "crops"):
        clean = LFW(lfw).load(row.name).image * 255
        crop = torch.from_numpy(pixels(out / "crops" / "images" / f"{row.name}.png")).permute(2, 0, 1)
        change, found = crop - clean, LFW(out).load(row.name).image * 255 - clean
        assert float(F.cosine_similarity(change.flatten(), found.flatten(), dim=0)) > 0.8
        given += float((change * change).sum())
        returned += float((change * found).sum())
    assert summary.kept == pytest.approx(returned / given, abs=0.01)
    assert summary.kept > 0.6


def test_the_manifest_says_what_each_crop_went_for(made, lfw):
    out, summary = made
    rows = read_manifest(out / "crops")
    wanted = [(a.name, a.goal, ";".join(a.partners)) for a in plan(LFW(lfw), PAIRS)]
    assert [(r.name, r.goal, r.target) for r in rows] == wanted
    assert all((r.attack, r.eps) == ("fim", EPS) for r in rows)
    assert all((r.score_after > r.score_before) == (r.goal == "impersonate") for r in rows)
    assert (summary.impersonation.images, summary.evasion.images) == (2, 2)


def test_the_attacked_network_is_wrong_about_the_copy(made, lfw, model):
    out, summary = made
    clean = verify(LFW(lfw), LFW(lfw).pairs, model).clean
    assert summary.threshold == clean.eer_threshold
    assert clean.auc > 0.9
    assert verify(LFW(out), LFW(out).pairs, model).clean.auc < 0.3


def test_summary_and_a_second_call_agree_and_nothing_is_written_again(made, lfw, model):
    out, summary = made
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert make(LFW(lfw), LFW(lfw).pairs, model, out) == summary
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == stamps
    written = json.loads((out / "talfw.json").read_text())
    assert (written["changed"], written["kept"]) == (summary.changed, summary.kept)
    with pytest.raises(RunFolderError, match="holds another run; attack.steps"):
        make(LFW(lfw), LFW(lfw).pairs, model, out, attacks.fim(eps=EPS, steps=3))


@pytest.mark.parametrize("lost", ["talfw.json", "images", "crops/manifest.parquet"])
def test_what_a_killed_call_has_not_written_is_made_again_with_the_same_bytes(lost, made, lfw, model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    (out / "talfw.json").unlink()
    (out / "pairs.txt").unlink()
    if lost == "images":
        shutil.rmtree(out / "images" / "Ann_A")
        (out / "images" / "Bo" / ".0123.fastadv-tmp").write_bytes(b"half an image")
    elif lost.endswith("parquet"):
        (out / lost).unlink()
    assert make(LFW(lfw), LFW(lfw).pairs, model, out) == made[1]
    assert content(out) == content(made[0])


def test_a_file_that_changed_since_it_was_attacked_is_refused(made, lfw, model, tmp_path):
    root, out = tmp_path / "lfw", tmp_path / "out"
    shutil.copytree(lfw, root)
    shutil.copytree(made[0], out)
    (out / "talfw.json").unlink()
    path = LFW(root).path(name(0, 1))
    Image.fromarray(pixels(path).astype(np.uint8)[::-1]).save(path)
    with pytest.raises(
        ValueError, match=r"Ann_A_0001\.png: expected the file that was attacked, got one that has changed"
    ):
        make(LFW(root), LFW(root).pairs, model, out)
    assert not (out / "talfw.json").exists()


def test_success_is_measured_again_on_the_written_images(made, lfw, model):
    out, summary = made
    partners = LFW(lfw)
    reached = []
    for aim in plan(partners, PAIRS):
        others = torch.stack([partners.load(each).image for each in aim.partners])
        with torch.no_grad():
            u = F.normalize(model(others).sum(0), dim=0)
            score = float(model(LFW(out).load(aim.name).image[None])[0] @ u)
        reached.append((aim.goal, (score >= summary.threshold) == (aim.goal == "impersonate")))
    for goal, found in (("impersonate", summary.impersonation_written), ("evade", summary.evasion_written)):
        assert found == np.mean([hit for kind, hit in reached if kind == goal])


# other sets of pairs


def test_pairs_that_lfw_s_form_cannot_say_come_as_csv(lfw, model, tmp_path):
    source, out = LFW(lfw), tmp_path / "out"
    make(source, PAIRS[:3], model, out)
    assert not (out / "pairs.txt").exists()
    assert reader(source, out) == ("--data", str(out), "--pairs", str(out / "pairs.csv"))
    faces = inputs.open_faces(out, size=112)
    assert inputs.open_pairs(faces, file=out / "pairs.csv", verified=False) == PAIRS[:3]
    assert faces.load(name(2, 1)).image.equal(source.load(name(2, 1)).image)


def test_a_folder_without_landmarks_is_read_as_it_was(lfw, model, tmp_path):
    source, out = IdentityFolder(lfw / "images"), tmp_path / "out"
    with pytest.warns(Notice, match="no landmarks"):
        make(source, PAIRS, model, out)
    assert not (out / "landmarks.txt").exists()
    found = reader(source, out)
    assert found == ("--data", str(out / "images"), "--pairs", str(out / "pairs.csv"))
    faces = inputs.open_faces(out / "images", size=112)
    assert isinstance(faces, IdentityFolder)
    assert faces.load(name(2, 1)).image.equal(source.load(name(2, 1)).image)
    with pytest.warns(Notice, match="no landmarks"):
        assert verify(faces, PAIRS, model).clean.auc < verify(source, PAIRS, model).clean.auc


def test_an_ensemble_goes_for_the_partner_s_image(lfw, model, tmp_path):
    torch.manual_seed(1)
    net = nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(768, 12, bias=False))
    other = fa.FaceModel(net, mean=(0.5,) * 3, std=(0.5,) * 3, name="other").eval()
    recipe = replace(attacks.fim(eps=EPS, steps=20), surrogate=Surrogate(ensemble=Ensemble(others=(other,))))
    out = tmp_path / "out"
    make(LFW(lfw), PAIRS, model, out, recipe, targets=choose_targets(None, recipe))
    assert [r.target.count(";") for r in read_manifest(out / "crops")] == [0, 0, 0, 0]
    for network in (model, other):
        assert verify(LFW(out), PAIRS, network).clean.auc < verify(LFW(lfw), PAIRS, network).clean.auc


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="out: expected a folder, got the file"):
        claim(tmp_path / "file")
    with pytest.raises(ValueError, match="out: expected a new or empty folder, .*, which holds file"):
        claim(tmp_path)
    assert claim(tmp_path / "new") == tmp_path / "new" / "crops"
    assert not (tmp_path / "new").exists()
