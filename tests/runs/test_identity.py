"""Every part of a run's identity, in every command: another part is another run, and is refused by name."""

import contextlib
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import content
from safetensors.torch import save_file

import fastadv as fa
from fastadv.cli import app
from fastadv.core.errors import Error

# few pairs, small pictures: what the commands note about them is not tested here
pytestmark = pytest.mark.filterwarnings("ignore::fastadv.core.notices.Notice")

PEOPLE = "abcdefgh"
POINTS = "38 52 74 52 56 72 42 92 71 92"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Faces, another gallery, a copy, landmarks, pairs and weights: everything that a call can be given."""
    root = tmp_path_factory.mktemp("identity")
    rng = np.random.default_rng(0)
    for folder in ("faces", "gallery", "copy"):
        for person in PEOPLE:
            (root / folder / person).mkdir(parents=True)
            for k in range(1, 6):
                pixels = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / person / f"{k}.png")
    lines = [f"{person}/{k} {POINTS}\n" for person in PEOPLE for k in range(1, 6)]
    (root / "points.txt").write_text("".join(lines))
    (root / "moved.txt").write_text("".join(lines).replace("38 52", "39 52"))
    for name, pairs in (
        ("pairs", [("a/1", "a/2", 1), ("b/1", "b/2", 1), ("a/1", "b/2", 0), ("b/1", "c/2", 0)]),
        ("others", [("a/1", "a/3", 1), ("b/1", "b/2", 1), ("a/1", "b/2", 0), ("b/1", "c/2", 0)]),
    ):
        with open(root / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("first", "second", "same"), *pairs])
    for name, seed in (("one", 1), ("two", 2)):
        state = fa.load("synth-mobile", random_weights_seed=seed).backbone.state_dict()
        save_file({k: v.contiguous() for k, v in state.items()}, str(root / f"{name}.safetensors"))
    return root


def run(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


# A command, and the options that say everything that it depends on.
COMMON = {"--data": "faces", "--seed": 1}
NETWORK = {"--model": "synth-mobile", "--weights": "one.safetensors"}
ATTACKED = {"--eps": "0.02", "--batch": 4, "--precision": "fp32"}
COMMANDS: dict[str, tuple[list[str], dict[str, object]]] = {
    "attack": (["attack", "fgsm"], {**COMMON, **NETWORK, **ATTACKED, "--threshold": 0.9, "--limit": 2}),
    "gallery": (
        ["attack", "fim"],
        {
            **COMMON, **NETWORK, **ATTACKED, "--steps": 1, "--goal": "identify-as", "--gallery": "gallery",
            "--neighbours": 1, "--limit": 2, "--metric": "cosine",
        },
    ),
    "verify": (["verify", "--attack", "fgsm"], {**COMMON, **NETWORK, **ATTACKED, "--pairs": "pairs.csv"}),
    "identify": (
        ["identify", "--attack", "fim"],
        {**COMMON, **NETWORK, **ATTACKED, "--steps": 1, "--enrol": 1, "--goal": "identify-as", "--limit": 2},
    ),
    "talfw": (
        ["talfw", "--attack", "fgsm"],
        {**COMMON, **NETWORK, **ATTACKED, "--pairs": "pairs.csv", "--threshold": 0.9},
    ),
    "defend": (
        ["defend"],
        {
            **COMMON, **NETWORK, "--batch": 4, "--precision": "fp32", "--attack": "fgsm@0.02", "--pairs": "pairs.csv",
            "--defence": "mean:3", "--threat": "zero", "--copy": "copy",
        },
    ),
    "transfer": (
        ["transfer", "--network", "synth-resnet", "--surrogate", "synth-mobile"],
        {
            **COMMON, "--network": "synth-mobile=two.safetensors", "--method": "fim", "--verification": "pairs.csv",
            "--pairs": 1, "--images": 4, "--far": 0.5, "--eps": "0.02", "--steps": 1, "--batch": 4,
            "--precision": "fp32",
        },
    ),
    "detect": (
        ["detect", "fit"],
        {
            **COMMON, **NETWORK, "--attack": "fgsm@0.02", "--batch": 4, "--precision": "fp32", "--natural": 1,
            "--attacked": 1, "--validate": 0.25, "--test": 0.25, "--epochs": 1, "--lr": 0.01, "--head-epochs": 1,
            "--split-by": "people", "--control": "blur:1", "--outside": 0.0,
        },
    ),
    "train": (
        ["train"],
        {**COMMON, **NETWORK, "--batch": 4, "--epochs": 1, "--lr": 0.01, "--pairs": "held.csv"},
    ),
}  # fmt: skip

# What is changed, and the part that the refusal names. Where an option is absent, it is added.
CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "seed": ({"--seed": 2}, "seed"),
    "weights": ({"--weights": "two.safetensors"}, "weights"),
    "network": ({"--network": "synth-mobile=one.safetensors"}, "networks.synth-mobile.weights"),
    "landmarks": ({"--landmarks": "points.txt"}, "landmarks"),
    "eps": ({"--eps": "0.03"}, "eps"),
    "steps": ({"--steps": 2}, "steps"),
    "attack": ({"--attack": "fgsm@0.03"}, "attacks"),
    "method": ({"--method": "fim:2"}, "attacks"),
    "batch": ({"--batch": 2}, "batch"),
    "precision": ({"--precision": "bf16"}, "precision"),
    "threshold": ({"--threshold": 0.8}, "threshold"),
    "goal": ({"--goal": "misidentify"}, "goal"),
    "metric": ({"--metric": "euclidean"}, "metric"),
    "gallery": ({"--gallery": "copy"}, "gallery"),
    "pairs": ({"--pairs": "others.csv"}, "pairs|faces"),
    "verification": ({"--verification": "others.csv"}, "verification|faces"),
    "copy": ({"--copy": "gallery"}, "copy"),
    "defence": ({"--defence": "mean:5"}, "defences"),
    "limit": ({"--limit": 3}, "limit|selection|faces"),
    "far": ({"--far": 0.6}, "far"),
    "epochs": ({"--epochs": 2}, "epochs"),
    "lr": ({"--lr": 0.02}, "lr"),
    "control": ({"--control": "blur:2"}, "controls"),
    "outside": ({"--outside": 0.1}, "outside"),
}
TABLE = [
    (command, change)
    for command, (_, options) in COMMANDS.items()
    for change, (changed, _) in CHANGES.items()
    if set(changed) <= {*options, "--landmarks", "--metric"}
    and not (change == "metric" and command not in ("gallery", "verify", "identify"))
    and not (change in ("epochs", "lr") and command == "detect")  # other detectors on the same images
    and not (change == "pairs" and command in ("transfer", "train"))
]


def words(command: str, place: Path, out: Path, changed: dict[str, object] | None = None) -> list[object]:
    start, options = COMMANDS[command]
    found: list[object] = list(start)
    for name, value in {**options, **(changed or {})}.items():
        if isinstance(value, str) and "=" in value:
            network, _, file = value.partition("=")
            value = f"{network}={place / file}"
        elif isinstance(value, str) and (place / value).exists():
            value = place / value
        found += [name, value]
    return [*found, "--out", out, "--json"]


@pytest.fixture(scope="module")
def made(place, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a command's run, made once."""
    held = place / "held.csv"
    held.write_text("first,second,same,fold\nd/1,d/2,1,0\nd/1,c/2,0,0\nd/2,d/3,1,1\nd/3,c/1,0,1\n")
    root, found = tmp_path_factory.mktemp("runs"), {}

    def folder(command: str) -> Path:
        if command not in found:
            found[command] = root / command
            # of a detection study only the images are needed: random weights give no detector
            with pytest.raises(Error) if command == "detect" else contextlib.nullcontext():
                run(*words(command, place, root / command))
        return found[command]

    return folder


@pytest.mark.parametrize(("command", "change"), TABLE)
def test_another_part_is_refused_by_name(place, made, command, change, capsys):
    out = made(command)
    before = content(out)
    changed, part = CHANGES[change]
    with pytest.raises(
        Error, match=rf"holds another (run|training|study); [^;]*({part})[^;]*: expected .*; use --fresh or"
    ):
        run(*words(command, place, out, changed))
    assert content(out) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_other_images_of_the_same_names_are_refused(place, made, command, tmp_path, capsys):
    out = made(command)
    shutil.copytree(place, tmp_path / "place")
    for file in ("a/1.png", "b/1.png", "c/1.png", "a/2.png"):  # sources, targets, and images of pairs
        image = tmp_path / "place" / "faces" / file
        pixels = np.asarray(Image.open(image)).copy()
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(image)
    with pytest.raises(Error, match=r"faces[^:]*: expected .*; use --fresh or another --out"):
        run(*words(command, tmp_path / "place", out))


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"detect"}))
def test_the_same_faces_elsewhere_are_the_same_run(place, made, command, tmp_path, capsys):
    shutil.copytree(place, tmp_path / "place")
    before = {k: v for k, v in content(made(command)).items() if not k.endswith((".html", ".json", ".svg"))}
    run(*words(command, tmp_path / "place", made(command)))
    after = content(made(command))
    assert {k: after[k] for k in before} == before


def test_other_points_in_a_list_of_the_same_name_are_refused(place, tmp_path, capsys):
    out, points = tmp_path / "run", tmp_path / "l.txt"
    shutil.copy(place / "points.txt", points)
    run(*words("attack", place, out, {"--landmarks": points}))
    shutil.copy(place / "moved.txt", points)
    with pytest.raises(Error, match=r"landmarks: expected l\.txt \(sha256 .*\) \(as in run\.json\), got l\.txt \(sha2"):
        run(*words("attack", place, out, {"--landmarks": points}))
    with pytest.raises(Error, match=r"landmarks: expected l\.txt \(.*\) \(as in run\.json\), got none; use --fresh or"):
        run(*words("attack", place, out))


def test_a_landmark_list_or_a_pair_list_that_appears_is_another_run(place, tmp_path, capsys):
    faces, out = tmp_path / "faces", tmp_path / "run"
    shutil.copytree(place / "faces", faces / "images")
    run(*words("attack", place, out, {"--data": faces}))
    (faces / "landmarks.txt").write_text((place / "points.txt").read_text())
    with pytest.raises(Error, match=r"landmarks: expected none \(as in run\.json\), got the data's own \(sha256 "):
        run(*words("attack", place, out, {"--data": faces}))


def test_fresh_makes_the_other_run(place, tmp_path, capsys):
    out = tmp_path / "run"
    run(*words("attack", place, out))
    first = content(out)
    run(*words("attack", place, out, {"--seed": 2}), "--fresh")
    second = content(out)
    assert second["run.json"] != first["run.json"]
    run(*words("attack", place, out), "--fresh")
    assert content(out) == first


@pytest.mark.parametrize("command", ["attack", "transfer"])
def test_fresh_takes_no_setting_of_the_run_that_it_removes(place, tmp_path, command):
    out = tmp_path / "run"
    run(*words(command, place, out, {"--precision": "bf16", "--batch": 2}))
    engine = json.loads((out / "run.json").read_text())["config"]["engine"]
    assert (engine["precision"], engine["batch"]) == ("bf16", 2)
    own = words(command, place, out)
    for option in ("--precision", "--batch"):
        del own[own.index(option) : own.index(option) + 2]
    run(*own)  # goes on with the settings of the run
    assert json.loads((out / "run.json").read_text())["config"]["engine"] == engine
    run(*own, "--fresh")
    engine = json.loads((out / "run.json").read_text())["config"]["engine"]
    assert (engine["precision"], engine["batch"]) == ("fp32", 16)


def test_rows_hold_the_hashes_of_source_and_target_and_what_made_them(place, made):
    import hashlib

    row = fa.data.read_manifest(made("attack"))[0]
    target = place / "faces" / f"{row.target}.png"
    source = place / "faces" / f"{row.name.partition('__')[0]}.png"
    assert row.source_hash == hashlib.sha256(source.read_bytes()).hexdigest()
    assert row.target_hash == hashlib.sha256(target.read_bytes()).hexdigest()
    assert f"torch {torch.__version__}" in row.software
    assert f"threads {torch.get_num_threads()}" in row.software
    assert row.batch == 4


def refused(words: list[object], place: Path, match: str) -> None:
    with pytest.raises(Error, match=match):
        run(*words)


def test_a_refused_command_leaves_no_folder(place, tmp_path, capsys):
    one_class = tmp_path / "one.csv"
    one_class.write_text("first,second,same\na/1,a/2,1\nb/1,b/2,1\n")
    out = tmp_path / "out"
    for command, changed in (
        ("verify", {"--pairs": one_class}),
        ("verify", {"--pairs": tmp_path / "none.csv"}),
        ("attack", {"--weights": tmp_path / "none.safetensors"}),
        ("attack", {"--eps": "none"}),
        ("identify", {"--enrol": 9}),
        ("talfw", {"--threshold": 7}),
        ("defend", {"--defence": "nonsense"}),
        ("transfer", {"--images": 5}),
        ("train", {"--lr": -1}),
        ("train", {"--pairs": tmp_path / "none.csv"}),
    ):
        with pytest.raises(Error):
            run(*words(command, place, out, changed))
        assert not out.exists(), f"{command} {changed}"
    run(*words("verify", place, out))


def stream(place, out, goal, **changed):
    values = {"attack": fa.attacks.pgd(steps=1), "seed": 0, "model": fa.load("synth-mobile"), **changed}
    faces = fa.data.IdentityFolder(place / "faces")
    return list(fa.stream(values["attack"], lambda face: goal, values["model"], faces, out=out, seed=values["seed"]))


def test_a_stream_with_another_part_is_refused(place, tmp_path):
    reference = torch.nn.functional.normalize(torch.arange(1.0, 129.0)[None])
    goal = fa.Impersonate(reference, threshold=0.9)
    assert len(stream(place, tmp_path / "run", goal)) == 40
    for other in (
        fa.Impersonate(reference, threshold=0.8),
        fa.Impersonate(reference.flip(1), threshold=0.9),
        fa.Evade(references=reference, threshold=0.9),
    ):
        with pytest.raises(Error, match=r"goal: expected sha256 .* \(as in the row of a/1\), got sha256"):
            stream(place, tmp_path / "run", other)
    for changed, part in (
        ({"attack": fa.attacks.pgd(steps=2)}, "attack.steps"),
        ({"seed": 1}, "seed"),
        ({"model": fa.load("synth-resnet")}, "model"),
    ):
        with pytest.raises(Error, match=f"holds another run; {part}: expected"):
            stream(place, tmp_path / "run", goal, **changed)
    assert stream(place, tmp_path / "run", goal) == []


def test_a_stream_says_what_it_was_given(place):
    model, faces = fa.load("synth-mobile"), fa.data.IdentityFolder(place / "faces")
    goal = fa.Evade(threshold=0.9)
    for source, goal_for, match in (
        ([1], lambda face: goal, "source: expected faces such as .*, got list"),
        ("/faces", lambda face: goal, "source: expected faces such as .*, got str"),
        (faces, goal, "goal_for: expected a function from a face to its goal, got Evade"),
        (faces, lambda face: None, "goal_for: expected a goal for a/1, got NoneType"),
    ):
        with pytest.raises(TypeError, match=match):
            list(fa.stream(fa.attacks.pgd(steps=1), goal_for, model, source))
