"""``--model FILE.onnx``: an ONNX file in place of a network's name."""

import json

import pytest
from onnx_files import face_network, saved

from fastadv.data import read_manifest


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("onnx"), face_network(side=112, width=4), "w600k_tiny.onnx")


def arguments(faces, network, out):
    return (
        *("attack", "fim", "--data", faces, "--model", network, "--out", out),
        *("--threshold", "0.9", "--steps", "4", "--seed", "7", "--batch", "8", "--json"),
    )


def test_an_attack_and_its_resumption(network, fastadv, faces, content, tmp_path):
    out = tmp_path / "out"
    done = fastadv(*arguments(faces, network, out))
    assert done.returncode == 0, done.stderr
    assert "InsightFace's convention" in done.stderr
    rows = read_manifest(out)
    assert json.loads(done.stdout)["images"] == len(rows) == 18
    assert sum(row.score_after > row.score_before for row in rows) > 14
    assert json.loads((out / "run.json").read_text())["config"]["model"] == "w600k_tiny"
    before = content(out)
    assert fastadv(*arguments(faces, network, out)).returncode == 0
    assert content(out) == before
    other = saved(tmp_path, face_network(side=112, width=4, seed=5), "w600k_tiny.onnx")
    again = fastadv(*arguments(faces, other, out))
    assert again.returncode == 2
    assert "holds another run; weights" in again.stderr
    assert "Traceback" not in again.stderr


def test_an_ensemble_and_a_detector_s_commands(network, fastadv, faces, pairs, tmp_path):
    verify = ("verify", "--data", faces, "--pairs", pairs, "--json")
    done = fastadv(*verify, "--model", network)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clean"]["pairs"] == 24
    attack = ("--attack", "e-fim", "--ensemble", network, "--steps", "2", "--limit", "4")
    done = fastadv(*verify, "--model", "synth-mobile", *attack)
    assert done.returncode == 0, done.stderr


def test_a_file_is_known_by_its_content_too(network, inside, faces, tmp_path):
    plain = tmp_path / "network"
    plain.write_bytes(network.read_bytes())
    code, said = inside("verify", "--data", faces, "--model", plain, "--weights", network)
    assert (code, f"weights: expected none with {plain}, which holds its own, got {network}" in said) == (2, True)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere.onnx", "nowhere.onnx: expected an ONNX file, got no such file"),
        ("nowhere", "model: expected one of 'fastadv models', got 'nowhere'"),
    ],
)
def test_a_wrong_file_is_one_sentence(model, words, inside, faces):
    code, said = inside("verify", "--data", faces, "--model", model)
    assert code == 2
    assert words in said


def test_an_architecture_s_weights_are_no_graph(network, inside, faces):
    code, said = inside("verify", "--data", faces, "--model", "iresnet50", "--weights", network)
    assert (code, "give it as --model FILE.onnx" in said) == (2, True)


def test_training_takes_a_name_only(network, inside, tmp_path):
    code, said = inside("train", "--data", "synthetic", "--model", network, "--out", tmp_path / "out")
    assert (code, "model: expected one of 'fastadv models'" in said) == (2, True)


def test_a_study_of_transferability_names_it_without_suffix(network):
    from fastadv.runs.inputs import network_name

    names = [network_name(text) for text in (str(network), "synth-mobile", "iresnet50=w.safetensors")]
    assert names == ["w600k_tiny", "synth-mobile", "iresnet50"]
