"""`fastadv attack --shard`, `fastadv merge` and `status`: the bytes of one process."""

import json
import os
import shutil
import signal

import pytest
from photographs import write_detector
from safetensors.torch import save_file
from shard_commands import TWO, figures, run, words

from fastadv.cli import app
from fastadv.core.cores import own_cores
from fastadv.core.errors import Error
from fastadv.data import read_manifest
from fastadv.data.kept_landmarks import ABOUT
from fastadv.models import load


@pytest.mark.parametrize(("goal", "count"), [("impersonate", 2), ("impersonate", 5), ("evade", 11), ("identify-as", 4)])
def test_shards_merged_are_the_run_of_one_process(goal, count, single, faces, content, tmp_path, capsys):
    out = tmp_path / "run"
    expected = single(goal)
    for k in reversed(range(1, count + 1)):
        assert run(capsys, "status", out, "--json")["state"] == "unfinished" if k < count else not out.exists()
        printed = run(capsys, *words(faces, out, "--shard", f"{k}/{count}", goal=goal))
        assert printed["out"] == str(out / "shards" / f"{k:0{len(str(count))}}-of-{count}")
        assert printed["images"] == len(range(k - 1, len(read_manifest(expected)), count))
    assert run(capsys, "status", out, "--json")["state"] == "not merged"
    merged = run(capsys, "merge", out, "--json")
    assert merged["shards"] == count
    assert content(out) == content(expected)
    assert figures(merged) == figures(run(capsys, *words(faces, out, goal=goal)))  # nothing is left to make
    assert content(out) == content(expected)
    assert run(capsys, "merge", out, "--json")["shards"] == 0


def test_a_killed_shard_goes_on_and_is_named_meanwhile(single, faces, stopped, fastadv, content, tmp_path):
    out = tmp_path / "run"
    for shard, killed in (("1/2", False), ("2/2", True)):
        arguments = words(faces, out, "--shard", shard)
        done = stopped(signal.SIGKILL, 3, *arguments) if killed else fastadv(*arguments)
        assert done.returncode == (-9 if killed else 0), done.stderr
    state = json.loads(fastadv("status", out, "--json").stdout)
    assert [(s["name"], s["state"], s["images"]) for s in state["shards"]] == [
        ("1-of-2", "finished", 9),
        ("2-of-2", "unfinished", 9),
    ]
    assert 12 > state["done"] >= 11
    refused = fastadv("merge", out)
    assert refused.returncode == 2
    assert "expected 2 finished shards, got 2-of-2 unfinished; their commands (--shard K/N)" in refused.stderr
    assert fastadv(*arguments).returncode == 0
    merged = fastadv("merge", out)
    assert merged.returncode == 0, merged.stderr
    assert "2 shards" in merged.stdout
    assert {**content(out), "run.json": b""} == {**content(single("impersonate")), "run.json": b""}


def test_other_weights_between_shards_are_refused(faces, tmp_path, capsys):
    files = [tmp_path / f"{k}.safetensors" for k in range(2)]
    for k, file in enumerate(files):
        state = load("synth-mobile", random_weights_seed=k).backbone.state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, str(file))
    out = tmp_path / "run"
    run(capsys, *words(faces, out, "--weights", files[0], "--shard", "1/2"))
    with pytest.raises(Error, match=r"run: holds shards of another run; weights: expected 0\.safe.*, got 1\.safetens"):
        run(capsys, *words(faces, out, "--weights", files[1], "--shard", "2/2"))
    assert sorted(p.name for p in (out / "shards").iterdir()) == ["1-of-2"]
    run(capsys, *words(faces, out, "--weights", files[1], "--shard", "2/2", "--fresh"))
    with pytest.raises(
        Error, match=r"2-of-2: holds another run; weights: expected 0\.safe.*, got 1\.safe.* with --fresh"
    ):
        run(capsys, "merge", out, "--json")
    run(capsys, *words(faces, out, "--weights", files[1], "--shard", "1/2", "--fresh"))
    run(capsys, "merge", out, "--json")
    with pytest.raises(Error, match=r"run: expected a folder of shards, got one with a run; leave --shard out"):
        run(capsys, *words(faces, out, "--weights", files[1], "--shard", "1/2"))


def test_open_choices_are_those_of_the_first_shard(faces, tmp_path, capsys):
    out = tmp_path / "run"
    run(capsys, *words(faces, out, "--shard", "1/2", "--batch", "3"))
    run(capsys, *words(faces, out, "--shard", "2/2", "--batch", "0"))  # 0: measure
    run(capsys, "merge", out, "--json")
    assert {row.batch for row in read_manifest(out)} == {3}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--shard", "3"), "shard: expected K/N with K from 1 to N, such as 3/16, got '3'"),
        (("--shard", "3/2"), "shard: expected K/N with K from 1 to N"),
        (("--shard", ""), "--shard: expected a value, got an empty text"),
        (("--shard", "1/2", "--batch", "0"), "batch: expected a fixed value for the first shard, got 0; shards that"),
        (("--shard", "1/2", "--precision", "auto"), "precision: expected a fixed value for the first shard, got auto"),
        (("--shard", "1/19"), "shard: expected at most one for each of the 18 images, got 1/19"),
        (("--workers", "0"), "Invalid value for '--workers'"),
        (("--workers", "5000"), "workers: expected at most one for each of the "),
        (("--device", "cpu", "--device", "cpu"), "device: expected one, or CUDA devices, each once, got cpu, cpu"),
        (("--device", "cpu", "--device", "tpu"), "--device: expected cpu"),
        pytest.param(("--workers", "2", "--shard", "1/2"), "shard: expected one process with it, got 2", marks=TWO),
        pytest.param(
            ("--workers", "2", "--limit", "1"), "shard: expected at most one for each of the 1 images", marks=TWO
        ),
        pytest.param(("--workers", "2", "--threshold", "7"), "threshold: expected a cosine value", marks=TWO),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(more, text, inside, faces, tmp_path):
    code, said = inside(*words(faces, tmp_path / "out", *more))
    assert (code, text in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(inside, faces, tmp_path):
    (tmp_path / "images").mkdir()
    for more in (("--shard", "1/2"), ("--workers", "2")) if len(own_cores()) > 1 else (("--shard", "1/2"),):
        code, said = inside(*words(faces, tmp_path, *more))
        assert (code, "has no run.json and holds images" in said) == (2, True), said
    assert os.listdir(tmp_path) == ["images"]
    code, said = inside("merge", tmp_path)
    assert (code, "expected the shards of" in said) == (2, True)
    code, said = inside("status", tmp_path)
    assert (code, "expected the folder of a run" in said) == (2, True)


def test_shards_of_another_number_are_refused(inside, faces, tmp_path, capsys):
    run(capsys, *words(faces, tmp_path / "out", "--shard", "1/3"))
    for more in (("--shard", "1/2"), ("--workers", "2")) if len(own_cores()) > 1 else (("--shard", "1/2"),):
        code, said = inside(*words(faces, tmp_path / "out", *more))
        assert (code, "out: expected shards of 3, such as 1-of-3, got 1/2; remove" in said) == (2, True), said


def test_a_refused_shard_leaves_no_landmarks(single, inside, faces, content, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(single("impersonate"), out)
    write_detector(tmp_path / "mtcnn.safetensors")
    (out / "landmarks.txt").write_text(f"{ABOUT}\n")
    before = content(out)
    code, said = inside(
        *words(faces, out, "--shard", "1/2", "--align", "--detector-weights", tmp_path / "mtcnn.safetensors")
    )
    assert (code, "out: expected a folder of shards, got one with a run" in said) == (2, True), said
    assert content(out) == before


def test_people_read_the_status(faces, tmp_path, capsys):
    run(capsys, *words(faces, tmp_path, "--shard", "1/2"))
    app(["status", str(tmp_path)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "1-of-2" in said
    assert "finished" in said
    assert "missing" in said
    run(capsys, *words(faces, tmp_path, "--shard", "2/2"))
    app(["status", str(tmp_path)], standalone_mode=False)
    assert f"next: fastadv merge {tmp_path}" in capsys.readouterr().out


def test_a_shard_that_is_called_again_after_a_killed_merge_makes_nothing(single, faces, content, tmp_path, capsys):
    out = tmp_path / "run"
    for shard in ("1/2", "2/2"):
        run(capsys, *words(faces, out, "--shard", shard))
    moved = "images/person0/0.png"  # the merge was killed here
    (out / moved).parent.mkdir(parents=True)
    shutil.move(out / "shards" / "1-of-2" / moved, out / moved)
    stamp = (out / moved).stat().st_mtime_ns
    run(capsys, *words(faces, out, "--shard", "1/2"))  # a notice of images that are made again would be an error
    assert (out / "shards" / "1-of-2" / moved).stat().st_mtime_ns == stamp
    run(capsys, "merge", out, "--json")
    assert content(out) == content(single("impersonate"))
