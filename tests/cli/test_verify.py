"""`fastadv verify` and `fastadv doctor`."""

import json

import pytest

from fastadv._version import __version__
from fastadv.data import read_manifest


def arguments(faces, weights, pairs, *more):
    return (
        *("verify", "--data", faces, "--model", "mobileface_v2", "--weights", weights, "--pairs", pairs),
        *more,
    )


def test_clean_figures_need_no_folder(fastadv, faces, weights, pairs):
    done = fastadv(*arguments(faces, weights, pairs, "--json"))
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["clean"]["pairs"] == 24
    assert (figures["clean"]["tar_at_far_1e3"], figures["clean"]["threshold_at_far_1e3"]) == (None, None)
    assert "TAR at FAR 1e-3: not measurable from 12 negative pairs; needs at least 1,000" in figures["clean"]["notes"]
    assert 0 <= figures["clean"]["eer"] <= 1
    assert figures["attacked"] is None


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_attack_lowers_accuracy_and_the_folder_agrees(metric, fastadv, faces, weights, pairs, tmp_path):
    out = tmp_path / "out"
    more = ("--attack", "fim", "--eps", "16/255", "--out", out, "--metric", metric, "--json")
    done = fastadv(*arguments(faces, weights, pairs, *more))
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["attacked"]["accuracy"] < figures["clean"]["accuracy"]
    assert figures["attacked"]["auc"] < figures["clean"]["auc"]
    saved = json.loads((out / "verification.json").read_text())
    assert all(figures[k] == saved[k] for k in saved)
    assert (out / "roc.svg").read_text().count("<svg") == 1
    assert len(list(out.glob("images/*/*.png"))) == 24
    assert figures["impersonation"]["images"] + figures["evasion"]["images"] == 24
    assert figures["attacked"]["impersonation_at_far_1e3"] is None
    for kind in ("impersonation", "evasion"):
        assert {"success", "met_before", "success_of_rest", "met_before_images"} <= set(figures[kind])


@pytest.mark.parametrize(("metric", "threshold"), [("cosine", 0.1), ("euclidean", 1.1)])
def test_a_given_threshold_is_that_of_goals_and_decisions(metric, threshold, fastadv, faces, weights, pairs, tmp_path):
    more = ("--attack", "fgsm", "--eps", "8/255", "--out", tmp_path / "out", "--metric", metric)
    done = fastadv(*arguments(faces, weights, pairs, *more, "--threshold", threshold))
    assert done.returncode == 0, done.stderr
    assert f"accuracy at threshold {threshold:g}" in done.stdout
    assert f"the attacks, at threshold {threshold:g}" in done.stdout
    figures = json.loads((tmp_path / "out" / "verification.json").read_text())
    score = threshold if metric == "cosine" else -threshold
    assert figures["threshold"] == threshold
    assert {at for _, at in figures["clean"]["fold_thresholds"]} == {score}
    rows = read_manifest(tmp_path / "out")
    for row in rows:
        accepted = row.score_after >= threshold if metric == "cosine" else row.score_after <= threshold
        assert row.success == (accepted == (row.goal == "impersonate"))
    for goal, share in (("evade", "evasion_at_folds"), ("impersonate", "impersonation_at_folds")):
        hits = [row.success for row in rows if row.goal == goal]
        assert figures["attacked"][share] == pytest.approx(sum(hits) / len(hits))


def test_the_table_for_people_has_the_same_rows(fastadv, faces, weights, pairs):
    done = fastadv(*arguments(faces, weights, pairs, "--attack", "ffm", "--limit", "8"))
    assert done.returncode == 0, done.stderr
    for text in (
        "accuracy at clean thresholds",
        "AUC",
        "EER",
        "TAR at FAR 1e-3: not measurable from 4 negative pairs; needs at least 1,000",
        "thresholds from clean pairs",
        "met before",
        "success of the rest",
    ):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--eps", "8/255"), "--attack: expected it with --eps, --steps and other options of an attack, got none"),
        (("--set", "margin=1"), "--attack: expected it with --eps, --steps and other options of an attack, got none"),
        (("--attack", "fgsm", "--set", "nose=1"), "set: expected an option of fgsm (margin, momentum"),
        (("--attack", "fgsm", "--steps", "3"), "steps: expected none, since fgsm makes one step"),
        (("--folds", "0"), "folds: expected numbers from 1 to at most 10000, such as 1-2"),
        (("--folds", "7-8"), "folds: expected pairs with folds of their own"),
        (("--threshold", "2"), "threshold: expected a cosine value in [-1, 1], got 2.0"),
        (("--metric", "euclidean", "--threshold", "-0.5"), "threshold: expected a euclidean value in [0, 2], got -0.5"),
        (("--limit", "0"), "limit: expected a whole number of at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_clear_sentence(more, text, inside, faces, weights, pairs):
    code, said = inside(*arguments(faces, weights, pairs, *more))
    assert code == 2
    assert text in said


def test_pairs_that_name_missing_images_are_refused(inside, faces, weights, tmp_path):
    csv = tmp_path / "pairs.csv"
    csv.write_text("first,second,same\nperson0/0,nobody/9,0\n")
    code, said = inside(*arguments(faces, weights, csv))
    assert code == 2
    assert "1 images of the pairs are missing, first nobody/9" in said


def test_a_folder_without_pairs_asks_for_them(inside, faces, weights):
    code, said = inside("verify", "--data", faces, "--model", "mobileface_v2", "--weights", weights)
    assert code == 2
    assert "pairs: expected faces with a list of pairs or --pairs FILE" in said


def test_doctor_names_every_backend_and_why_it_does_not_run(fastadv):
    done = fastadv("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {(r["op"], r["backend"]): r for r in report["backends"]}
    assert {b for _, b in rows} == {"reference", "cpu", "cuda", "triton"}
    assert rows["sign_step_", "reference"]["available"]
    assert all(r["available"] or r["reason"] for r in rows.values())
    assert "sign_step_" in fastadv("doctor").stdout


def test_help_teaches_and_the_version_is_the_packages(fastadv):
    assert fastadv("--version").stdout.strip() == __version__
    text = fastadv("verify", "--help").stdout
    assert "Example: fastadv verify" in text
    assert fastadv("attack", "nonsense").returncode == 2
