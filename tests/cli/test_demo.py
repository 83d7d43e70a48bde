"""`fastadv demo`, `fastadv report` and `fastadv train`, small."""

import json

import pytest

from fastadv.cli import app


@pytest.mark.filterwarnings("ignore::fastadv.core.notices.Notice")
def test_the_demo_ends_in_a_report_that_can_be_drawn_again(fastadv, tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    monkeypatch.setattr("fastadv.studies.demo.MODEL", "synth-mobile")  # the faster one
    app(["demo", "--out", str(out), "--pairs", "20", "--json"], standalone_mode=False)
    page = out / "report.html"
    assert json.loads(capsys.readouterr().out)["report"] == str(page)
    text = page.read_text()
    assert "http://" not in text
    assert "https://" not in text
    drawn = fastadv("report", out / "fim", "--data", out / "faces", "--out", tmp_path / "again.html")
    assert drawn.returncode == 0, drawn.stderr
    assert "image/svg+xml" in (tmp_path / "again.html").read_text()


def test_a_folder_that_is_no_run_has_no_report(inside, tmp_path):
    code, said = inside("report", tmp_path)
    assert code == 2
    assert str(tmp_path) in said


def test_a_network_is_trained_from_a_folder(fastadv, faces, tmp_path):
    out = tmp_path / "trained"
    more = ("--model", "synth-vgg", "--loss", "softmax", "--epochs", "1", "--batch", "6", "--json")
    done = fastadv("train", "--data", faces, "--out", out, *more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["loss"], found["identities"]) == ("softmax", 6)
    assert (out / "best.safetensors").exists()


def test_a_wrong_training_is_one_clear_sentence(inside, faces, tmp_path):
    code, said = inside(
        "train", "--data", faces, "--model", "synth-vgg", "--loss", "softmax", "--epochs", "0", "--out", tmp_path / "x"
    )
    assert code == 2
    assert "epochs: expected 1 or more, got 0" in said
    assert not (tmp_path / "x").exists()
