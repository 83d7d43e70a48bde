"""A study with every kind of natural images: what the detectors are fitted on, and what the evaluation says of each."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastadv.attacks.spec import parse_attack
from fastadv.core.statistics import wilson
from fastadv.data import (
    IdentityFolder,
    RunFolderError,
    SyntheticFaces,
    face_id,
    read_image,
    read_manifest,
    to_tensor,
    to_uint8,
    write_png,
)
from fastadv.data.synthetic import write_faces
from fastadv.detection import auc, load_detector
from fastadv.report.pages import detection as detect_page
from fastadv.studies.detection import evaluate as detect_evaluate
from fastadv.studies.detection.attacks import source_name
from fastadv.studies.detection.compare import Flagged
from fastadv.studies.detection.controls import UNSEEN, noise_of_norm, parse_control
from fastadv.studies.detection.evaluate import EvaluateConfig
from fastadv.studies.detection.features import extract, scores_of
from fastadv.studies.detection.fit import EVALUATION
from fastadv.studies.detection.natural import OUTSIDERS
from fastadv.studies.detection.plan import draw_splits
from fastadv.studies.detection.setting import open_other
from fastadv.studies.detection.study import reopen

PEOPLE = SyntheticFaces(identities=13, per_identity=16, seed=3)
BEST = "mlp-medoid-cosine"
CONTROLS = tuple(parse_control(text) for text in ("signs:8/255", "gaussian:3/255", "blur:1", "jpeg:75"))


def write(folder, people):
    write_faces(people, people.names, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two other sources: one of four people that the fit takes, one of two that it has never seen."""
    place = tmp_path_factory.mktemp("others")
    known = write(place / "known", SyntheticFaces(identities=4, per_identity=6, seed=11))
    return known, write(place / "new", SyntheticFaces(identities=2, per_identity=5, seed=12))


@pytest.fixture(scope="module")
def fitting(plan, folders):
    def fit(path, model, **more):
        settings = {
            "attacks": (parse_attack("bim:4@8/255"),),
            "controls": CONTROLS,
            "also_natural": (str(folders[0]),),
            "outside": 0.25,
            **more,
        }
        return plan.fit(path, model, source=PEOPLE, configurations=plan.configurations[1:], **settings)

    return fit


@pytest.fixture(scope="module")
def groups(tmp_path_factory, fitting, model, folders):
    path = tmp_path_factory.mktemp("groups") / "run"
    made = fitting(path, model)
    config = EvaluateConfig(unseen=(parse_attack("fgsm@12/255"),), k=7, also_natural=(str(folders[1]),))
    return path, made, detect_evaluate.evaluate_folder(path, PEOPLE, model, config), config


def splits_of(path, model):
    return reopen(path, PEOPLE, model)[1].splits


def test_people_outside_the_classes_are_in_nothing_else(groups, model):
    splits = splits_of(groups[0], model)
    outside = {part: {n.rpartition("/")[0] for n in names} for part, names in splits.outside.items()}
    assert sum(map(len, outside.values())) == 3  # a quarter of thirteen
    assert all(len(people) == 1 for people in outside.values())
    assert not set.union(*outside.values()) & set(splits.people)
    assert not set.union(*outside.values()) & {name.rpartition("/")[0] for name in splits.rest}
    detector = load_detector(groups[0] / "detectors" / f"{BEST}.safetensors")
    assert detector.trajectory.representatives.classes == splits.people
    assert len(splits.people) == 10


def test_the_fit_counts_its_natural_images(groups, model):
    path, made, _, _ = groups
    told = json.loads((path / "fit.json").read_text())
    splits = splits_of(path, model)
    for part in ("fit", "validate", "test"):
        found = told["natural_kinds"][part]
        count = len(splits.natural[part])
        assert {label: found[label] for label in ("natural", *map(str, CONTROLS))} == dict.fromkeys(
            ("natural", *map(str, CONTROLS)), count
        )
        assert found[OUTSIDERS] == 16
        for cell in made.cells:
            label = f"noise of {cell.attack} {'targeted' if cell.targeted else 'untargeted'}"
            own = [row for row in cell.rows if source_name(row) in splits.attacked[part]]
            assert found.get(label, 0) == len(own)
    detector = load_detector(path / "detectors" / f"{BEST}.safetensors")
    assert detector.thresholds.natural == len(splits.natural["validate"])  # of the images as they are


def test_false_alarms_are_those_of_the_images(groups, model):
    path, _, found, _ = groups
    detector = load_detector(path / "detectors" / f"{BEST}.safetensors")
    names = splits_of(path, model).natural["test"]
    threshold = detector.thresholds.at(detector.thresholds.usual_rate)
    rows = {row.label: row for row in found.compared.false_alarms}
    for label, control in (("natural", None), ("blur:1", CONTROLS[2]), ("median:3", parse_control("median:3"))):
        images = [PEOPLE.load(name).image for name in names]
        if control is not None:
            images = [control(i[None], torch.tensor([face_id(n)]))[0] for n, i in zip(names, images, strict=True)]
        scores = scores_of(detector, extract(model, detector.layers, names, images))
        row = rows[label].found
        assert row.images == len(names)
        assert row.people == len({name.rpartition("/")[0] for name in names})
        assert row.flagged == int((scores >= threshold).sum())
        assert (row.low, row.high) == wilson(row.flagged, row.images)
        assert (rows[label].threshold, rows[label].rate) == (threshold, detector.thresholds.usual_rate)


def test_every_group_is_there_and_marked_by_what_the_fit_has_met(groups, folders):
    rows = {row.label: row for row in groups[2].compared.false_alarms}
    assert {label for label, row in rows.items() if row.sort == "control" and row.fitted} == set(map(str, CONTROLS))
    new = {str(control) for control in UNSEEN}
    assert {label for label, row in rows.items() if row.sort == "control" and not row.fitted} == new
    unknown = {label for label, row in rows.items() if row.sort == "control" and not row.kind_fitted}
    assert unknown == {"resize:0.35", "brightness:0.7", "median:3", "contrast:0.7"}  # of four kinds that it took
    assert {label: row.fitted for label, row in rows.items() if row.sort == "noise"} == {
        **{f"noise of bim:4@8/255 {kind}": True for kind in ("targeted", "untargeted")},
        **{f"noise of fgsm@12/255 {kind}": False for kind in ("targeted", "untargeted")},
    }
    assert {
        label: (row.fitted, row.found.people) for label, row in rows.items() if row.sort in ("outside", "other")
    } == {
        OUTSIDERS: (True, 1),
        str(folders[0]): (True, 1),
        str(folders[1]): (False, 2),
    }
    assert rows[str(folders[1])].found.images == 10


def test_attacks_are_compared_with_noise_of_their_own_norm(groups, model):
    path, _, found, _ = groups
    detector = load_detector(path / "detectors" / f"{BEST}.safetensors")
    for targeted in (True, False):
        kind = "targeted" if targeted else "untargeted"
        (cell,) = [c for c in found.cells if c.targeted is targeted and c.family == "bim"]
        rows = cell.made_from(splits_of(path, model).attacked["test"])
        norms = torch.tensor([row.l2 for row in rows])
        clean = torch.stack([PEOPLE.load(source_name(row)).image for row in rows])
        noisy = noise_of_norm(clean, norms, torch.tensor([face_id(source_name(row)) for row in rows]))
        attacked = [to_tensor(read_image(cell.folder / "images" / f"{row.name}.png")) for row in rows]
        torch.testing.assert_close((noisy - clean).flatten(1).norm(dim=1), norms, rtol=2e-4, atol=0)
        torch.testing.assert_close((torch.stack(attacked) - clean).flatten(1).norm(dim=1), norms, rtol=1e-4, atol=0)
        names = [row.name for row in rows]
        calm, hot = (scores_of(detector, extract(model, detector.layers, names, i)) for i in (list(noisy), attacked))
        (row,) = [r for r in found.compared.noise if (r.detector, r.family, r.targeted) == (BEST, "bim", targeted)]
        assert row.area.value == pytest.approx(auc(calm, hot), abs=1e-6)
        assert (row.images, row.natural) == (len(rows), len(rows))
        assert set(found.compared.noise_curves) >= {f"bim {kind}", f"fgsm {kind}"}


def test_changed_attacks_that_still_succeed_are_counted(groups, model, plan):
    path, _, found, _ = groups
    splits = splits_of(path, model)
    blur = parse_control("blur:1")
    for row in found.compared.changed:
        cell = next(c for c in found.cells if (c.attack, c.targeted) == (row.attack, row.targeted))
        rows = cell.made_from(splits.attacked["test"])
        assert row.tried == len(rows)
        assert (row.area is None) == (row.found is None) == (not row.kept)
        if row.found is not None:
            assert row.found.images == row.kept
        if row.control == "unchanged":
            assert row.kept == row.tried
        if row.control != "blur:1":
            continue
        kept = 0
        for one in rows:
            image = blur(
                to_tensor(read_image(cell.folder / "images" / f"{one.name}.png"))[None], torch.tensor([one.id])
            )
            with torch.no_grad():
                said = plan.classes[int(model.logits(image).argmax())]
            own = one.name.rpartition("/")[0]
            kept += said == splits.targets[one.name] if row.targeted else said != own
        assert row.kept == kept
    assert {(r.attack, r.targeted, r.control) for r in found.compared.changed} == {
        (attack, targeted, control)
        for attack in ("bim:4@8/255", "fgsm@12/255")
        for targeted in (True, False)
        for control in ("unchanged", "blur:1", "jpeg:75")
        if any(r.attack == attack and r.targeted is targeted and r.tried for r in found.compared.changed)
    }


def test_the_page_and_the_file_have_every_group(groups, tmp_path):
    path, _, found, _ = groups
    told = json.loads((path / EVALUATION).read_text(), parse_constant=lambda name: pytest.fail(name))
    page = detect_page.render(path, out=tmp_path / "page.html").read_text()
    for row in told["false_alarms"]:
        assert row["label"] in page
        assert f"{row['found']['flagged']} of {row['found']['images']}" in page
    for title in (
        "False alarms",
        "Attacks against noise of the same size",
        "Attacked images, unchanged, blurred and compressed",
        "Scores by group",
    ):
        assert title in page
    for group, row in zip(told["histograms"]["groups"], found.compared.histograms, strict=True):
        assert len(group["counts"]) + 1 == len(told["histograms"]["edges"])
        images = {r.label: r.found.images for r in found.compared.false_alarms}
        assert sum(group["counts"]) == images.get(row.label, sum(row.counts))
    for row in (*told["measured"], *told["noise"]):
        for share, span in zip(row["found"], row["intervals"], strict=True):
            assert (share is None) == (span is None)
            assert share is None or 0 <= span[0] <= share <= span[1] <= 1
            assert share is None or row["natural"] >= 20


def test_a_study_goes_on_with_what_it_kept_and_takes_no_other_source(groups, fitting, model, folders, tmp_path):
    path, _, found, config = groups
    copy = tmp_path / "run"
    shutil.copytree(path, copy)
    stamps = {p: p.stat().st_mtime_ns for p in copy.glob("features/*")}
    assert any("blur:1" in p.name for p in stamps)
    again = detect_evaluate.evaluate_folder(copy, PEOPLE, model, config)
    assert again.compared.false_alarms == found.compared.false_alarms
    assert {p: p.stat().st_mtime_ns for p in copy.glob("features/*")} == stamps
    with pytest.raises(RunFolderError, match="holds another study; controls"):
        fitting(copy, model, controls=CONTROLS[1:])
    with pytest.raises(RunFolderError, match="holds another study; outside"):
        fitting(copy, model, outside=0.3)
    extra = folders[0] / "somebody"
    extra.mkdir()
    try:
        write_png(extra / "1.png", to_uint8(PEOPLE.load(PEOPLE.names[0]).image))
        with pytest.raises(ValueError, match="expected .*; give the study.s own"):
            detect_evaluate.evaluate_folder(copy, PEOPLE, model, config)
    finally:
        shutil.rmtree(extra)


def test_a_source_of_two_images_is_refused_before_a_folder_is_made(fitting, model, tmp_path):
    few = write(tmp_path / "few", SyntheticFaces(identities=1, per_identity=2, seed=5))
    with pytest.raises(ValueError, match="also_natural: expected at least 3 images in .*few, got 2"):
        fitting(tmp_path / "run", model, also_natural=(str(few),))
    with pytest.raises(ValueError, match="outside: expected a share in"):
        fitting(tmp_path / "run", model, outside=1.0)
    with pytest.raises(ValueError, match="outside: expected a share that leaves at least 3 people as classes, got 0.9"):
        fitting(tmp_path / "run", model, outside=0.9)
    assert not (tmp_path / "run").exists()


def test_another_source_is_known_by_its_images_and_named_apart(groups, model, folders, tmp_path, monkeypatch):
    """The source of the fit is no further one under another name; one called as a kind of images has its own row."""
    path, _, found, config = groups
    copy = tmp_path / "run"
    shutil.copytree(path, copy)
    (tmp_path / "again").symlink_to(folders[0])
    (tmp_path / "natural").symlink_to(folders[1])
    monkeypatch.chdir(tmp_path)
    config = replace(config, also_natural=("again", "natural"))
    made = detect_evaluate.evaluate_folder(copy, PEOPLE, model, config)
    rows = {row.label: row for row in made.compared.false_alarms if row.sort == "other"}
    before = {row.label: row for row in found.compared.false_alarms}
    assert set(rows) == {str(folders[0]), "natural/"}
    assert rows[str(folders[0])] == before[str(folders[0])]
    assert rows["natural/"] == replace(before[str(folders[1])], label="natural/")
    assert "natural" in {row.label for row in made.compared.false_alarms if row.sort == "natural"}


def test_images_of_the_study_are_no_other_source(plan, model, tmp_path):
    folder = write(tmp_path / "faces", SyntheticFaces(identities=8, per_identity=16, seed=3))
    with pytest.raises(ValueError, match=r"also_natural: expected images that are not the study's, got .* of .*faces"):
        plan.fit(tmp_path / "run", model, source=IdentityFolder(folder), also_natural=(str(folder),))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:no landmarks")
def test_another_crop_is_another_source(model, folders):
    """What the study keeps of a source is of these pixels: the same files, cut otherwise, are others."""
    splits = draw_splits(PEOPLE.names, natural=4, attacked=2)
    given = {"shares": None, "seed": 0}
    first, again = (open_other(str(folders[1]), model, PEOPLE, splits, **given) for _ in range(2))
    smaller = SimpleNamespace(input_size=(96, 96), template=None)
    other = open_other(str(folders[1]), smaller, PEOPLE, splits, **given)
    assert first.content == again.content != other.content


def test_a_score_that_is_no_number_is_flagged():
    found = Flagged.of(torch.tensor([0.0, 2.0, torch.nan, 1.0]), ["a/1", "a/2", "b/1", "c/1"], 1.0)
    assert (found.images, found.people, found.flagged) == (4, 3, 3)


def test_what_is_missing_is_said(groups, fitting, model, tmp_path):
    made = fitting(tmp_path / "run", model, outside=0.1, also_natural=(), controls=())
    assert f"{OUTSIDERS}: none, since 0.1 of 13 people are fewer than 3" in made.notices
    assert set(made.naturals["fit"]) == {"natural"}
    config = replace(groups[3], unseen=(), controls=(), also_natural=(), after=())
    found = detect_evaluate.evaluate_folder(tmp_path / "run", PEOPLE, model, config)
    assert {row.sort for row in found.compared.false_alarms} == {"natural", "noise"}
    assert not any(row.fitted for row in found.compared.false_alarms if row.sort == "noise")
    assert {row.control for row in found.compared.changed} == {"unchanged"}
    assert read_manifest(tmp_path / "run" / "attacks" / "bim:4@8-255-targeted")
    text = detect_page.render(tmp_path / "run").read_text()
    assert "Attacked images, unchanged" in text
