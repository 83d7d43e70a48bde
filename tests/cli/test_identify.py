"""`fastadv identify`."""

import json

import pytest

from fastadv.data import read_manifest


def arguments(faces, *more):
    return ("identify", "--data", faces, "--model", "synth-mobile", *more)


def test_the_table_and_the_folder(fastadv, faces, tmp_path):
    out = tmp_path / "out"
    more = ("--attack", "knn-df", "--eps", "16/255", "--steps", "20", "--limit", "3", "--out", out, "--batch", "4")
    done = fastadv(*arguments(faces, *more))
    assert done.returncode == 0, done.stderr
    for text in (
        "named rightly, nearest template",
        "TPIR at FPIR 0.01: not measurable from 3 faces of people not enrolled; needs at least 100",
        "success of the rest",
        "met before",
    ):
        assert text in done.stdout
    saved = json.loads((out / "identification.json").read_text())
    assert (saved["aim"], saved["clean"]["people"], saved["clean"]["mated"]) == ("identify-as", 5, 3)
    rows = read_manifest(out)
    assert {(r.goal, r.attack, r.metric) for r in rows} == {("identify-as", "knn-df", "template_margin")}
    assert saved["attacked"]["target"]["rank1"] == pytest.approx(sum(r.success for r in rows) / 3)
    assert sorted(p.name for p in out.iterdir()) == [
        ".hashes.json",
        "identification.json",
        "identification.svg",
        "images",
        "manifest.parquet",
        "run.json",
    ]


def test_clean_figures_need_no_folder(inside, faces):
    code, said = inside(*arguments(faces, "--json", "--enrol", "1"))
    assert (code, said) == (0, "")


@pytest.mark.parametrize("name", ["fim", "lbfgs"])
def test_any_attack_of_the_catalogue_can_be_used(name, inside, faces, tmp_path):
    out = tmp_path / "out"
    more = (
        "--attack",
        name,
        "--goal",
        "misidentify",
        "--limit",
        "2",
        "--out",
        out,
        "--json",
        "--steps",
        "4",
        "--batch",
        "2",
    )
    code, said = inside(*arguments(faces, *more))
    assert code == 0, said
    saved = json.loads((out / "identification.json").read_text())
    assert (saved["aim"], saved["attacked"]["probes"], saved["attacked"]["target"]) == ("misidentify", 2, None)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--eps", "8/255"), "--attack: expected it with --goal, --eps and other options of an attack, got none"),
        (
            ("--goal", "misidentify"),
            "--attack: expected it with --goal, --eps and other options of an attack, got none",
        ),
        (("--attack", "fim"), "--out: expected a folder for the images of --attack fim, got none"),
        (("--enrol", "3"), "enrol: expected two or more people with more than 3 images, got 0"),
        (("--neighbours", "0"), "neighbours: expected 1 to 10, the number of enrolled images, got 0"),
        (("--limit", "0"), "limit: expected at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_clear_sentence(more, text, inside, faces):
    code, said = inside(*arguments(faces, *more))
    assert code == 2
    assert text in said
