"""`fastadv detect`: from faces to detectors, figures, a page, and verdicts on a folder."""

import csv
import itertools
import json

import pytest
from typer.testing import CliRunner

from fastadv.cli import app
from fastadv.data import SyntheticFaces, read_manifest, to_uint8, write_png

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
        *("--batch", "8", "--out", out, *more),
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("detect") / "study"
    return out, json.loads(fit(out, "--json"))


def test_a_fit_leaves_a_detector_for_every_configuration(study):
    out, said = study
    labels = {f"{n}-{r}-{m}" for n in ("lstm", "mlp") for r in ("medoid", "centroid") for m in ("l2", "cosine")}
    assert {d["label"] for d in said["detectors"]} == labels
    assert {p.stem for p in (out / "detectors").iterdir()} == labels
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
        *("which validated best", "pca, DW-kNN", "aggregate", "not run", "met before", "success of the rest"),
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
    out, said = study
    people = SyntheticFaces(identities=2, per_identity=2, seed=3)
    for name in people.names:
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / "faces" / f"{name}.png", to_uint8(people.load(name).image))
    detector = out / "detectors" / f"{said['best']}.safetensors"
    words = ("score", detector, "--data", tmp_path / "faces", "--model", "synth-vgg", "--out", tmp_path / "s.csv")
    found = json.loads(call(*words, "--eer", "--json"))
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [face["name"] for face in found["faces"]] == list(people.names)
    assert [row["flagged"] == "1" for row in rows] == [face["flagged"] for face in found["faces"]]
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
