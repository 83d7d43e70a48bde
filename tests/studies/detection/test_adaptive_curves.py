"""Adaptive attacks against steps and radius: counts, what is carried on, checks of the attack, and the page."""

import json
import shutil
from dataclasses import replace

import pytest

import fastadv as fa
from fastadv.attacks.spec import parse_attack
from fastadv.core.errors import ArgumentError
from fastadv.core.statistics import wilson
from fastadv.data import read_manifest
from fastadv.detection import load_detector
from fastadv.report.pages import detection as detect_page
from fastadv.report.pages.detection_adaptive import points_table
from fastadv.studies.detection import adaptive_curves as curves
from fastadv.studies.detection import study as detect_study
from fastadv.studies.detection.adaptive import make_adaptive, threshold_of
from fastadv.studies.detection.adaptive_goals import ReachClass
from fastadv.studies.detection.features import scores_of
from fastadv.studies.detection.setting import look

TEXT = "bim:4@8/255"
NAMES = ("lstm-medoid-cosine", "mlp-medoid-cosine")


@pytest.fixture(scope="module")
def setting(study, model, plan):
    return detect_study.reopen(study[0], plan.people, model)[1]


@pytest.fixture(scope="module")
def detectors(study):
    return {name: load_detector(study[0] / "detectors" / f"{name}.safetensors") for name in NAMES}


def points_of(setting, detectors, best, other=None, text=TEXT, weights=(5.0,)):
    goal = ReachClass(setting=setting, clean=look(setting))
    return curves.adaptive_points(goal, detectors, [(best, other)], [parse_attack(text)], weights)


def test_both_curves_and_both_checks_are_there(evaluated):
    for targeted in (True, False):
        own = [p for p in evaluated.adaptive_points if p.targeted is targeted]
        by_kind = {varied: [p for p in own if p.varied == varied] for varied in dict.fromkeys(p.varied for p in own)}
        assert list(by_kind) == ["steps", "ten times the steps", "eps", "transfer"]
        assert [p.steps for p in by_kind["steps"]] == [1, 4]
        assert [p.steps for p in by_kind["ten times the steps"]] == [40]
        assert [p.eps for p in by_kind["eps"]] == pytest.approx([2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255])
        (lent,) = by_kind["transfer"]
        assert lent.made_for != evaluated.best
        assert {p.detector for p in own} == {evaluated.best}
        assert {p.made_for for p in own} == {lent.made_for, evaluated.best}
        for point in own:
            assert 0 <= point.hidden <= point.fooled <= point.images
        steps = [*by_kind["steps"], *by_kind["ten times the steps"]]
        for path in (steps, by_kind["eps"]):
            assert [p.hidden for p in path] == sorted(p.hidden for p in path)
            assert [p.fooled for p in path] == sorted(p.fooled for p in path)
        # the attack as it is given stands in both curves, and the larger one has all of the smaller one's runs
        assert by_kind["eps"][2].hidden >= by_kind["steps"][-1].hidden


@pytest.mark.parametrize("targeted", [True, False])
def test_the_best_run_of_each_image_counts(targeted, setting, detectors):
    """One radius and one step: the union of the successes of the margin loss and of the weight, each run in full."""
    detector, goal = detectors[NAMES[1]], ReachClass(setting=setting, clean=look(setting))
    spec = curves._stopping(parse_attack("bim:1@8/255"))
    hidden, fooled = set(), set()
    for weight, by_shortfall in ((1.0, True), (5.0, False)):
        cell = make_adaptive(
            goal,
            spec,
            detector,
            "whole",
            weight=weight,
            targeted=targeted,
            by_shortfall=by_shortfall,
        )
        if cell.features is not None:
            below = scores_of(detector, cell.features) < threshold_of(detector)
            fooled |= set(cell.features.names)
            hidden |= {name for name, good in zip(cell.features.names, below.tolist(), strict=True) if good}
    found = [p for p in points_of(setting, detectors, NAMES[1], text="bim:1@8/255") if p.targeted is targeted]
    (first,) = [p for p in found if p.varied == "steps"]
    assert first.hidden == len(hidden)
    assert first.fooled <= len(fooled)  # what evades both at first is not attacked again
    assert first.fooled >= first.hidden


def test_what_is_there_is_read_and_what_is_gone_is_made_again(setting, detectors, study):
    before = points_of(setting, detectors, NAMES[1])
    folders = sorted(p for p in (study[0] / "attacks").iterdir() if f"{NAMES[1]}-margin-1" in p.name)
    stamps = {p: p.stat().st_mtime_ns for folder in folders for p in folder.glob("**/*.png")}
    assert stamps
    assert points_of(setting, detectors, NAMES[1]) == before
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    shutil.rmtree(folders[0])
    assert points_of(setting, detectors, NAMES[1]) == before


def test_images_for_a_transfer_do_not_stop_where_the_other_detector_is_evaded(evaluated, study):
    (other,) = {p.made_for for p in evaluated.adaptive_points if p.varied == "transfer"}
    folders = [p for p in (study[0] / "attacks").iterdir() if f"-{other}-margin-1-" in p.name]
    made = [p for p in folders if p.name.startswith("bim:4@8-255-")]
    assert len(made) == 2  # targeted and untargeted
    for folder in made:
        assert {row.ticks for row in read_manifest(folder)} == {4}


@pytest.mark.parametrize("targeted", [True, False])
def test_images_of_another_study_count_as_a_guard_sees_them(targeted, setting, detectors, evaluated, study, model):
    """The study's own folder stands for the other one: its images are read from files, whoever made them."""
    kind, (other, best) = ("targeted" if targeted else "untargeted"), NAMES
    guard, hidden, fooled, tried = fa.Guard(model=model, detector=detectors[best]), set(), set(), set()
    for folder in (study[0] / "attacks").glob(f"{TEXT.replace('/', '-')}-{kind}-*"):
        for row in read_manifest(folder):
            image = fa.data.to_tensor(fa.data.read_image(folder / "images" / f"{row.name}.png"))
            seen = guard(image[None])
            wanted = setting.logit[setting.splits.targets[row.name] if targeted else row.name.rpartition("/")[0]]
            tried.add(row.name)
            if (int(seen.logits.argmax()) == wanted) is targeted:
                fooled.add(row.name)
                if seen.scores.item() < threshold_of(detectors[best]):
                    hidden.add(row.name)
    found = curves.adaptive_points(
        ReachClass(setting=setting, clean=look(setting)),
        detectors,
        [(best, other)],
        [parse_attack(TEXT)],
        (5.0,),
        [str(study[0])],
    )
    own, lent = [p for p in found if p.targeted is targeted and p.varied == "transfer"]
    assert (own.made_for, lent.made_for) == (other, str(study[0]))
    assert (lent.hidden, lent.fooled, lent.images) == (len(hidden), len(fooled), len(tried))
    assert lent.images == own.images
    assert lent.fooled > 0


def test_a_study_without_such_images_or_of_other_targets_is_refused(setting, evaluated, study, tmp_path):
    text = "expected a study with images of pgd:3@8/255, targeted, made to evade a detector, got none in .*; evaluate"
    with pytest.raises(ArgumentError, match=text):
        curves.runs_to_transfer(setting, study[0], parse_attack("pgd:3@8/255"), True)
    shutil.copytree(study[0] / "attacks", tmp_path / "attacks")
    spec = parse_attack(TEXT)
    assert curves.runs_to_transfer(setting, tmp_path, spec, True)
    swapped = dict.fromkeys(setting.splits.targets, "nobody")
    other = replace(setting, splits=replace(setting.splits, targets=swapped))
    with pytest.raises(ArgumentError, match="expected a study of the same faces, split and seed"):
        curves.runs_to_transfer(other, tmp_path, spec, True)
    with pytest.raises(ArgumentError, match="expected a study of the same faces, split and seed"):
        curves.runs_to_transfer(replace(setting, splits=replace(setting.splits, targets={})), tmp_path, spec, False)
    for file in (tmp_path / "attacks").glob("*/run.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "config": {}}))
    with pytest.raises(ArgumentError, match="got none"):
        curves.runs_to_transfer(setting, tmp_path, spec, False)


@pytest.mark.parametrize("text", ["cw-l2:3,search_steps=1", "deepfool"])
def test_attacks_without_steps_and_radius_have_no_curves(text, setting, detectors):
    assert points_of(setting, detectors, NAMES[1], text=text) == ()


def test_radii_reach_four_times_that_of_the_attack(setting, detectors):
    radii = {
        text: {p.eps for p in points_of(setting, detectors, NAMES[1], text=text, weights=()) if p.varied == "eps"}
        for text in ("pgd-l2:2@2", "bim:1@0.5")
    }
    assert radii == {"pgd-l2:2@2": {0.5, 1.0, 2.0, 4.0, 8.0}, "bim:1@0.5": {0.125, 0.25, 0.5, 1.0}}


def test_an_attack_that_says_how_it_stops_is_left_as_it_is():
    told = parse_attack(f"{TEXT},stop_at_success=false")
    assert curves._stopping(told) == told
    assert dict(curves._stopping(parse_attack(TEXT)).settings)["stop_at_success"] == "true"


def point(varied, steps=10, eps=0.03, *, hidden, fooled=20, images=20, made_for="mlp"):
    return curves.AdaptivePoint(
        attack="pgd:10@0.03",
        goal="class",
        targeted=True,
        varied=varied,
        detector="mlp",
        made_for=made_for,
        steps=steps,
        eps=eps,
        images=images,
        fooled=fooled,
        hidden=hidden,
    )


STRONG = (
    *(point("steps", 1, hidden=4), point("steps", 10, hidden=18), point("ten times the steps", 100, hidden=19)),
    *(point("eps", eps=0.03, hidden=18), point("eps", eps=0.12, hidden=20)),
    *(point("transfer", hidden=5, made_for="lstm"), point("transfer", hidden=4, images=10, made_for="other")),
)


@pytest.mark.parametrize(
    ("place", "hidden", "expected"),
    [
        (None, None, None),
        (2, 20, "not converged: 18 of 20 images evade the detector within 10 steps, 20 within 100"),
        (4, 18, "18 of 20 images evade the detector at the largest radius, 0.12, where nearly all should"),
        (5, 19, "sign of gradient masking: 19 of 20 images made to evade lstm evade the detector, 18 of those"),
        (6, 10, "sign of gradient masking: 10 of 10 images made to evade other evade the detector, 18 of those"),
        (6, 9, None),
    ],
)
def test_an_attack_that_is_too_weak_is_told(place, hidden, expected):
    points = [replace(p, hidden=hidden) if k == place else p for k, p in enumerate(STRONG)]
    notes = curves.masking_notes(points)
    assert len(notes) == (expected is not None)
    if expected is not None:
        assert notes[0].startswith("pgd:10@0.03 targeted on mlp: ")
        assert expected in notes[0]
    assert curves.masking_notes([]) == ()


def test_shares_have_intervals_and_nothing_has_none():
    found = point("steps", hidden=5, fooled=8).described()
    assert (found["success"], found["flagged"]) == (5 / 20, 3 / 8)
    assert found["success_interval"] == wilson(5, 20)
    assert found["flagged_interval"] == wilson(3, 8)
    nobody = point("steps", hidden=0, fooled=0, images=0).described()
    assert {nobody[name] for name in ("success", "success_interval", "flagged", "flagged_interval")} == {None}
    shown = points_table([found, nobody, point("transfer", hidden=1, made_for="lstm").described()]).rows
    assert shown[0][-2:] == ("5 of 20, 25\u00a0% [11\u00a0%, 47\u00a0%]", "3 of 8, 38\u00a0% [14\u00a0%, 69\u00a0%]")
    assert shown[1][-2:] == ("–", "–")
    assert shown[2][2] == "transfer from lstm"


def test_the_page_shows_the_curves(study, evaluated, tmp_path):
    text = detect_page.render(study[0], out=tmp_path / "page.html").read_text()
    for expected in ("Adaptive attacks against steps and radius", "against the radius", "ten times the steps"):
        assert expected in text
