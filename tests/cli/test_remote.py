"""Commands on faces in an S3 bucket: the output is that of the same command on the disk."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import write_inputs
from run_files import content
from typer.testing import CliRunner

from fastadv.cli import app
from fastadv.core import places
from fastadv.data import IdentityFolder, write_shards

STEPS = ("--threshold", "0.3", "--steps", "2", "--batch", "4")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that the tests start have: the bytes of a run are those of its number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def called(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.fixture(scope="module")
def local(faces, pairs, tmp_path_factory) -> Path:
    """The faces as a tree, as shards and as a list, with pairs."""
    root = tmp_path_factory.mktemp("local")
    (root / "tree").symlink_to(faces)
    (root / "pairs.csv").write_bytes(pairs.read_bytes())
    write_shards(IdentityFolder(faces), root / "shards", per_shard=10)
    listed = sorted(path.relative_to(faces) for path in faces.rglob("*.png"))
    (root / "list.txt").write_text("".join(f"tree/{path} {path.parent}\n" for path in listed))
    return root


@pytest.fixture(scope="module")
def bucket(s3, local) -> str:
    for folder, _, files in os.walk(local, followlinks=True):
        for file in files:
            path = Path(folder, file)
            places.write_bytes(f"{s3}/{path.relative_to(local)}", path.read_bytes())
    return s3


def written(out: Path) -> dict[str, bytes]:
    """What a run has written, without the stamps of its inputs."""
    return {name: data for name, data in content(out).items() if name != ".hashes.json"}


@pytest.mark.parametrize("data", ["tree", "shards/shard-{000000..000001}.tar", "list.txt"])
def test_an_attack_on_a_bucket_is_that_on_the_disk(data, bucket, local, tmp_path):
    for root, out in ((local, "one"), (bucket, "two")):
        called("attack", "fim", "--data", f"{root}/{data}", "--model", "synth-mobile", *STEPS, "--out", tmp_path / out)
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert sum(name.endswith(".png") for name in one) == 18
    assert one == two


def test_a_killed_run_goes_on_and_a_changed_object_is_refused(bucket, local, stopped, tmp_path):
    words = ("attack", "fim", "--data", f"{bucket}/tree", "--model", "synth-mobile", *STEPS, "--out", tmp_path / "run")
    assert stopped(signal.SIGKILL, 5, *words).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "run" / "images").rglob("*.png"))) < 18
    called(*words)
    called("attack", "fim", "--data", local / "tree", "--model", "synth-mobile", *STEPS, "--out", tmp_path / "whole")
    assert written(tmp_path / "run") == written(tmp_path / "whole")
    before = places.to_path(f"{bucket}/tree/person0/0.png").read_bytes()
    places.write_bytes(f"{bucket}/tree/person0/0.png", (local / "tree/person0/1.png").read_bytes())
    try:
        refused = CliRunner().invoke(app, list(map(str, words)))
    finally:
        places.write_bytes(f"{bucket}/tree/person0/0.png", before)
    assert "run: holds another run; " in str(refused.exception)


def same_of_both(words: str, roots: tuple[object, object], out: Path) -> None:
    found = []
    for root, folder in zip(roots, ("one", "two"), strict=True):
        given = words.format(root=root, out=out / folder).split()
        found.append(json.loads(called(*given, "--model", "synth-mobile", "--json")))
        found[-1].pop("seconds")
        found[-1].pop("out", None)
    assert found[0] == found[1]


@pytest.mark.parametrize("words", ["verify --pairs {root}/pairs.csv", "identify"])
def test_other_commands_find_the_same_in_a_bucket(words, bucket, local, tmp_path):
    same_of_both(f"{words} --data {{root}}/tree", (local, bucket), tmp_path)


@pytest.mark.slow
def test_a_detector_is_fitted_to_the_same_images_in_a_bucket(s3, tmp_path):
    write_inputs(tmp_path / "local")
    for path in (tmp_path / "local" / "faces").rglob("*.png"):
        places.write_bytes(f"{s3}/fit/{path.relative_to(tmp_path / 'local')}", path.read_bytes())
    how = "--natural 6 --attacked 2 --validate 0.45 --test 0.25 --head-epochs 2 --epochs 2 --seed 3"
    words = f"detect fit --attack bim:2@0.03 {how} --data {{root}}/faces --out {{out}}"
    same_of_both(words, (tmp_path / "local", f"{s3}/fit"), tmp_path)


def test_errors_name_the_url_and_no_secret(bucket, inside):
    network = ("--model", "synth-mobile", "--threshold", "0.3")
    code, said = inside("attack", "fim", "--data", "s3://no-such-bucket/faces", *network, "--out", "run")
    assert code == 2
    assert "s3://no-such-bucket/faces: expected a folder, got no such folder" in said
    code, said = inside("attack", "fim", "--data", "s3://key:secret@others/faces", *network, "--out", "run")
    assert code == 2
    assert "s3://others/faces/" in said
    assert "secret" not in said
    code, said = inside("attack", "fim", "--data", f"{bucket}/tree", *network, "--out", f"{bucket}/run")
    assert code == 2
    assert f"--out: expected a local folder, got {bucket}/run" in said


def test_weights_are_read_at_a_url(bucket, weights, faces):
    places.write_bytes(f"{bucket}/weights/mobileface_v2.safetensors", weights.read_bytes())
    found = [
        json.loads(called("identify", "--data", faces, "--model", "mobileface_v2", "--weights", file, "--json"))
        for file in (weights, f"{bucket}/weights/mobileface_v2.safetensors")
    ]
    assert {**found[0], "seconds": 0} == {**found[1], "seconds": 0}
    wrong = f"{bucket}/weights/wrong.safetensors"
    places.write_bytes(wrong, b"no weights at all, but a text")
    words = ("identify", "--data", faces, "--model", "mobileface_v2", "--weights", wrong)
    assert f"got {wrong}, a text" in str(CliRunner().invoke(app, list(map(str, words))).exception)
