"""Adaptive attackers of a verifier: whom it accepts, what an image claims, and runs apart from those of a class."""

import json
from dataclasses import replace

import pytest
import torch

import fastadv as fa
from fastadv.attacks.spec import parse_attack
from fastadv.core.errors import ArgumentError
from fastadv.data import read_manifest
from fastadv.detection import load_detector
from fastadv.report.pages.detection_adaptive import goal_words, points_table
from fastadv.studies.detection import adaptive_curves as curves
from fastadv.studies.detection import evaluate as detect_evaluate
from fastadv.studies.detection import study as detect_study
from fastadv.studies.detection.adaptive import adaptive_rows, make_adaptive, threshold_of
from fastadv.studies.detection.adaptive_goals import PassVerifier, ReachClass
from fastadv.studies.detection.configurations import Configuration
from fastadv.studies.detection.evaluate import EvaluateConfig
from fastadv.studies.detection.features import scores_of
from fastadv.studies.detection.setting import look

SPEC = parse_attack("bim:3@12/255")
READINGS = ("raw", "relative")
VARIED = (curves.STEPS, curves.MORE, curves.EPS, curves.TRANSFER)
FAR = 0.02  # of 560 pairs


@pytest.fixture(scope="module")
def path(tmp_path_factory, plan, model):
    """A study with detectors of both readings."""
    place = tmp_path_factory.mktemp("verifier") / "run"
    both = [Configuration(network="mlp", representatives="medoid", metric="cosine", reading=r) for r in READINGS]
    plan.fit(place, model, configurations=tuple(both), attacks=(parse_attack("bim:2@12/255"),))
    return place


@pytest.fixture(scope="module")
def setting(path, plan, model):
    return detect_study.reopen(path, plan.people, model)[1]


@pytest.fixture(scope="module")
def goal(setting):
    return PassVerifier.at(setting, look(setting), far=FAR)


@pytest.fixture(scope="module")
def detectors(path):
    return {file.stem: load_detector(file) for file in (path / "detectors").iterdir()}


def of(detectors, reading):
    return next((name, d) for name, d in detectors.items() if d.trajectory.reading == reading)


def test_the_threshold_is_that_of_the_false_accept_rate(goal, setting):
    """By hand: every natural image beside the unit mean of each other person's images."""
    clean, accepted, refused, pairs = goal.clean, 0, 0, 0
    for person in setting.splits.people:
        own = [n.rpartition("/")[0] == person for n in clean.rest.names]
        template = torch.nn.functional.normalize(clean.rest.embeddings[own].mean(0), dim=0)
        for name, similarity in zip(clean.natural.names, clean.natural.embeddings @ template, strict=True):
            if name.rpartition("/")[0] == person:
                refused += float(similarity) < goal.threshold
            else:
                pairs += 1
                accepted += float(similarity) >= goal.threshold
    assert goal.pairs == pairs == 80 * 7
    assert goal.far == pytest.approx(accepted / pairs)
    assert goal.far == pytest.approx(FAR, abs=1 / pairs)
    assert goal.false_reject_rate == pytest.approx(refused / 80)
    given = PassVerifier.at(setting, clean, threshold=goal.threshold)
    assert given.described() == goal.described()
    with pytest.raises(ArgumentError, match="adaptive_far: expected a rate of at least 0.0018, .* 560 pairs"):
        PassVerifier.at(setting, clean)  # one in a thousand of 560


def test_an_image_counts_from_the_threshold_on_and_not_below_it(goal):
    names = goal.sources()
    seen = goal.clean.sources.of(names)
    for targeted in (True, False):
        who = [goal.setting.splits.targets[n] if targeted else n.rpartition("/")[0] for n in names]
        template = torch.stack([goal.templates[goal.setting.splits.people.index(person)] for person in who])
        similar = (seen.embeddings * template).sum(1)
        for k in range(len(names)):
            line = float(similar[k])
            above = float(torch.nextafter(similar[k], torch.tensor(2.0)))
            at, beyond = (replace(goal, threshold=each).reaches(seen, targeted=targeted)[k] for each in (line, above))
            assert (bool(at), bool(beyond)) == ((True, False) if targeted else (False, True))


def test_only_who_is_accepted_as_himself_and_not_as_the_target_is_attacked(goal):
    everybody = ReachClass(setting=goal.setting, clean=goal.clean).sources()
    assert set(goal.sources()) <= set(everybody)
    seen = goal.clean.sources.of(everybody)
    met = goal.reaches(seen, targeted=True) | goal.reaches(seen, targeted=False)
    assert goal.sources() == [name for name, each in zip(seen.names, met.tolist(), strict=True) if not each]
    assert replace(goal, threshold=1.0).sources() == []  # nobody is accepted


def test_the_claim_is_the_targets_and_an_evader_claims_nobody(goal, detectors):
    names, targets = goal.sources(), goal.setting.splits.targets
    _, detector = of(detectors, "relative")
    classes = detector.trajectory.representatives.classes
    claims = goal.claims(detector, names, targeted=True)
    assert [classes[k] for k in claims.tolist()] == [targets[name] for name in names]
    own = goal.claims(detector, names, targeted=True, natural=True)
    assert [classes[k] for k in own.tolist()] == [name.rpartition("/")[0] for name in names]
    assert goal.claims(detector, names, targeted=False) is None
    assert goal.claims(of(detectors, "raw")[1], names, targeted=True) is None
    reach = ReachClass(setting=goal.setting, clean=goal.clean)
    assert reach.claims(detector, names, targeted=True) is None
    seen = goal.clean.sources.of(names)
    assert torch.equal(goal.scores(detector, seen, targeted=False), scores_of(detector, seen))
    assert not torch.equal(goal.scores(detector, seen, targeted=True), scores_of(detector, seen))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("targeted", [True, False])
def test_an_image_counts_as_verifier_and_guard_judge_its_file(targeted, reading, goal, detectors, model, path):
    name, detector = of(detectors, reading)
    cell = make_adaptive(goal, SPEC, detector, name, weight=1.0, targeted=targeted, by_shortfall=True)
    assert cell.folder.name.startswith(f"{SPEC.label.replace('/', '-')}-{'' if targeted else 'un'}targeted-verifier-")
    guard = fa.Guard(model=model, detector=detector, threshold=threshold_of(detector))
    fooled, hidden = set(), set()
    rows = read_manifest(cell.folder)
    assert {row.goal for row in rows} == {"impersonate" if targeted else "evade"}
    for row in rows:
        image = fa.data.to_tensor(fa.data.read_image(cell.folder / "images" / f"{row.name}.png"))[None]
        who = goal.setting.splits.targets[row.name] if targeted else row.name.rpartition("/")[0]
        with torch.no_grad():
            similarity = float(model(image)[0] @ goal.templates[goal.setting.splits.people.index(who)])
        if (similarity >= goal.threshold) is targeted:
            fooled.add(row.name)
            if not guard(image, [who] if targeted and reading == "relative" else None).flagged.item():
                hidden.add(row.name)
    found = cell.features
    assert set(() if found is None else found.names) == fooled
    assert fooled
    below = goal.scores(detector, found, targeted=targeted) < threshold_of(detector)
    assert set(found.take(below).names) == hidden


def test_the_curves_rise_and_stay_apart_from_those_of_a_class(goal, setting, detectors, path):
    name, _ = of(detectors, "relative")
    before = {file: file.read_bytes() for file in path.glob("attacks/*/run.json")}
    found = curves.adaptive_points(goal, detectors, [(name, of(detectors, "raw")[0])], [SPEC], (1.0,))
    assert {point.goal for point in found} == {"verifier"}
    for targeted in (True, False):
        own = {varied: [p for p in found if p.targeted is targeted and p.varied == varied] for varied in VARIED}
        for path_ in ([*own["steps"], *own["ten times the steps"]], own["eps"]):
            for counts in ([p.hidden for p in path_], [p.fooled for p in path_]):
                assert counts == sorted(counts)
        assert own["eps"][-1].hidden > 0
        assert len(own["transfer"]) == 1
    assert {p.images for p in found} == {len(goal.sources())}
    stamps = {p: p.stat().st_mtime_ns for p in path.glob("attacks/*-verifier-*/**/*.png")}
    assert curves.adaptive_points(goal, detectors, [(name, of(detectors, "raw")[0])], [SPEC], (1.0,)) == found
    assert {p: p.stat().st_mtime_ns for p in path.glob("attacks/*-verifier-*/**/*.png")} == stamps
    assert {file: file.read_bytes() for file in before} == before
    shown = points_table([point.described() for point in found]).rows
    assert {row[1] for row in shown} == {f"{SPEC.label}, {k}, verifier" for k in ("targeted", "untargeted")}
    # the images for a class, and those for another threshold, are others
    names = {p.name for p in path.glob("attacks/*")}
    detector = detectors[name]
    reach = ReachClass(setting=setting, clean=goal.clean)
    for other in (reach, replace(goal, threshold=goal.threshold + 0.01)):
        cell = make_adaptive(other, SPEC, detector, name, weight=1.0, targeted=True)
        assert cell.folder.name not in names
        assert ("verifier" in cell.folder.name) is (other is not reach)
        config = json.loads((cell.folder / "run.json").read_text())["config"]
        assert config.get("goal", {}).get("threshold") == (None if other is reach else other.threshold)


def test_images_of_another_study_are_those_of_the_same_goal(goal, setting, detectors, tmp_path):
    name, detector = of(detectors, "raw")
    usual = replace(SPEC, steps=SPEC.recipe().steps)
    for other in (goal, ReachClass(setting=setting, clean=goal.clean)):
        make_adaptive(other, usual, detector, name, weight=1.0, targeted=True)
        runs = curves.runs_to_transfer(setting, setting.path, usual, True, other.name)
        assert runs
        assert all(("-verifier-" in folder.name) is (other is goal) for folder, _ in runs)
    # an attacker who does not know the detector has made none to evade it
    blind = goal.unaware(usual, targeted=True).folder
    assert blind not in [folder for folder, _ in curves.runs_to_transfer(setting, setting.path, usual, True, goal.name)]
    with pytest.raises(ArgumentError, match="pass a verifier; evaluate it with --adaptive .* --adaptive-goal verifier"):
        curves.runs_to_transfer(setting, tmp_path, usual, True, "verifier")


def test_who_does_not_know_the_detector_passes_the_verifier_alone(goal, detectors):
    name, detector = of(detectors, "relative")
    unaware, weighted = adaptive_rows(goal, detector, name, [SPEC], [1.0], {})[:2]
    assert (unaware.goal, unaware.weight, weighted.weight) == ("verifier", 0, 1)
    assert unaware.tried == len(goal.sources())
    assert unaware.reached >= weighted.hidden
    cell = goal.unaware(SPEC, targeted=True)
    assert unaware.reached == cell.made / unaware.tried
    assert unaware.measured.natural == len(goal.setting.splits.natural["test"])


@pytest.mark.slow
def test_an_evaluation_says_which_verifier(path, plan, model):
    config = EvaluateConfig(adaptive=(SPEC,), weights=(1.0,), adaptive_goal="verifier", adaptive_threshold=0.4, k=3)
    made = detect_evaluate.evaluate_folder(path, plan.people, model, config)
    told = json.loads((path / "evaluation.json").read_text())
    assert told["verifier"] == made.verifier
    assert told["verifier"]["threshold"] == 0.4
    assert {row["goal"] for row in (*told["adaptive"], *told["adaptive_points"])} == {"verifier"}
    assert told["config"]["adaptive_goal"] == "verifier"
    assert "Threshold 0.400" in goal_words(told["verifier"])
    assert "class head" in goal_words(None)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"adaptive_goal": "pair"}, "adaptive_goal: expected one of class, verifier, got 'pair'"),
        ({"adaptive_goal": "verifier", "adaptive": ()}, "adaptive_goal: .* got none; give --adaptive too"),
        ({"adaptive_far": 0.01}, "adaptive_far: expected none without a verifier, got 0.01; give --adaptive-goal"),
        ({"adaptive_threshold": 0.3}, "adaptive_threshold: expected none without a verifier, got 0.3; give"),
        (
            {"adaptive_goal": "verifier", "adaptive_threshold": 0.3, "adaptive_far": 0.01},
            "adaptive_threshold: expected it or adaptive_far, got both",
        ),
        ({"adaptive_goal": "verifier", "adaptive_threshold": 1.5}, r"adaptive_threshold: .* in \[-1, 1\], got 1.5"),
        ({"adaptive_goal": "verifier", "adaptive_far": 0.0}, r"adaptive_far: expected a rate in \(0, 1\), got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(more, expected):
    with pytest.raises(ArgumentError, match=expected):
        EvaluateConfig(**{"adaptive": (SPEC,), **more})
