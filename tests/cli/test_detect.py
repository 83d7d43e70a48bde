"""`fastadv detect`: from faces to detectors, figures, a page, and verdicts on a folder."""

import csv
import itertools
import json

import pytest
from photographs import Drawn
from scipy import stats
from typer.testing import CliRunner

from fastadv.cli import app
from fastadv.core.notices import Notice
from fastadv.data import SyntheticFaces, read_manifest, to_uint8, write_png
from fastadv.data.synthetic import write_faces
from fastadv.detection import load_detector
from fastadv.studies.align.folder import AlignPlan, align_folder

FACES = ("--data", "synthetic", "--identities", "4", "--per-identity", "8", "--model", "synth-vgg")
# twenty natural images that validate: a threshold at 5 % false alarms needs them
MANY = tuple("26" if word == "8" else word for word in FACES)


def call(*words: object) -> str:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["detect", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def fit(out, *more):
    return call(
        *("fit", *MANY, "--new-head", "--head-epochs", "30", "--head-lr", "0.1", "--attack", "bim:3@12/255"),
        *("--natural", "20", "--attacked", "2", "--validate", "0.25", "--test", "0.25", "--epochs", "2"),
        *("--batch", "8", "--reading", "both", "--out", out, *more),
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("detect") / "study"
    return out, json.loads(fit(out, "--json"))


def test_a_fit_leaves_a_detector_for_every_configuration(study):
    out, said = study
    labels = {f"{n}-{r}-{m}" for n in ("lstm", "mlp") for r in ("medoid", "centroid") for m in ("l2", "cosine")}
    labels |= {
        f"{label}-relative" for label in labels | {f"linear{x.removeprefix('mlp')}" for x in labels if "mlp" in x}
    }
    parts = {(n, r) for n in ("lstm", "mlp", "linear", "mlp+linear") for r in ("medoid", "centroid")}
    labels |= {f"{n}-{r}-l2+cosine-relative" for n, r in parts}
    assert {d["label"] for d in said["detectors"]} == labels
    assert {p.stem for p in (out / "detectors").iterdir()} == labels
    assert {d["label"]: d["reading"] for d in said["detectors"]} == {
        label: "relative" if label.endswith("-relative") else "raw" for label in labels
    }
    assert said["people"] == 4
    assert json.loads((out / "classes.json").read_text()) == [f"s3-{k:06d}" for k in range(4)]
    assert {c["kind"] for c in said["cells"]} == {"targeted", "untargeted"}
    assert all(row.attack == "bim" for row in read_manifest(out / "attacks" / "bim:3@12-255-targeted"))


def test_a_finished_fit_is_only_read(study):
    out, said = study
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("attacks/**/*.png")}
    again = json.loads(fit(out, "--json"))
    assert {**again, "seconds": 0} == {**said, "seconds": 0}
    assert {p: p.stat().st_mtime_ns for p in out.glob("attacks/**/*.png")} == stamps


def test_an_evaluation_ends_in_tables_and_a_page(study):
    out, _ = study
    shown = call(
        *("evaluate", out, *MANY, "--unseen", "fgsm@12/255", "--adaptive", "bim:3@12/255", "--weight", "1", "--k", "5")
    )
    for expected in (
        *("bim-u", "macro-u", "Mahalanobis", "attacks never seen", "fgsm-u", "adaptive attacks on the detector"),
        *("the chosen detector", "pca, DW-kNN", "aggregate", "not run", "met before", "success of the rest"),
    ):
        assert expected in shown
    for network, kept, metric in itertools.product(("lstm", "mlp"), ("medoid", "centroid"), ("l2", "cosine")):
        assert shown.count(f"{network}-{kept}-{metric} ") >= 2  # seen attacks, and the others
    found = json.loads((out / "evaluation.json").read_text())
    assert {row["weight"] for row in found["adaptive"]} == {0, 1}
    varied = {"steps", "eps", "ten times the steps", "transfer"}
    assert {row["varied"] for row in found["adaptive_points"]} == varied
    assert "adaptive attacks against steps and radius" in shown
    assert "transfer from" in shown
    assert {row["family"] for row in found["measured"]} == {"bim", "fgsm"}
    assert len(found["knn"]) == 9 * len({row["layer"] for row in found["knn"]})
    page = (out / "report.html").read_text()
    assert "Telling adversarial faces" in page
    drawn = CliRunner().invoke(
        app, ["report", str(out), "--out", str(out.parent / "again.html")], catch_exceptions=False
    )
    assert drawn.exit_code == 0
    assert (out.parent / "again.html").read_text() == page


def test_a_folder_is_scored_into_a_table(study, tmp_path):
    out, _ = study
    people = SyntheticFaces(identities=2, per_identity=2, seed=3)
    write_faces(people, people.names, tmp_path / "faces")
    detector = out / "detectors" / "mlp-centroid-l2.safetensors"
    words = ("score", detector, "--data", tmp_path / "faces", "--model", "synth-vgg", "--out", tmp_path / "s.csv")
    found = json.loads(call(*words, "--eer", "--json"))
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [face["name"] for face in found["faces"]] == list(people.names)
    assert [row["flagged"] == "1" for row in rows] == [face["flagged"] for face in found["faces"]]
    assert [float(row["p_value"]) for row in rows] == pytest.approx([face["p_value"] for face in found["faces"]])
    assert sum(row["flagged"] == "1" for row in rows) == found["flagged"]
    assert f"{found['flagged']} of 4 faces flagged" in call(*words, "--eer")
    with pytest.raises(ValueError, match="--false-alarm: expected it or --eer, got both"):
        call(*words, "--eer", "--false-alarm", "0.05")
    with pytest.raises(ValueError, match="--rate: expected --false-alarm 0.05, got the former name --rate"):
        call(*words, "--rate", "0.05")
    # calibrated on twenty natural images: 1 % cannot be measured, and the output says what is taken instead
    usual = call(*words)
    assert "(equal error rate: the detector is not calibrated for false-alarm rate 0.01)" in usual
    assert json.loads(call(*words, "--json"))["threshold"] == found["threshold"]
    # calibrated on natural faces alone, the threshold is that of their first rate
    mine = tmp_path / "mine.safetensors"
    call("calibrate", detector, *CALM, "--out", mine, "--false-alarm", "0.1")
    words = ("score", mine, *words[2:])
    assert "(false-alarm rate 0.1 on 60 images of synthetic)" in call(*words)
    assert json.loads(call(*words, "--json"))["threshold"] == load_detector(mine).thresholds.at_false_alarm(0.1)
    with pytest.raises(ValueError, match="--eer: expected a detector that was calibrated on adversarial images too"):
        call(*words, "--eer")


CALM = ("--data", "synthetic", "--identities", "30", "--per-identity", "2", "--faces-seed", "8", "--model", "synth-vgg")


@pytest.mark.parametrize("label", ["mlp-centroid-l2", "linear-centroid-l2-relative"])
def test_a_detector_is_calibrated_on_natural_faces_and_says_so(study, tmp_path, label):
    out, _ = study
    before, after = out / "detectors" / f"{label}.safetensors", tmp_path / "mine.safetensors"
    words = ("calibrate", before, *CALM, "--weights", out / "head.safetensors", "--out", after)
    found = json.loads(call(*words, "--false-alarm", "0.05", "--false-alarm", "0.2", "--json"))
    thresholds = load_detector(after).thresholds
    assert (found["images"], found["people"], thresholds.natural) == (60, 30, 60)
    assert thresholds.calibrated_on == found["calibrated_on"]
    assert (found["calibrated_on"]["data"], found["calibrated_on"]["people"]) == ("synthetic", "30")
    assert [row["threshold"] for row in found["rates"]] == [thresholds.at_false_alarm(r) for r in (0.05, 0.2)]
    for row, rank in zip(found["rates"], (3, 12), strict=True):
        assert (row["low"], row["high"]) == pytest.approx(stats.beta(rank, 61 - rank).ppf((0.025, 0.975)))
        assert row["people"][0] <= row["rate"] <= row["people"][1]
    first = after.read_bytes()
    shown = call(*words, "--false-alarm", "0.05", "--false-alarm", "0.2")
    assert after.read_bytes() == first
    for expected in ("60 faces of 30 people", "on new faces, 95 %", "if people are alike", "next: fastadv serve"):
        assert expected in shown
    with pytest.raises(
        ValueError, match="false_alarm: expected a rate that 60 natural images can measure, 1/61 or more"
    ):
        call(*words, "--false-alarm", "0.01")
    with pytest.raises(ValueError, match="needs at least 99"):
        call(*words)
    with pytest.raises(ValueError, match="--false-alarm: expected a rate between 0 and 1, such as 0.01, got 1"):
        call(*words, "--false-alarm", "0.05", "--false-alarm", "1")
    assert after.read_bytes() == first
    with pytest.raises(ValueError, match="model: expected the detector's, synth-vgg, got synth-mobile"):
        call("calibrate", before, *CALM[:-1], "synth-mobile", "--out", after, "--false-alarm", "0.1")


@pytest.mark.parametrize("label", ["mlp-centroid-l2", "linear-centroid-l2-relative"])
def test_what_made_a_score(study, tmp_path, label):
    out, said = study
    image, drawn = tmp_path / "face.png", tmp_path / "why.svg"
    write_png(image, to_uint8(SyntheticFaces(identities=1, per_identity=1, seed=9).load("s9-000000/0000").image))
    detector = out / "detectors" / f"{label}.safetensors"
    network = ("--model", "synth-vgg", "--weights", out / "head.safetensors")
    words = ("explain", image, *network, "--detector", detector, "--eer")
    found = json.loads(call(*words, "--out", drawn, "--json"))
    layers = [*said["layers"], *(["embedding"] if "relative" in label else [])]
    assert [layer["layer"] for layer in found["layers"]] == layers
    total = sum(layer["contribution"] for layer in found["layers"])
    assert total + found["remainder"] == pytest.approx(found["score"] - found["baseline"])
    assert abs(found["remainder"]) < 0.01 * max(1, abs(found["score"] - found["baseline"]))
    assert len(found["leading"]) == 2
    people = [f"s3-{k:06d}" for k in range(4)]
    names = ("own", "nearest other", "ratio", "rank", "own minus mean") if "relative" in label else people
    assert {column["name"] for column in found["leading"]} <= set(names)
    assert found["own"] in people
    assert all(layer["nearest_other"] in set(people) - {found["own"]} for layer in found["layers"])
    assert found["flagged"] == (found["score"] >= found["threshold"])
    assert 0 < found["p_value"] <= 1
    picture = drawn.read_text()
    assert picture.lstrip().startswith("<?xml")
    assert all(layer["layer"] in picture for layer in found["layers"])
    shown = call(*words)
    assert "contributions to the score" in shown
    assert found["leading"][0]["name"] in shown
    with pytest.raises(ValueError, match=r"--out: expected a name that ends in \.svg, got .*why\.png"):
        call(*words, "--out", tmp_path / "why.png")
    with pytest.raises(ValueError, match="gone"):
        call("explain", tmp_path / "gone.png", *words[2:])
    if "relative" in label:
        found = json.loads(call(*words, "--claimed", people[1], "--json"))
        assert found["own"] == people[1]
        with pytest.raises(ValueError, match="claimed: expected one of the 4 classes of the detector, got 'eve'"):
            call(*words, "--claimed", "eve")
    else:
        with pytest.raises(ValueError, match="claimed: expected none for a detector of the reading 'raw'"):
            call(*words, "--claimed", people[1])


def test_people_of_a_gallery_and_claimed_identities(study, tmp_path):
    out, _ = study
    people = SyntheticFaces(identities=7, per_identity=2, seed=3)  # three of them are no classes of the detector
    write_faces(people, people.names, tmp_path / "faces")
    write_faces(people, people.names[::2], tmp_path / "gallery")
    detectors = out / "detectors"
    words = ("score", detectors / "linear-centroid-l2-relative.safetensors", "--eer", "--model", "synth-vgg", "--json")
    with pytest.raises(ValueError, match="detector: expected one fitted with the model's 500 logits, got one with 4;"):
        call(*words, "--data", tmp_path / "faces")
    words += ("--weights", out / "head.safetensors")
    faces = ("--data", tmp_path / "faces")
    scores = {
        more: [face["score"] for face in json.loads(call(*words, *faces, *more))["faces"]]
        for more in ((), ("--gallery", tmp_path / "gallery"), ("--gallery", tmp_path / "gallery", "--claimed"))
    }
    assert len({tuple(found) for found in scores.values()}) == 3
    with pytest.raises(ValueError, match="claimed: expected identities among the 4 classes of the detector, got .*;"):
        call(*words, *faces, "--claimed")
    # calibrated with the gallery and the claims that it will be used with
    mine, relative = tmp_path / "mine.safetensors", ("--gallery", tmp_path / "gallery", "--claimed")
    few = (
        "calibrate",
        words[1],
        *faces,
        *words[3:5],
        *words[6:],
        *relative,
        "--false-alarm",
        "0.5",
        "--out",
        mine,
        "--json",
    )
    found = json.loads(call(*few))
    assert found["calibrated_on"]["claimed"] == "the identity of each face"
    read = load_detector(mine)
    assert read.trajectory.representatives.classes == load_detector(words[1]).trajectory.representatives.classes
    assert read.thresholds.scores.tolist() == pytest.approx(sorted(scores[relative]), abs=1e-5)
    used = ("score", mine, *words[3:], *faces)
    assert json.loads(call(*used, *relative))["threshold"] == read.thresholds.at_false_alarm(0.5)
    with pytest.warns(Notice, match="claimed: expected claims, as thresholds and p-values were .*, got none"):
        call(*used, *relative[:2])
    with pytest.raises(ValueError, match="reading: expected 'relative' for other classes, got 'raw'"):
        call("score", detectors / "mlp-centroid-l2.safetensors", *words[2:], *faces, "--gallery", tmp_path / "gallery")
    # an image is nearer to a centroid that it is part of: neither a score nor a threshold would mean anything
    for command in (words, few):
        with pytest.raises(ValueError, match="--gallery: expected other images than those of --data, got .* in both"):
            call(*command, *faces, "--gallery", tmp_path / "faces")


def test_photographs_of_a_gallery_are_aligned_as_those_of_the_data(study, tmp_path, monkeypatch):
    out, _ = study
    drawn = Drawn()
    monkeypatch.setattr("fastadv.models.MTCNN", lambda *_, **__: drawn)
    for person, (image, folder) in itertools.product(range(3), enumerate(("gallery", "faces"))):
        drawn.draw(tmp_path / folder / f"p{person}" / f"{image}.png", person, image)
    words = ("score", out / "detectors" / "linear-centroid-l2-relative.safetensors", "--eer", "--model", "synth-vgg")
    words += ("--weights", out / "head.safetensors", "--data", tmp_path / "faces", "--claimed", "--align", "--json")
    words += ("--detector-weights", "any")
    found = json.loads(call(*words, "--gallery", tmp_path / "gallery"))
    assert sum(drawn.calls) == 6  # pictures of both
    align_folder(AlignPlan(photos=tmp_path / "gallery", out=tmp_path / "aligned"), drawn)
    again = json.loads(call(*words, "--gallery", tmp_path / "aligned"))
    assert sum(drawn.calls) == 6 + 3 + 3  # aligned faces are taken as they are
    scores = [[face["score"] for face in each["faces"]] for each in (found, again)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--dimensions", "many"), "dimensions: expected a whole number, or a share such as 0.25, got 'many'"),
        (("--dimensions", "1.5"), "dimensions: expected a whole number of at least 1, or a share .*, got 1.5"),
        (("--dimensions", "0"), "dimensions: expected a whole number of at least 1, or a share .*, got 0"),
        (("--knn-layer", "a", "--knn-layer", "a"), "knn_layers: expected different layers, got a, a"),
        (("--knn-layer", "nowhere"), "knn_layers: expected one of .*, got 'nowhere'"),
    ],
)
def test_a_wrong_evaluation_says_what_is_wrong(words, expected, study):
    with pytest.raises(ValueError, match=expected):
        call("evaluate", study[0], *MANY, *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--attack", "bin"), "attack: expected NAME"),
        (("--attack", "bim:0"), "attack: expected a whole number of at least 1 for the steps, got 'bim:0'"),
        ((), "attack: expected at least one, or a run of one, got none"),
        (("--attack", "bim"), "natural and attacked: expected 10 . 10 images and 3 for the class head of every person"),
        (
            ("--attack", "bim", "--natural", "2", "--attacked", "2"),
            "classes: expected a list for a network's head of 500",
        ),
        (("--attack", "bim", "--names", "nowhere.txt"), "nowhere.txt: the names cannot be read"),
        (
            ("--attack", "bim", "--natural", "2", "--attacked", "2", "--layer", "x"),
            "layers: expected submodules of the backbone",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wrong(words, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        call("fit", *FACES, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()
