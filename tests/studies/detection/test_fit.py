"""The fit of a study: its examples, its detectors, and that it goes on where it was stopped."""

import copy
import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch

from fastadv import load
from fastadv.attacks import CATALOG
from fastadv.attacks.spec import parse_attack
from fastadv.core.notices import Notice
from fastadv.data import RunFolder, RunFolderError, read_image, read_manifest, to_tensor
from fastadv.detection import LayerTap, auc, load_detector
from fastadv.models import prepare
from fastadv.models.identity import tensors_hash
from fastadv.runs import Work
from fastadv.runs import attack as attacking
from fastadv.runs.attack import Order
from fastadv.runs.goals import GoalChoice
from fastadv.studies.detection import evaluate as detect_evaluate
from fastadv.studies.detection import plan as detect_plan
from fastadv.studies.detection import score as detect_score
from fastadv.studies.detection.configurations import CONFIGURATIONS
from fastadv.studies.detection.features import extract, kept, scores_of
from fastadv.studies.detection.fit import EVALUATION, FITTED
from fastadv.studies.detection.plan import Selection
from fastadv.studies.detection.score import score_folder
from fastadv.studies.detection.study import claimed
from fastadv.training import HeadConfig


def test_features_are_those_of_the_tap_and_are_read_again(model, tmp_path, plan):
    names = plan.people.names[:5]
    images = [plan.people.load(name).image for name in names]
    file = tmp_path / "f" / "x.safetensors"
    made = kept(file, "key", model.layers, names, lambda: extract(model, model.layers, names, images))
    tap = LayerTap(model=prepare(model))
    with torch.no_grad():
        tapped = tap(torch.stack(images))
        for value, expected in zip(made.values, tapped.values, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        assert made.predicted.tolist() == model.logits(torch.stack(images)).argmax(1).tolist()
        torch.testing.assert_close(made.embeddings, model(torch.stack(images)), rtol=1e-4, atol=1e-5)
    again = kept(file, "key", model.layers, names, lambda: pytest.fail("they are in the file"))
    assert all(torch.equal(a, b) for a, b in zip(made.values, again.values, strict=True))
    with pytest.raises(ValueError, match="expected 5 images like names, got 0"):
        kept(file, "other key", model.layers, names, lambda: extract(model, model.layers, names, iter(())))
    file.write_bytes(b"damaged")
    third = kept(file, "key", model.layers, names, lambda: extract(model, model.layers, names, images))
    assert torch.equal(third.values[0], made.values[0])
    assert made.of([names[3], names[1]]).names == (names[1], names[3])


def test_examples_are_images_that_reached_their_goal(study, model, plan):
    path, made = study
    assert [(c.attack, c.targeted) for c in made.cells] == list(
        itertools.product(("bim:4@8/255", "bim:2@12/255"), (True, False))
    )
    for cell in made.cells:
        folder = path / "attacks" / f"{cell.attack}-{'targeted' if cell.targeted else 'untargeted'}".replace("/", "-")
        rows = {row.name: row for row in read_manifest(folder)}
        assert set(rows) <= set(plan.splits().targets)
        assert cell.tried == len(rows)
        assert cell.features is not None
        assert set(cell.features.names) == {name for name, row in rows.items() if row.success}
        for name, predicted in list(zip(cell.features.names, cell.features.predicted.tolist(), strict=True))[:4]:
            own = plan.classes.index(name.rpartition("/")[0])
            assert predicted == plan.classes.index(plan.splits().targets[name]) if cell.targeted else predicted != own
            image = to_tensor(read_image(folder / "images" / f"{name}.png"))
            with torch.no_grad():
                assert int(model.logits(image[None]).argmax()) == predicted


def test_detectors_are_calibrated_on_the_people_that_validate(study, model, plan):
    path, made = study
    natural = plan.splits().natural["validate"]
    saved = load_detector(path / "detectors" / "mlp-medoid-cosine.safetensors")
    assert saved.thresholds is not None
    assert saved.thresholds.natural == len(natural)
    found = next(d for d in made.detectors if d.configuration.label == "mlp-medoid-cosine")
    assert set(found.aucs) == {"bim targeted", "bim untargeted"}
    images = [plan.people.load(name).image for name in natural]
    calm = scores_of(saved, extract(model, saved.layers, natural, images))
    attacked = torch.cat(
        [
            scores_of(saved, part)
            for cell in made.cells
            if cell.targeted and (part := cell.part(plan.splits().attacked["validate"])) is not None
        ]
    )
    assert found.aucs["bim targeted"] == pytest.approx(auc(calm, attacked), abs=1e-6)
    assert found.worst == min(found.aucs.values())
    assert made.best.worst == max(d.worst for d in made.detectors)
    assert len(saved.trajectory.representatives.classes) == 8


def test_a_detector_takes_its_network_with_any_count_of_training_batches(study, model):
    saved = load_detector(study[0] / "detectors" / "mlp-medoid-cosine.safetensors")
    detect_score.check_network(saved, model)
    counted = copy.deepcopy(model)
    counted.backbone.register_buffer("num_batches_tracked", torch.tensor(7))
    detect_score.check_network(saved, counted)
    everything = tensors_hash(model.backbone.state_dict())  # of an earlier version
    detect_score.check_network(replace(saved, provenance={detect_score.BACKBONE: everything}), model)
    with torch.no_grad():
        next(counted.backbone.parameters()).add_(1)
    with pytest.raises(ValueError, match="weights: expected those that the detector was fitted on, got others of"):
        detect_score.check_network(saved, counted)


def test_a_fit_that_was_stopped_ends_the_same(study, model, tmp_path, plan):
    path, _ = study
    calls = itertools.count()

    def stop(stage, done, total):
        if stage.startswith("bim:2") and next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.fit(tmp_path / "run", model, configurations=plan.configurations[1:], progress=stop)
    plan.fit(tmp_path / "run", model, configurations=plan.configurations[1:])
    for part in ("detectors", "fits"):
        made = sorted((tmp_path / "run" / part).iterdir())
        assert len(made) == len(plan.configurations[1:])
        for file in made:
            assert file.read_bytes() == (path / part / file.name).read_bytes(), file.name


def test_detectors_are_fitted_anew_on_the_same_images(study, model, tmp_path, plan):
    path = tmp_path / "run"
    shutil.copytree(study[0], path)
    stamps = {p: p.stat().st_mtime_ns for p in path.glob("attacks/**/*.png")}
    (path / EVALUATION).write_text("{}")
    same = plan.fit(path, model)
    assert same.best.worst == study[1].best.worst
    assert (path / EVALUATION).exists()
    other = plan.fit(path, model, fitting=replace(plan.fitting, epochs=7, lr=1e-2))
    assert {d.epochs for d in other.detectors} == {7}
    assert not (path / EVALUATION).exists()
    assert stamps
    assert {p: p.stat().st_mtime_ns for p in path.glob("attacks/**/*.png")} == stamps


def test_figures_of_other_detectors_do_not_stay(study, model, tmp_path, plan):
    """A second fit that is stopped leaves detectors of both fits, and no figures."""
    path = tmp_path / "run"
    shutil.copytree(study[0], path)
    (path / EVALUATION).write_text("{}")

    def stop(stage, done, total):
        if stage == f"fitting {plan.configurations[1].label}":
            raise KeyboardInterrupt

    other = replace(plan.fitting, epochs=7, lr=1e-2)
    with pytest.raises(KeyboardInterrupt):
        plan.fit(path, model, fitting=other, progress=stop)
    assert not (path / EVALUATION).exists()
    with pytest.raises(ValueError, match="expected a finished study of 'fastadv detect fit'"):
        detect_evaluate._fitted(path)
    assert not list((path / "detectors").glob(".*"))
    plan.fit(path, model)
    assert (path / FITTED).read_bytes() == (study[0] / FITTED).read_bytes()


def test_a_folder_takes_one_study(study, model, tmp_path, plan, evaluate):
    path, _ = study
    with pytest.raises(RunFolderError, match=r"holds another study; seed: expected 0 \(as in study\.json\), got 9"):
        plan.fit(path, model, seed=9)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("x")
    with pytest.raises(RunFolderError, match="expected a new or empty folder, or that of a study"):
        plan.fit(tmp_path / "full", model)
    with (
        pytest.raises(RunFolderError, match="expected a folder that no other process writes to, got "),
        claimed(path),
    ):
        plan.fit(path, model)
    with pytest.raises(ValueError, match="faces: expected .*; give the study.s own"):
        detect_evaluate.evaluate_folder(path, Selection(plan.people, plan.people.names[9:]), model, evaluate)
    with pytest.raises(
        ValueError, match="model: expected .*; give the study's own|weights: expected .*; give the study's own"
    ):
        detect_evaluate.evaluate_folder(path, plan.people, load("synth-mobile"), evaluate)
    with pytest.raises(ValueError, match="knn_layers: expected one of"):
        detect_evaluate.evaluate_folder(path, plan.people, model, replace(evaluate, knn_layers=("nowhere",)))
    with pytest.raises(ValueError, match="unseen: expected attacks that the study was not fitted on, got bim:4@8/255"):
        detect_evaluate.evaluate_folder(path, plan.people, model, replace(evaluate, unseen=evaluate.adaptive))
    with pytest.raises(ValueError, match="got a folder without study.json"):
        detect_evaluate.evaluate_folder(tmp_path, plan.people, model, evaluate)


def test_a_network_without_a_head_gets_one_of_what_is_not_set_aside(model, tmp_path, plan):
    bare = load("synth-mobile")
    made = plan.fit(
        tmp_path / "run",
        bare,
        configurations=plan.configurations[1:],
        classes=None,
        attacks=(parse_attack("bim:4@8/255"),),
    )
    assert bare.head is None
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == list(plan.splits().people)
    headed = load("synth-mobile", weights=tmp_path / "run" / "head.safetensors")
    assert headed.head is not None
    assert headed.head.out_features == 8
    assert made.accuracy > 0.5
    again = {"configurations": plan.configurations[1:], "classes": None, "attacks": (parse_attack("bim:4@8/255"),)}
    assert plan.fit(tmp_path / "run", bare, **again).accuracy == made.accuracy
    with pytest.raises(RunFolderError, match=r"head training\.epochs: expected 40 \(as in study\.json\), got 41"):
        plan.fit(tmp_path / "run", bare, head=HeadConfig(epochs=41, lr=0.1), **again)
    slow = plan.fit(tmp_path / "slow", bare, head=HeadConfig(epochs=2, lr=0.01), **again)
    assert slow.accuracy < 0.8
    assert any("rightly: only those are attacked; train its class head longer" in line for line in slow.notices)
    with pytest.raises(ValueError, match=r"got none; the network classifies .* of the natural images rightly"):
        plan.fit(tmp_path / "none", bare, head=HeadConfig(epochs=1, lr=1e-3), **again)


def test_runs_of_the_attack_command_are_read(study, model, tmp_path, plan):
    """Images made of those that train the head are left out, and said so."""
    aside = [plan.splits().attacked[part][0] for part in detect_plan.PARTS]
    names = [*aside, *(plan.splits().natural[part][1] for part in detect_plan.PARTS), plan.splits().rest[0]]
    others = [next(n for n in plan.people.names if n[:9] != name[:9]) for name in names]
    orders = [Order(name=n, source=n, target=o) for n, o in zip(names, others, strict=True)]
    with RunFolder.open(tmp_path / "made", {"made": "here"}) as folder:
        summary = attacking.attack_folder(
            plan.people,
            model,
            CATALOG["fim"].make(eps=16 / 255, steps=12),
            GoalChoice(goal="impersonate", threshold=0.3),
            Work(folder=folder, engine=plan.engine.resolve(model)),
            orders=orders,
        )
    assert summary.success == 1
    made = plan.fit(
        tmp_path / "run", model, configurations=plan.configurations[1:], attacks=(), runs=(str(tmp_path / "made"),)
    )
    assert [(c.family, c.targeted, c.made, c.tried) for c in made.cells] == [("fim", True, 6, 6)]
    assert made.cells[0].attack == f"fim of {tmp_path / 'made'}"
    assert any("1 images were made from images that are not set aside" in line for line in made.notices)


def test_a_folder_is_scored_by_the_detectors_own_network(study, model, plan):
    path, _ = study
    detector = load_detector(path / "detectors" / "mlp-medoid-cosine.safetensors")
    at = detector.thresholds.at
    chosen = Selection(plan.people, plan.people.names[:4])
    found = score_folder(chosen, model, detector, threshold=at(0.05))
    assert [face.name for face in found.faces] == list(chosen.names)
    assert found.threshold == detector.thresholds.at_false_alarm(0.05)
    assert [face.flagged for face in found.faces] == [face.score >= found.threshold for face in found.faces]
    assert found.flagged == sum(face.flagged for face in found.faces)
    # calibrated on 20 natural images, and so not for 1 %
    assert detector.thresholds.usual_rate is None
    assert score_folder(chosen, model, detector).threshold == at(None) == detector.thresholds.equal_error
    assert at(0.2) < at(0.05)  # any rate that they can measure
    with pytest.raises(
        ValueError, match="rate: expected a rate that 20 .* 1/21 or more, got 0.001; needs at least 999"
    ):
        at(0.001)
    assert [face.p_value <= 0.05 for face in found.faces] == [face.flagged for face in found.faces]
    assert "false-alarm rate 0.001: not measurable from 20 natural images; needs at least 1,000" in study[1].notices
    with pytest.raises(ValueError, match="model: expected the detector's, synth-vgg, got synth-mobile"):
        score_folder(chosen, load("synth-mobile"), detector)
    with pytest.raises(ValueError, match="weights: expected those that the detector was fitted on"):
        score_folder(chosen, load("synth-vgg", random_weights_seed=1), detector)
    with pytest.raises(ValueError, match="detector: expected a calibrated one"):
        score_folder(chosen, model, replace(detector, thresholds=None))


def test_a_score_that_is_no_number_is_flagged_and_named(study, model, plan, monkeypatch):
    detector = load_detector(study[0] / "detectors" / "mlp-medoid-cosine.safetensors")
    chosen = Selection(plan.people, plan.people.names[:4])
    usual = score_folder(chosen, model, detector)
    scores = torch.tensor([face.score for face in usual.faces])
    scores[1] = torch.nan
    scores[2] = torch.inf
    monkeypatch.setattr(detect_score, "scores_of", lambda *_: scores)
    names = ", ".join(chosen.names[1:3])
    with pytest.warns(Notice, match=f"score: expected finite numbers, got none for {names}; these images are flagged"):
        found = score_folder(chosen, model, detector)
    assert [face.flagged for face in found.faces[1:3]] == [True, True]
    assert [found.faces[k].flagged for k in (0, 3)] == [usual.faces[k].flagged for k in (0, 3)]


def test_both_readings_on_the_same_images(study, model, tmp_path, plan):
    """The raw detectors are those of a study without the others; the relative ones read five numbers of a layer."""
    path = tmp_path / "run"
    shutil.copytree(study[0], path)
    assert [len(own) for own in CONFIGURATIONS.values()] == [8, 20]
    labels = [c.label for own in CONFIGURATIONS.values() for c in own]
    assert len(set(labels)) == 28
    assert labels[:2] == ["lstm-medoid-l2", "lstm-centroid-l2"]
    assert labels[-1] == "mlp+linear-centroid-l2+cosine-relative"
    more = tuple(c for c in CONFIGURATIONS["relative"] if (c.representatives, c.metric) == ("medoid", "cosine"))
    made = plan.fit(path, model, configurations=(*plan.configurations, *more))
    for file in (study[0] / "detectors").iterdir():
        assert (path / "detectors" / file.name).read_bytes() == file.read_bytes()
    for found in made.detectors[2:]:
        saved = load_detector(path / "detectors" / f"{found.configuration.label}.safetensors")
        assert saved.trajectory.reading == found.configuration.reading == "relative"
        assert saved.network.mean.shape == (len(saved.layers), 5)
    told = json.loads((path / FITTED).read_text())["detectors"]
    assert [d["reading"] for d in told] == ["raw", "raw", *["relative"] * 3]
    assert [c.reading for c in detect_evaluate._fitted(path)[1]] == [d["reading"] for d in told]
    for each in told:  # as an earlier version wrote them
        del each["reading"]
    (path / FITTED).write_text(json.dumps({"detectors": told[:2], "best": told[0]["label"]}))
    assert detect_evaluate._fitted(path)[1] == plan.configurations


def test_a_detector_of_both_distances_is_the_mean_of_two(study, model, tmp_path, plan):
    """Its scores, and the epochs of the longer fit; the two need not be among the detectors."""
    path = tmp_path / "run"
    shutil.copytree(study[0], path)
    centroid = [c for c in CONFIGURATIONS["relative"] if c.representatives == "centroid"]
    chosen = [c for c in centroid if c.network == "mlp"]
    made = plan.fit(path, model, configurations=chosen)
    assert [c.metric for c in chosen] == ["l2", "cosine", "l2+cosine"]
    scores, chosen_faces = [], Selection(plan.people, plan.people.names[:6])
    for found in made.detectors:
        saved = load_detector(path / "detectors" / f"{found.configuration.label}.safetensors")
        faces = score_folder(chosen_faces, model, saved).faces
        scores.append(torch.tensor([face.score for face in faces], dtype=torch.float64))
    torch.testing.assert_close(scores[2], (scores[0] + scores[1]) / 2, rtol=1e-4, atol=1e-4)
    assert made.detectors[2].epochs == max(found.epochs for found in made.detectors[:2])
    shutil.rmtree(path)
    shutil.copytree(study[0], path)
    four = [c for c in centroid if c.network in ("linear", "mlp+linear") and c.metric == "l2+cosine"]
    alone, linear, mean = plan.fit(path, model, configurations=(chosen[2], *four)).detectors
    assert alone.aucs == made.detectors[2].aucs
    faces = [score_folder(chosen_faces, model, found.detector).faces for found in (alone, linear, mean)]
    scores = [torch.tensor([face.score for face in each], dtype=torch.float64) for each in faces]
    torch.testing.assert_close(scores[2], (scores[0] + scores[1]) / 2, rtol=1e-4, atol=1e-4)
    assert mean.detector.network.architecture.hidden == 2 * (100 + 2)
