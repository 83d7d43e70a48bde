"""The evaluation of a study: on people, attacks and attackers that no detector has met."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch

from fastadv.attacks.spec import parse_attack
from fastadv.data import read_manifest
from fastadv.detection import auc, load_detector
from fastadv.report.pages import detection as detect_page
from fastadv.studies.detection import attacks as detect_attacks
from fastadv.studies.detection import evaluate as detect_evaluate
from fastadv.studies.detection import study as detect_study
from fastadv.studies.detection.adaptive import adaptive_rows
from fastadv.studies.detection.adaptive_goals import ReachClass
from fastadv.studies.detection.evaluate import EvaluateConfig
from fastadv.studies.detection.features import extract, scores_of
from fastadv.studies.detection.fit import EVALUATION
from fastadv.studies.detection.knn import knn_rows
from fastadv.studies.detection.setting import look


def test_the_test_people_decide_the_evaluation(study, evaluated, model, plan):
    path, made = study
    detector = load_detector(path / "detectors" / "lstm-medoid-cosine.safetensors")
    calm_names = plan.splits().natural["test"]
    calm = scores_of(
        detector, extract(model, detector.layers, calm_names, [plan.people.load(n).image for n in calm_names])
    )
    for targeted in (True, False):
        parts = [c.part(plan.splits().attacked["test"]) for c in made.cells if c.targeted is targeted]
        attacked = torch.cat([scores_of(detector, p) for p in parts if p is not None])
        (row,) = [
            m
            for m in evaluated.compared.measured
            if (m.detector, m.family, m.targeted, m.variant) == ("lstm-medoid-cosine", "bim", targeted, "")
        ]
        assert row.area.value == pytest.approx(auc(calm, attacked), abs=1e-6)
        assert row.images == len(attacked)
        assert row.area.low <= row.area.value <= row.area.high
        assert row.found[:2] == (None, None)  # 20 natural images say nothing about one in a thousand or a hundred
        assert row.found[2] is not None
    assert evaluated.natural == len(calm_names) == 20
    for rate, needed in (("0.001", "1,000"), ("0.01", "100")):
        sentence = f"false-alarm rate {rate}: not measurable from 20 natural images; needs at least {needed}"
        assert evaluated.notices.count(sentence) == 1  # of the fit's images and of the test's


def test_unseen_attacks_are_made_of_the_test_people_only(study, evaluated, plan):
    rows = read_manifest(study[0] / "attacks" / "fgsm@12-255-untargeted")
    assert {row.name for row in rows} <= set(plan.splits().attacked["test"])
    unseen = [m for m in evaluated.compared.measured if m.family == "fgsm"]
    assert unseen
    assert not any(m.seen for m in unseen)
    assert {m.detector for m in unseen} >= {"lstm-medoid-cosine", "mlp-medoid-cosine", "Mahalanobis", "LID", "deep kNN"}


@pytest.mark.parametrize("targeted", [True, False])
def test_an_attack_on_features_is_judged_by_the_nearest_class_mean(targeted, study, model, plan):
    _, setting = detect_study.reopen(study[0], plan.people, model)
    clean = look(setting)
    spec = parse_attack("fim:20@16/255")
    cell = detect_attacks.make(setting, clean, spec, targeted=targeted, parts=("test",))
    people = plan.splits().people
    rest = clean.rest
    own = torch.tensor([people.index(name.rpartition("/")[0]) for name in rest.names])
    means = torch.stack([rest.embeddings[own == k].mean(0) for k in range(len(people))])
    assert cell.features is not None
    for name, embedding in zip(cell.features.names, cell.features.embeddings, strict=True):
        said = people[int((means - embedding).norm(dim=1).argmin())]
        assert said == plan.splits().targets[name] if targeted else said != name.rpartition("/")[0]


def test_targeted_and_untargeted_guided_attacks_make_two_images_of_one(study, model, plan):
    """The untargeted one moves to the nearest other class mean, whoever the targeted one's guide is."""
    _, setting = detect_study.reopen(study[0], plan.people, model)
    clean = look(setting)
    spec = parse_attack("knn-df:12@12/255")
    made = [detect_attacks.make(setting, clean, spec, targeted=t, parts=("test",)) for t in (True, False)]
    aimed, free = (cell.features for cell in made)
    assert aimed is not None
    assert free is not None
    assert made[1].l2 < made[0].l2
    both = [name for name in aimed.names if name in free.names]
    assert both
    for name in both:
        a, b = (part.of([name]).embeddings for part in (aimed, free))
        assert not torch.equal(a, b)


def test_who_knows_the_detector_lowers_its_scores(evaluated, plan):
    by_weight = {(a.targeted, a.weight): a for a in evaluated.adaptive}
    assert {a.tried for a in evaluated.adaptive} == {len(plan.splits().attacked["test"])}
    assert set(by_weight) == {(t, w) for t in (True, False) for w in (0.0, 5.0)}
    for targeted in (True, False):
        blind, knows = by_weight[targeted, 0.0], by_weight[targeted, 5.0]
        assert 0 <= knows.hidden <= knows.reached <= 1
        if blind.measured is not None and knows.measured is not None:
            assert knows.measured.area.value <= blind.measured.area.value


def test_who_does_not_know_it_is_not_run_again(study, evaluated):
    made = {p.name for p in (study[0] / "attacks").iterdir()}
    own = [name for name in made if name.startswith(f"bim:4@8-255-targeted-{evaluated.best}")]
    assert len(own) == 1  # with the weight
    assert "bim:4@8-255-targeted" in made  # of the fit
    (blind,) = [a for a in evaluated.adaptive if a.targeted and not a.weight]
    (cell,) = [c for c in evaluated.cells if c.targeted and c.attack == "bim:4@8/255"]
    assert blind.reached * blind.tried == pytest.approx(blind.measured.images)
    assert blind.measured.images < cell.made


def test_more_neighbours_than_the_index_has_are_refused_before_any_work(study, evaluated, model, plan):
    count = len(plan.splits().rest)
    assert {row.k for row in evaluated.knn} == {7}
    with pytest.raises(
        ValueError, match=f"k: expected at most {count}, the images in the index of .*, got {count + 1}"
    ):
        detect_evaluate.evaluate_folder(study[0], plan.people, model, EvaluateConfig(k=count + 1))


def test_who_knows_the_detector_needs_a_threshold_that_can_be_measured(study, model, tmp_path, plan):
    path = tmp_path / "run"
    shutil.copytree(study[0], path)
    for file in path.glob("detectors/*.safetensors"):
        detector = load_detector(file)
        few = replace(detector.thresholds, natural=18, scores=detector.thresholds.scores[:18])
        replace(detector, thresholds=few).save(file)
    config = EvaluateConfig(adaptive=(parse_attack("bim:4@8/255"),))
    with pytest.raises(
        ValueError, match="adaptive: expected a detector with a threshold at 5% .* that 18 natural images can measure"
    ):
        detect_evaluate.evaluate_folder(path, plan.people, model, config)
    without = detect_evaluate.evaluate_folder(path, plan.people, model, replace(config, adaptive=()))
    assert without.adaptive == ()


def test_attacks_are_counted_apart_from_what_was_met_before(evaluated, study):
    plain = json.loads((study[0] / EVALUATION).read_text())
    for cell, told in zip(evaluated.cells, plain["cells"], strict=True):
        assert cell.counts.images == cell.tried == told["images"]
        assert cell.counts.rest_successes == cell.made == told["rest_successes"]
        assert told["met_before_images"] == len(cell.met)
        assert told["success_of_rest"] == pytest.approx(cell.made / (cell.tried - len(cell.met)))


def test_an_attack_that_stops_at_success_goes_on_until_it_is_hidden(study, model, plan):
    path, _ = study
    text = "knn-df:12@12/255"
    _, setting = detect_study.reopen(path, plan.people, model)
    goal = ReachClass(setting=setting, clean=look(setting))
    detector = load_detector(path / "detectors" / "mlp-medoid-cosine.safetensors")
    (row,) = [
        r for r in adaptive_rows(goal, detector, "mlp", [parse_attack(text)], [1.0], {}) if r.targeted and r.weight
    ]
    (folder,) = path.glob(f"attacks/{text.replace('/', '-')}-targeted-mlp-1-*")
    rows = read_manifest(folder)
    assert row.tried == len(rows)
    assert row.hidden * row.tried == pytest.approx(sum(r.success for r in rows), abs=1)  # ties of rounding apart
    assert row.hidden <= row.reached


def test_the_knn_table_has_every_layer_and_kind_and_its_aggregate(study, evaluated, model, plan):
    _, setting = detect_study.reopen(study[0], plan.people, model)
    kinds = itertools.product(setting.layers, ("none", "l2", "pca"), ("uniform", "rank", "inverse_square"))
    assert [(r.layer, r.processing, r.weighting) for r in evaluated.knn] == list(kinds)
    images = len(plan.splits().rest)
    widths = dict(zip(setting.layers, (value.shape[1] for value in look(setting).rest.values), strict=True))
    for row in evaluated.knn:
        assert {"bim targeted", "fgsm untargeted", "aggregate"} <= set(row.accuracy)
        assert set(row.accuracy) == set(row.refused) == set(row.images)
        assert all(0 <= value <= 1 for value in (*row.accuracy.values(), *row.refused.values()))
        assert set(row.aggregate) == set(row.accuracy) - {"aggregate", "natural errors"}  # no L-BFGS: all attacks
        assert row.images["aggregate"] == sum(row.images[name] for name in row.aggregate)
        assert row.components == (min(round(widths[row.layer] / 4), images // 10) if row.processing == "pca" else None)


def test_the_aggregate_is_targeted_lbfgs_and_fgsm_where_both_are_there(study, model, plan):
    _, setting = detect_study.reopen(study[0], plan.people, model)
    clean = look(setting)
    specs = [parse_attack(text) for text in ("fgsm@12/255", "lbfgs:4", "bim:3@8/255")]
    cells = [
        detect_attacks.make(setting, clean, spec, targeted=targeted, parts=("test",))
        for spec in specs
        for targeted in (True, False)
    ]
    layer = setting.layers[-1]
    known = [cell for cell in cells if cell.made]
    whole = knn_rows(setting, clean, known, layers=[layer], k=5, dimensions=3)
    papers = [cell for cell in known if cell.group in ("lbfgs targeted", "fgsm targeted")]
    assert len(papers) == 2, "the attacks failed"
    alone = knn_rows(setting, clean, papers, layers=[layer], k=5, dimensions=3)
    for row, only in zip(whole, alone, strict=True):
        assert row.aggregate == only.aggregate == ("lbfgs targeted", "fgsm targeted")
        assert row.accuracy["aggregate"] == only.accuracy["aggregate"]
        assert row.images["aggregate"] == sum(cell.made for cell in papers)
        assert row.components == (3 if row.processing == "pca" else None)


def test_the_page_is_drawn_from_the_folder_alone(study, evaluated, tmp_path):
    path, _ = study
    text = detect_page.render(path, out=tmp_path / "page.html").read_text()
    for expected in (
        "LSTM M cos",
        "MLP M cos",
        "bim-u",
        "macro-u",
        "PCA + whitening, DW-kNN",
        "who knows the detector",
    ):
        assert expected in text
    assert detect_page.render(path, out=tmp_path / "again.html").read_text() == text
    json.loads((path / EVALUATION).read_text(), parse_constant=lambda name: pytest.fail(name))
    with pytest.raises(ValueError, match="expected a study of .fastadv detect fit., got a folder without"):
        detect_page.render(tmp_path)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"weights": (0.0,)}, "weights: expected different positive numbers"),
        ({"weights": (1.0, 1.0)}, "weights: expected different positive numbers"),
        ({"k": 0}, "k: expected at least 1, got 0"),
        ({"dimensions": 0}, "dimensions: expected a whole number of at least 1, or a share .*, got 0"),
        ({"dimensions": 1.5}, "dimensions: expected .* above 0 and below 1, got 1.5"),
        ({"knn_layers": ("a", "a")}, "knn_layers: expected different layers, got a, a"),
        ({"transfer_from": ("a",)}, "transfer_from: expected an adaptive attack to look for, got none"),
        (
            {"adaptive": (parse_attack("bim:4@8/255"),), "transfer_from": ("a", "a")},
            "transfer_from: expected different folders, got a, a",
        ),
        (
            {"adaptive": (parse_attack("dfanet-fim"),)},
            "attack: expected one that can adapt to a detector, got dfanet-fim, which moves on other",
        ),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(more, expected):
    with pytest.raises(ValueError, match=expected):
        EvaluateConfig(**more)
