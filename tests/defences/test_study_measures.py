"""What a study of defences measures besides success: flipped pairs, a given threshold, a sweep, a second network."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fastadv import load
from fastadv.attacks import PairClassifier
from fastadv.attacks.goal import Rows
from fastadv.data import RunFolder, SyntheticFaces, read_image, read_manifest, to_tensor
from fastadv.defences import MeanFilter, PerfectKnowledge, ZeroKnowledge
from fastadv.engine import Engine
from fastadv.report.pages import defences as defend_page
from fastadv.runs import Work
from fastadv.runs.attack import met_before, pair_name
from fastadv.studies.defences import measure as defending
from fastadv.studies.defences import results as defend_results
from fastadv.studies.defences.plan import NONE, parse_defence, read_attack

pytestmark = pytest.mark.filterwarnings("ignore:.*reached the goal before:fastadv.engine.AttackWarning")

PEOPLE = SyntheticFaces(identities=10, per_identity=3, seed=5)
PAIRS = PEOPLE.pairs(8, folds=2, seed=2)
SAME = np.array([pair.same for pair in PAIRS])
ZERO = (ZeroKnowledge(),)
PAIRED = "pair(pgd:6@8/255)"


@pytest.fixture(scope="module")
def network():
    return load("synth-mobile")


@pytest.fixture(scope="module")
def second():
    return load("synth-vgg")


def study(path, network, *, defences=(), attacks=("ffm@8/255",), threats=ZERO, **more):
    with RunFolder.open(path, {"command": "defend"}) as folder:
        work = Work(folder=folder, seed=3, engine=Engine(batch=5))
        found = defending.defend(
            PEOPLE,
            PAIRS,
            network,
            work,
            defences=[parse_defence(text) for text in defences],
            attacks=[read_attack(text) for text in attacks],
            threats=threats,
            **more,
        )
        defend_results.save(found, path)
    return found


@pytest.fixture(scope="module")
def flipped(tmp_path_factory, network):
    path = tmp_path_factory.mktemp("study") / "run"
    threats = (ZeroKnowledge(), PerfectKnowledge())
    return path, study(path, network, defences=("mean", PAIRED, f"{PAIRED}:gallery"), threats=threats)


def wrong_at(scores, threshold):
    return np.where(SAME, scores < threshold, scores >= threshold)


def test_a_flipped_decision_is_that_of_the_bare_threshold(flipped, network):
    path, found = flipped
    bare, _, paired, _ = found.guarded
    assert paired.threshold == bare.threshold == bare.report.eer_threshold
    assert {at for _, at in paired.report.fold_thresholds} == {bare.threshold}
    defence = parse_defence(PAIRED).defence
    (cell,) = (c for c in found.cells if c.defence == PAIRED)
    for k, pair in enumerate(PAIRS):
        name = pair_name(pair.first, pair.second)
        query = to_tensor(read_image(path / "made" / "bare" / "ffm@8_of_255" / "images" / f"{name}.png"))[None]
        clean, gallery = (PEOPLE.load(name).image[None] for name in (pair.first, pair.second))
        for image, scores in ((query, cell.scores), (clean, paired.scores)):
            made = defence.attacked(network, image, gallery, threshold=bare.threshold, seed=3 + (1 << 63))
            with torch.no_grad():
                assert scores[k] == pytest.approx(float((network(made[0]) * network(made[1])).sum()), abs=1e-4)
    assert np.array_equal(cell.hits, wrong_at(cell.scores, bare.threshold))
    assert wrong_at(paired.scores, bare.threshold).sum() > wrong_at(bare.scores, bare.threshold).sum()


def test_white_box_attackers_of_flipped_pairs_are_left_out(flipped, network, tmp_path):
    _, found = flipped
    assert {(c.defence, c.threat) for c in found.cells} == {
        *((label, threat) for label in (NONE, "mean") for threat in ("zero", "perfect")),
        (PAIRED, "zero"),
        (f"{PAIRED}:gallery", "zero"),
    }
    with pytest.raises(ValueError, match=r"threat: expected zero with pair\(.*, whose white-box .* got perfect"):
        study(tmp_path / "run", network, defences=(PAIRED,), threats=(PerfectKnowledge(),))


def test_the_clean_figure_stands_beside_the_attacked_one(flipped):
    path, found = flipped
    plain = json.loads((path / "defences.json").read_text())
    assert plain == json.loads(json.dumps(defend_results.describe(found)))
    clean = {one["defence"]: one["clean"]["accuracy"] for one in plain["defences"]}
    assert all(cell["accuracy_clean"] == clean[cell["defence"]] for cell in plain["cells"])
    assert plain["defences"][2]["gradient_ratio"] is None
    assert not [flag for flag in found.flags[PAIRED] if flag.sign == "gradients"]
    row = defend_page.attacked_rows(plain)[0]
    assert dict(zip(defend_page.ATTACKED, row, strict=True))["clean"] == f"{100 * clean[NONE]:.1f}\N{NO-BREAK SPACE}%"


def test_the_defended_distance_is_from_the_original_to_what_the_network_gets(flipped):
    path, found = flipped
    mean = MeanFilter()
    for cell in found.cells:
        if cell.defence == NONE:
            np.testing.assert_allclose(cell.defended, cell.trial.l2, rtol=1e-5)
        if cell.defence == f"{PAIRED}:gallery":  # which leaves the query alone
            np.testing.assert_allclose(cell.defended, cell.trial.l2, rtol=1e-5)
        place = "bare/ffm@8_of_255" if cell.threat == "zero" else "perfect/ffm@8_of_255/mean"
        if cell.defence != "mean":
            continue
        rows = {row.name: row for row in read_manifest(path / "made" / place)}
        for k, pair in enumerate(PAIRS):
            name = pair_name(pair.first, pair.second)
            image = to_tensor(read_image(path / "made" / place / "images" / f"{name}.png"))[None]
            expected = float((mean(image, None) - PEOPLE.load(pair.first).image).double().norm())
            assert cell.defended[k] == pytest.approx(expected, rel=1e-4)
            assert cell.generated[k] == (rows[name].success and not met_before(rows[name]))
    for cell, told in zip(found.cells, defend_results.describe(found)["cells"], strict=True):
        chosen = cell.generated & SAME
        assert told["evasion"]["generated"] == chosen.sum()
        if chosen.any():
            assert told["evasion"]["mean_l2_defended"] == pytest.approx(cell.defended[chosen].mean())


def test_a_given_threshold_is_that_of_attackers_and_verifiers(network, tmp_path):
    found = study(tmp_path / "run", network, defences=("mean", PAIRED), threshold=0.2)
    for own in found.guarded:
        assert own.threshold == 0.2
        assert {at for _, at in own.report.fold_thresholds} == {0.2}
    for row in read_manifest(tmp_path / "run" / "made" / "bare" / "ffm@8_of_255"):
        assert row.success == ((row.score_after >= 0.2) == (row.goal == "impersonate"))
    for cell in found.cells:
        assert np.array_equal(cell.hits, wrong_at(cell.scores, 0.2))
        shares = (cell.report.impersonation_at_folds, cell.report.evasion_at_folds)
        assert shares == pytest.approx((cell.hits[~SAME].mean(), cell.hits[SAME].mean()))


def test_a_sweep_holds_the_smallest_changes_at_each_threshold(network, tmp_path):
    attacks, thresholds = ("deepfool:6", "ffm"), (0.5, 0.1)
    found = study(tmp_path / "run", network, attacks=attacks, swept=thresholds)
    assert [(cell.attack, cell.threshold) for cell in found.sweep] == [("deepfool:6", 0.5), ("deepfool:6", 0.1)]
    for cell in found.sweep:
        rows = read_manifest(tmp_path / "run" / "made" / "sweep" / "deepfool-6" / str(cell.threshold))
        means = []
        for goal, told in (("impersonate", cell.impersonation), ("evade", cell.evasion)):
            own = [row for row in rows if row.goal == goal]
            before = [(row.score_before >= cell.threshold) == (goal == "impersonate") for row in own]
            assert (told.images, told.met_before_images) == (4, sum(before))
            lengths = [row.l2 for row, met in zip(own, before, strict=True) if row.success and not met]
            assert told.rest_successes == len(lengths)
            assert told.mean_l2 == (pytest.approx(np.mean(lengths)) if lengths else None)
            means.append(told.mean_l2)
        if cell.ratio is not None:
            assert cell.ratio.low < cell.ratio.ratio < cell.ratio.high
            assert cell.ratio.ratio == pytest.approx(means[0] / means[1])
    high, low = found.sweep
    assert high.impersonation.mean_l2 > low.impersonation.mean_l2  # farther from the scores of two people
    again = study(tmp_path / "run", network, attacks=attacks, swept=thresholds)
    assert again.sweep == found.sweep


def test_a_second_network_is_as_sure_as_its_distance_to_its_threshold(network, second, tmp_path):
    found = study(tmp_path / "run", network, defences=("mean", PAIRED), attacks=("fim:3@8/255",), black_box=second)
    box = found.black_box
    assert box.network == "synth-vgg"
    assert [(c.defence, c.attack) for c in box.cells] == [
        (label, attack) for label in (NONE, "mean") for attack in (None, "fim:3@8/255")
    ]
    made = tmp_path / "run" / "made" / "bare" / "fim-3@8_of_255"
    limit = math.sqrt(2 - 2 * box.threshold)
    for cell in box.cells:
        judge = second if cell.defence == NONE else MeanFilter().wrap(second)
        for k, pair in enumerate(PAIRS):
            image, other = (PEOPLE.load(name).image for name in (pair.first, pair.second))
            if cell.attack is not None:
                image = to_tensor(read_image(made / "images" / f"{pair_name(pair.first, pair.second)}.png"))
            with torch.no_grad():
                outputs, reference = judge(image[None]), judge(other[None])
            goal = PairClassifier(references=reference, threshold=limit, wanted="same")
            same = float(goal.score(outputs, Rows(reference=reference)))
            assert cell.values[k] == pytest.approx(same if pair.same else 1 - same, abs=1e-4)
        assert cell.counted.all() == (cell.attack is None or all(r.success for r in read_manifest(made)))
    assert np.array_equal(box.cells[1].clean, box.cells[0].values)
    (told,) = (c for c in defend_results.describe(found)["black_box"]["cells"][1:2])
    chosen = box.cells[1].counted & SAME
    assert told["evasion"]["images"] == chosen.sum()
    assert told["evasion"]["confidence"] == pytest.approx(box.cells[1].values[chosen].mean())
    assert told["evasion"]["confidence_clean"] == pytest.approx(box.cells[0].values[chosen].mean())


def test_the_page_has_the_sweep_and_the_second_network(network, second, tmp_path):
    study(tmp_path / "run", network, attacks=("deepfool:6",), swept=(0.5, 0.2), black_box=second)
    page = defend_page.render(tmp_path / "run").read_text()
    for words in ("over the threshold", "A second network", "synth-vgg: mean confidence in the right answer"):
        assert words in page
    plain = json.loads((tmp_path / "run" / "defences.json").read_text())
    for key in ("sweep", "black_box"):  # a study of an earlier version
        del plain[key]
    (tmp_path / "run" / "defences.json").write_text(json.dumps(plain))
    assert "A second network" not in defend_page.render(tmp_path / "run").read_text()


def test_errors_of_the_measures(network, model, tmp_path):
    def refused(words, **more):
        with pytest.raises(ValueError, match=words):
            study(tmp_path / "run", network, **more)

    refused("sweep: expected an attack that looks for the smallest change, such as deepfool, got ffm", swept=(0.1,))
    refused("sweep: expected each threshold once, got 0.1, 0.1", attacks=("deepfool",), swept=(0.1, 0.1))
    refused("threshold: expected a cosine value", attacks=("deepfool",), swept=(1.5,))
    refused("threshold: expected a cosine value", threshold=-3.0)
    refused(r"black-box: expected .* \(3, 112, 112\) like synth-mobile, got tiny0 of \(3, 16, 16\)", black_box=model)
    assert not (tmp_path / "run" / "made").exists()
