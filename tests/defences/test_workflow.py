"""The study of defences: its numbers, that it goes on where it was stopped, its table and its page."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from fastadv import load
from fastadv.cli.defend import defend as command
from fastadv.cli.report import report
from fastadv.core.notices import Notice
from fastadv.data import (
    IdentityFolder,
    RunFolder,
    SyntheticFaces,
    read_image,
    read_manifest,
    to_tensor,
    to_uint8,
    write_pairs_csv,
    write_png,
)
from fastadv.data.synthetic import write_faces
from fastadv.defences import Adaptive, MeanFilter, PerfectKnowledge, ZeroKnowledge
from fastadv.detection import Architecture, Detector, LayerTap, Network, Trajectory, centroids
from fastadv.engine import Engine
from fastadv.report.pages import defences as defend_page
from fastadv.runs import Work
from fastadv.runs.attack import pair_name
from fastadv.studies.defences import measure as defending
from fastadv.studies.defences import results as defend_results
from fastadv.studies.defences.plan import NONE, Copy, parse_defence, read_attack

pytestmark = pytest.mark.filterwarnings("ignore:.*reached the goal before:fastadv.engine.AttackWarning")

PEOPLE = SyntheticFaces(identities=12, per_identity=3, seed=5)
PAIRS = PEOPLE.pairs(8, folds=2, seed=2)
THREATS = (ZeroKnowledge(), PerfectKnowledge())
DEFENCES = ("mean", "one(jpeg:60|resize-pad)", "selective:2:0.1")
ATTACKS = ("ffm@8/255", "fim:3@8/255")


@pytest.fixture(scope="module")
def network():
    return load("synth-mobile")


def study(path, network, **more):
    settings = {
        "defences": [parse_defence(text) for text in DEFENCES],
        "attacks": [read_attack(text) for text in ATTACKS],
        "threats": THREATS,
        "seed": 3,
        "engine": Engine(batch=5),
        **more,
    }
    with RunFolder.open(path, {"command": "defend"}) as folder:
        parts = ("seed", "engine", "progress")
        work = Work(folder=folder, **{name: settings.pop(name) for name in parts if name in settings})
        found = defending.defend(PEOPLE, PAIRS, network, work, **settings)
        defend_results.save(found, path)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, network):
    path = tmp_path_factory.mktemp("study") / "run"
    return path, study(path, network)


def test_every_combination_is_there(made):
    _, found = made
    assert [g.label for g in found.guarded] == [NONE, *DEFENCES]
    assert {(c.defence, c.threat, c.attack) for c in found.cells} == set(
        itertools.product((NONE, *DEFENCES), ("zero", "perfect"), ATTACKS)
    )
    assert found.guarded[0].gradient_ratio == pytest.approx(1.0)


def test_clean_scores_are_the_defended_models(made, network):
    _, found = made
    mean = found.guarded[1]
    defended = MeanFilter().wrap(network)
    with torch.no_grad():
        for pair, score in list(zip(PAIRS, mean.scores, strict=True))[:4]:
            one, other = (defended(PEOPLE.load(n).image[None]) for n in (pair.first, pair.second))
            assert score == pytest.approx(float((one * other).sum()), abs=1e-5)
    assert mean.report.pairs == 8
    assert mean.images_per_second > 0


def test_scores_under_attack_are_those_of_the_written_images(made, network):
    path, found = made
    defended = MeanFilter().wrap(network)
    for threat, place in (("zero", "bare/ffm@8_of_255"), ("perfect", "perfect/ffm@8_of_255/mean")):
        (cell,) = (c for c in found.cells if (c.defence, c.threat, c.attack) == ("mean", threat, "ffm@8/255"))
        rows = {row.name: row for row in read_manifest(path / "made" / place)}
        limit = found.guarded[1].report.eer_threshold
        for k, pair in enumerate(PAIRS):
            name = pair_name(pair.first, pair.second)
            image = to_tensor(read_image(path / "made" / place / "images" / f"{name}.png"))
            with torch.no_grad():
                score = float((defended(image[None]) * defended(PEOPLE.load(pair.second).image[None])).sum())
            assert cell.scores[k] == pytest.approx(score, abs=1e-5)
            assert cell.hits[k] == ((score < limit) if pair.same else (score >= limit))
            assert cell.trial.l2[k] == rows[name].l2
            assert rows[name].linf <= 8 / 255 + 1e-6


def test_zero_knowledge_is_made_once_and_without_a_defence_all_are_it(made):
    path, found = made
    places = {str(p.parent.relative_to(path / "made")) for p in (path / "made").rglob("run.json")}
    attacks = [a.replace("/", "_of_").replace(":", "-") for a in ATTACKS]
    guarded = ["mean", "one(jpeg-60_or_resize-pad)", "selective-2-0.1"]
    assert places == {f"bare/{a}" for a in attacks} | {f"perfect/{a}/{g}" for a in attacks for g in guarded}
    for attack in ATTACKS:
        zero, perfect = (c for c in found.cells if c.defence == NONE and c.attack == attack)
        assert np.array_equal(zero.scores, perfect.scores)


def test_knowing_the_defence_helps(made):
    """The attacker who goes through the mean filter moves its scores further."""
    _, found = made
    same = np.array([p.same for p in PAIRS])
    gain = {}
    for cell in found.cells:
        if cell.defence == "mean" and cell.attack == "fim:3@8/255":
            change = cell.scores - found.guarded[1].scores
            gain[cell.threat] = float(np.where(same, -change, change).mean())
    assert 0 < gain["zero"] < gain["perfect"]


def test_a_study_that_was_stopped_ends_the_same(made, network, tmp_path):
    _, whole = made
    calls = itertools.count()

    def stop(stage, done, total):
        if "perfect" in stage and next(calls) == 9:
            raise KeyboardInterrupt

    part = {"defences": [parse_defence(DEFENCES[1])]}
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "run", network, progress=stop, **part)
    again = study(tmp_path / "run", network, **part)
    expected = [c for c in whole.cells if c.defence in (NONE, DEFENCES[1])]
    assert len(again.cells) == len(expected) == 8
    for one, other in zip(expected, again.cells, strict=True):
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.trial.l2, other.trial.l2)
    third = study(tmp_path / "run", network, **part)
    assert [g.images_per_second for g in third.guarded] == [g.images_per_second for g in again.guarded]


def test_a_truncated_measurement_is_made_again(made, network, tmp_path):
    few = {"defences": [parse_defence("bits:5")], "attacks": [read_attack("ffm")], "threats": (ZeroKnowledge(),)}
    whole = study(tmp_path / "run", network, **few)
    for file in (tmp_path / "run").glob("*/**/*.npz"):
        file.write_bytes(file.read_bytes()[:90])
    again = study(tmp_path / "run", network, **few)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(whole.cells, again.cells, strict=True))


def test_attack_as_defence_meets_both_images(network, tmp_path):
    found = study(
        tmp_path / "run",
        network,
        defences=[parse_defence("attack(pgd:2@4/255)")],
        attacks=[read_attack("ffm")],
        threats=(ZeroKnowledge(),),
    )
    assert found.guarded[1].report.pairs == 8
    assert not np.array_equal(found.guarded[0].scores, found.guarded[1].scores)


@pytest.fixture
def copy(tmp_path):
    """The faces under noise, as files."""
    noise = torch.Generator().manual_seed(3)
    for name in PEOPLE.names:
        image = PEOPLE.load(name).image
        file = tmp_path / "noisy" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_png(file, to_uint8((image + 0.2 * torch.randn(image.shape, generator=noise)).clamp(0, 1)))
    return Copy(label="noisy", source=IdentityFolder(tmp_path / "noisy", size=112))


def test_a_copy_is_shown_to_every_defence(copy, network, tmp_path):
    few = {"defences": [parse_defence("mean")], "attacks": (), "threats": (ZeroKnowledge(),), "copies": (copy,)}
    found = study(tmp_path / "run", network, **few)
    assert [(c.defence, c.threat, c.attack) for c in found.cells] == [
        (NONE, "copy", "noisy"),
        ("mean", "copy", "noisy"),
    ]
    for cell, guarded, model in zip(found.cells, found.guarded, (network, MeanFilter().wrap(network)), strict=True):
        for k, pair in enumerate(PAIRS):
            first, second = (copy.source.load(n).image[None] for n in (pair.first, pair.second))
            with torch.no_grad():
                assert cell.scores[k] == pytest.approx(float((model(first) * model(second)).sum()), abs=1e-5)
            change = [(copy.source.load(n).image - PEOPLE.load(n).image) for n in (pair.first, pair.second)]
            assert cell.trial.l2[k] == pytest.approx(max(float(c.norm()) for c in change), rel=1e-5)
        limit = guarded.report.eer_threshold
        assert not np.array_equal(cell.scores, guarded.scores)
        assert np.array_equal(cell.hits, [(s < limit) == p.same for s, p in zip(cell.scores, PAIRS, strict=True)])
    again = study(tmp_path / "run", network, **few)
    assert np.array_equal(again.cells[1].scores, found.cells[1].scores)
    assert "noisy" in defend_page.render(tmp_path / "run").read_text()
    with pytest.raises(ValueError, match="attack: expected at least one, and each one once, got noisy, noisy"):
        study(tmp_path / "twice", network, **{**few, "copies": (copy, copy)})


def test_a_query_that_is_known_to_be_attacked_is_not_attacked_again(network, tmp_path):
    few = {"attacks": [read_attack("ffm")], "threats": (ZeroKnowledge(),)}
    found = study(
        tmp_path / "run",
        network,
        defences=[parse_defence("attack(pgd:2@4/255)"), parse_defence("known(pgd:2@4/255)")],
        **few,
    )
    _, both, known = found.cells
    assert np.array_equal(found.guarded[1].scores, found.guarded[2].scores)  # clean pairs are met alike
    defended = known_wrap(network)
    for k, pair in enumerate(PAIRS):
        name = pair_name(pair.first, pair.second)
        query = to_tensor(read_image(tmp_path / "run" / "made" / "bare" / "ffm" / "images" / f"{name}.png"))
        with torch.no_grad():
            score = float((network(query[None]) * defended(PEOPLE.load(pair.second).image[None])).sum())
        assert known.scores[k] == pytest.approx(score, abs=1e-4)
    assert not np.allclose(known.scores, both.scores)


def known_wrap(network):
    """The defended network of the study of seed 3, whose secret is away from the attackers' seeds."""
    return parse_defence("known(pgd:2@4/255)").defence.wrap(network, seed=3 + (1 << 63))


def test_values_and_page_come_from_the_folder(made):
    path, found = made
    plain = json.loads((path / "defences.json").read_text())
    assert plain == json.loads(json.dumps(defend_results.describe(found)))
    assert len(plain["cells"]) == len(found.cells)
    cell = next(c for c in plain["cells"] if c["l2"] is not None)
    assert cell["l2"]["min"] <= cell["l2"]["median"] <= cell["l2"]["max"]
    for name in ("success", "met_before"):
        half = (cell["impersonation"][name] + cell["evasion"][name]) / 2
        assert cell[name] == pytest.approx(half)
    assert cell["images"] == 8
    for made_, told in zip(found.cells, plain["cells"], strict=True):
        clean = next(g for g in found.guarded if g.label == made_.defence)
        same = np.array([p.same for p in PAIRS])
        limit = clean.report.eer_threshold
        met = np.where(same, clean.scores < limit, clean.scores >= limit)
        assert told["met_before_images"] == met.sum()
        assert told["rest_successes"] == (made_.hits & ~met).sum()
        rest = made_.trial.l2[made_.hits & ~met]
        assert (told["l2"] is None) if not len(rest) else told["l2"]["mean"] == pytest.approx(rest.mean())
    assert {note.partition(":")[0] for note in plain["defences"][0]["clean"]["notes"]} == {
        "TAR at FAR 1e-2",
        "TAR at FAR 1e-3",
    }
    assert plain["defences"][0]["cost"] == 1.0
    page = defend_page.render(path).read_text()
    assert "TAR at FAR 1e-3: not measurable from 4 negative pairs; needs at least 1,000" in page
    assert "success of the rest" in page
    for label in (*DEFENCES, *ATTACKS):
        assert label in page
    assert page.count("image/svg+xml") >= 4
    assert defend_page.render(path).read_text() == page
    with pytest.raises(ValueError, match="expected a finished study"):
        defend_page.render(path.parent)


def test_an_attack_that_changes_nothing_gains_nothing(network, tmp_path):
    few = {"defences": [parse_defence("mean")], "attacks": [read_attack("fim:1@0.00001")]}
    with pytest.warns(Notice, match="eps: 1e-05 is below one grey level"):
        found = study(tmp_path / "run", network, **few)
    for cell in defend_results.describe(found)["cells"]:
        assert cell["success"] == cell["met_before"]
        assert cell["success_of_rest"] == 0.0
        assert (cell["l2"], cell["linf"], cell["evasion"]["mean_l2"]) == (None, None, None)
    rows = defend_page.attacked_rows(defend_results.describe(found))
    assert {row[-2:] for row in rows} == {("–", "–")}


def test_with_a_detector_what_was_met_before_was_not_flagged_either(network, tmp_path):
    """A pair that the verifier gets wrong and whose clean image the detector flags was not met before."""
    few = {"defences": [parse_defence("mean")], "attacks": [read_attack("fim:1@8/255")]}
    detector = _detector(network)
    loose = study(tmp_path / "loose", network, threats=(Adaptive(detector=detector, threshold=1e6),), **few)
    strict = study(tmp_path / "strict", network, threats=(Adaptive(detector=detector, threshold=-1e6),), **few)
    for cell, clean in zip(loose.cells, loose.guarded, strict=True):
        wrong = [(s < clean.report.eer_threshold) == p.same for s, p in zip(clean.scores, PAIRS, strict=True)]
        assert cell.trial.before.tolist() == wrong
    for cell in strict.cells:  # everything is flagged, clean images too
        assert not cell.trial.before.any()
        assert not cell.hits.any()


def _detector(network):
    tapped = LayerTap(model=network)(torch.stack([PEOPLE.load(n).image for n in PEOPLE.names[:8]]))
    found = [([value.detach() for value in tapped.values], torch.arange(8) % 2)]
    representatives = centroids(found, layers=network.layers, classes=("a", "b"), model=network.name)
    head = Network(Architecture(kind="mlp", layers=len(network.layers), width=2, hidden=4, dropout=0.0))
    trajectory = Trajectory(representatives=representatives, metric="l2")
    return Detector(trajectory=trajectory, network=head.eval().requires_grad_(False))


def test_flags_are_listed(made):
    _, found = made
    plain = defend_results.describe(found)
    plain["defences"][1]["flags"] = [{"sign": "noise", "text": "noise beats gradients"}]
    assert "mean: noise beats gradients" in defend_page.flag_lines(plain)


def test_errors_of_the_study(network, tmp_path):
    with pytest.raises(ValueError, match="attack: expected at least one, and each one once, got none"):
        study(tmp_path / "a", network, attacks=[])
    with pytest.raises(ValueError, match="threat: expected at least one, and each one once, got zero, zero"):
        study(tmp_path / "b", network, threats=(ZeroKnowledge(), ZeroKnowledge()))
    with pytest.raises(ValueError, match="defence: expected each one once, got mean, mean"):
        study(tmp_path / "c", network, defences=[parse_defence("mean")] * 2)
    with pytest.raises(ValueError, match="defence: expected each one once, got mean, which is mean:3 in other words"):
        study(tmp_path / "d", network, defences=[parse_defence("mean:3"), parse_defence("mean")])
    spelt = [read_attack("fim:2"), read_attack("fim:2@8/255")]
    with pytest.raises(ValueError, match="attack: expected each one once, got fim:2@8/255, which is fim:2 in other"):
        study(tmp_path / "e", network, attacks=spelt)


def test_the_command(tmp_path):
    app, drawing = typer.Typer(), typer.Typer()
    app.command()(command)
    drawing.command()(report)
    write_faces(PEOPLE, PEOPLE.names, tmp_path / "faces")
    write_pairs_csv(tmp_path / "pairs.csv", (replace(p, fold=None) for p in PAIRS))
    given = ["--data", tmp_path / "faces", "--model", "synth-mobile", "--pairs", tmp_path / "pairs.csv"]
    given += ["--defence", "mean", "--attack", "ffm@8/255", "--out", tmp_path / "run"]
    done = CliRunner().invoke(app, [str(a) for a in given], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0
    for text in ("8 pairs, clean", "anonymisation", "perfect", "report.html", "success of the rest", "met before"):
        assert text in done.output
    again = CliRunner().invoke(app, [*(str(a) for a in given), "--json"], catch_exceptions=False)
    assert {c["threat"] for c in json.loads(again.stdout)["cells"]} == {"zero", "perfect"}
    page = (tmp_path / "run" / "report.html").read_text()
    drawn = CliRunner().invoke(drawing, [str(tmp_path / "run"), "--out", str(tmp_path / "again.html")])
    assert drawn.exit_code == 0
    assert (tmp_path / "again.html").read_text() == page
    with pytest.raises(ValueError, match="adaptive"):
        CliRunner().invoke(app, [*(str(a) for a in given), "--threat", "adaptive"], catch_exceptions=False)
