"""`fastadv attack`: the folder it writes, resumed after a kill, the same bytes however it was made."""

import json
import signal

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastadv.cli import app
from fastadv.data import read_manifest


def arguments(faces, weights, out, *more):
    return (
        *("attack", "fim", "--data", faces, "--model", "mobileface_v2", "--weights", weights, "--out", out),
        *("--threshold", "0.9", "--steps", "24", "--seed", "7", "--batch", "8", *more),
    )


@pytest.fixture(scope="module")
def finished(fastadv, faces, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    done = fastadv(*arguments(faces, weights, out, "--json"))
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_images_lie_in_the_inputs_own_layout_and_in_the_ball(finished, faces):
    out, summary = finished
    rows = read_manifest(out)
    assert summary["images"] == len(rows) == 18
    assert [r.name for r in rows] == sorted(str(p.relative_to(faces).with_suffix("")) for p in faces.rglob("*.png"))
    for row in rows:
        made = np.asarray(Image.open(out / "images" / f"{row.name}.png")).astype(int)
        source = np.asarray(Image.open(faces / f"{row.name}.png")).astype(int)
        assert np.abs(made - source).max() <= 8
        assert row.linf == pytest.approx(np.abs(made - source).max() / 255, abs=1e-6)
        assert row.target.split("/")[0] != row.name.split("/")[0]
        assert (row.goal, row.attack, row.ticks, row.seed) == ("impersonate", "fim", 24, 7)
        assert row.score_after > row.score_before
        assert row.success == (row.score_after >= 0.9)


def test_the_folder_says_how_it_was_made(finished):
    described = json.loads((finished[0] / "run.json").read_text())
    assert described["config"]["attack"]["steps"] == 24
    assert described["config"]["attack"]["budget"] == {"norm": "linf", "eps": 8 / 255, "lo": 0.0, "hi": 1.0}
    assert described["versions"]["torch"]
    assert sorted(p.name for p in finished[0].iterdir()) == [".hashes.json", "images", "manifest.parquet", "run.json"]


def test_started_again_it_makes_nothing_new(finished, fastadv, faces, weights, content):
    before = content(finished[0])
    stamps = {p: p.stat().st_mtime_ns for p in finished[0].rglob("*.png")}
    again = fastadv(*arguments(faces, weights, finished[0], "--json"))
    assert again.returncode == 0
    assert content(finished[0]) == before
    assert {p: p.stat().st_mtime_ns for p in finished[0].rglob("*.png")} == stamps


def test_another_configuration_is_refused(finished, fastadv, faces, weights):
    other = fastadv(*arguments(faces, weights, finished[0], "--eps", "4/255"))
    assert other.returncode == 2
    assert "holds another run; attack.budget.eps" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_resumed_it_ends_with_the_same_bytes(
    how, finished, stopped, fastadv, faces, weights, content, tmp_path
):
    out = tmp_path / "out"
    process = stopped(how, 3, *arguments(faces, weights, out, "--json"))
    assert 3 <= len(list(out.glob("images/*/*.png"))) < 18
    assert not (out / "manifest.parquet").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command continues from there" in process.stderr
        assert "Traceback" not in process.stderr
    resumed = fastadv(*arguments(faces, weights, out, "--json"))
    assert resumed.returncode == 0, resumed.stderr
    assert content(out) == content(finished[0])


def test_the_number_of_slots_changes_no_byte(finished, fastadv, faces, weights, content, tmp_path):
    wide = fastadv(*arguments(faces, weights, tmp_path / "out", "--slots", "16", "--json"))
    assert wide.returncode == 0, wide.stderr
    assert content(tmp_path / "out") == content(finished[0])


def test_pairs_choose_sources_and_targets(fastadv, faces, weights, pairs, tmp_path):
    out = tmp_path / "out"
    done = fastadv(*arguments(faces, weights, out, "--pairs", pairs, "--goal", "evade", "--limit", "3"))
    assert done.returncode == 0, done.stderr
    assert [(r.name, r.target) for r in read_manifest(out)] == [
        ("person0/0__person0+1", "person0/1"),
        ("person0/0__person0+2", "person0/2"),
        ("person1/0__person1+1", "person1/1"),
    ]
    assert "success, 8-bit image" in done.stdout


def test_an_evasion_without_a_start_says_that_it_could_not_move(fastadv, faces, weights, tmp_path):
    done = fastadv(*arguments(faces, weights, tmp_path / "out", "--goal", "evade", "--limit", "2"))
    assert done.returncode == 0
    assert "2 images had an all-zero gradient at every step" in done.stderr


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--eps", "8"), "eps: expected at most hi - lo = 1, got 8"),
        (("--eps", "8/0"), "eps: expected a positive number such as 8/255 or 0.03, got '8/0'"),
        (("--threshold", "7"), "threshold: expected a cosine value in [-1, 1], got 7.0"),
        (("--slots", "12", "--batch", "8"), "slots: expected a multiple of batch = 8, got 12"),
        (("--device", "tpu"), "error: --device: expected cpu"),
        (("--precision", "tf32"), "tf32"),
        (("--seed", "-1"), "seed"),
        (("--limit", "0"), "limit: expected at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_clear_sentence(more, text, inside, faces, weights, tmp_path):
    code, said = inside(*arguments(faces, weights, tmp_path / "out", *more))
    assert code == 2
    assert text in said
    assert not (tmp_path / "out").exists()


def test_a_wrong_input_is_one_clear_sentence_and_leaves_nothing(inside, faces, weights, tmp_path):
    text = tmp_path / "text" / "someone"
    text.mkdir(parents=True)
    (text / "a.png").write_text("this is no picture")
    (tmp_path / "text" / "other").mkdir()
    (tmp_path / "text" / "other" / "b.png").write_bytes((faces / "person0" / "0.png").read_bytes()[:2000])
    (tmp_path / "empty").mkdir()
    lonely = tmp_path / "lonely" / "one"
    lonely.mkdir(parents=True)
    (lonely / "a.png").write_bytes((faces / "person0" / "0.png").read_bytes())
    out = tmp_path / "out"
    cases = {
        tmp_path / "nowhere": "got no such folder",
        tmp_path / "empty": "/<identity>/<image>, got none",
        tmp_path / "lonely": "data: expected at least two identities, so that each image has a target, got 1",
    }
    for data, expected in cases.items():
        code, said = inside(*arguments(data, weights, out))
        assert (code, out.exists()) == (2, False)
        assert expected in said
    code, said = inside(*arguments(tmp_path / "text", weights, out))
    assert code == 2
    assert "b.png: the image is damaged" in said or "a.png: not a JPEG, PNG" in said
    assert list(out.rglob("*.png")) == []
    code, said = inside(*arguments(faces, tmp_path / "no.safetensors", tmp_path / "out2"))
    assert code == 2
    assert "no.safetensors" in said
    assert not (tmp_path / "out2").exists()


def test_what_was_met_before_the_attack_is_told_apart(inside, faces, weights, tmp_path):
    given = ("attack", "fim", "--data", faces, "--model", "mobileface_v2", "--weights", weights, "--limit", "2")
    more = ("--steps", "1", "--eps", "1/255", "--threshold", "-1", "--out", tmp_path / "run")
    code, said = inside(*given, *more)
    assert code == 0
    assert "2 images had reached the goal before the attack began" in said


def test_a_summary_of_pairs_that_are_met_at_the_start(faces, weights, tmp_path):
    given = (
        "attack",
        "fim",
        "--data",
        faces,
        "--model",
        "mobileface_v2",
        "--weights",
        weights,
        "--limit",
        "2",
        "--json",
    )
    more = ("--steps", "1", "--eps", "0.0001", "--threshold", "-1", "--out", tmp_path / "run")
    done = CliRunner().invoke(app, [str(word) for word in (*given, *more)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["images"], found["success"], found["met_before"], found["met_before_images"]) == (2, 1.0, 1.0, 2)
    assert (found["success_of_rest"], found["rest_successes"], found["mean_l2"]) == (None, 0, None)
    assert any("eps is below one grey level (1/255)" in line for line in found["notices"])
