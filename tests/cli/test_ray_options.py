"""`fastadv attack --ray`: what is refused before anything starts."""

import sys

import pytest

GIVEN = ("--model", "synth-mobile", "--threshold", "0.9")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--ray", "local", "--shard", "1/2"), "shard: expected none with --ray, which divides the images itself, got"),
        (("--ray", "auto", "--device", "cpu", "--device", "cpu"), "device: expected one with --ray, got cpu, cpu; use"),
        (("--ray", "ray://head:10001"), "ray: expected auto, local or HOST:PORT, got 'ray://head:10001'"),
        (("--ray", "local", "--workers", "0"), "Invalid value for '--workers'"),
        (("--ray", "local", "--gpus-per-worker", "-1"), "Invalid value for '--gpus-per-worker'"),
        (("--gpus-per-worker", "0.5"), "gpus_per_worker: expected it with --ray only, got 0.5"),
        (("--ray", "local", "--threshold", "7"), "threshold: expected a cosine value"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(more, text, inside, faces, tmp_path):
    code, said = inside("attack", "fim", "--data", faces, *GIVEN, "--out", tmp_path / "out", *more)
    assert (code, text in said) == (2, True), said
    assert not (tmp_path / "out").exists()


NETWORKS = ("--network", "synth-mobile", "--network", "synth-vgg")
OTHERS = {
    ("transfer",): (*NETWORKS, "--method", "fim", "--pairs", "2", "--images", "2"),
    ("study", "run", "zhong-deng-table-1"): NETWORKS,
    ("detect", "fit"): ("--model", "synth-mobile", "--attack", "bim:2"),
}


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--workers", "2"), "workers: expected it with --ray only, got 2"),
        (("--gpus-per-worker", "0.5"), "gpus_per_worker: expected it with --ray only, got 0.5"),
        (("--ray", "ray://head:10001"), "ray: expected auto, local or HOST:PORT, got 'ray://head:10001'"),
        (
            ("--ray", "local", "--out", "s3://bucket/run"),
            "--out: expected a local folder, got s3://bucket/run",
        ),
        (("--ray", "local"), "--ray: expected ray (attacks on many machines), got no such package; pip install"),
    ],
)
def test_other_commands_refuse_the_same(words, more, text, inside, faces, tmp_path, monkeypatch):
    if "no such package" in text:
        monkeypatch.setitem(sys.modules, "ray", None)
    code, said = inside(*words, "--data", faces, *OTHERS[words], "--out", tmp_path / "out", *more)
    assert (code, text in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_said_before_any_work(inside, faces, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, said = inside("attack", "fim", "--data", faces, *GIVEN, "--out", tmp_path / "out", "--ray", "local")
    assert (code, "--ray: expected ray (attacks on many machines), got no such package; pip install" in said) == (
        2,
        True,
    ), said
