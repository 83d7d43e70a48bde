"""`fastadv talfw`: a set of pairs that `fastadv verify` reads unchanged, the same bytes after a kill."""

import json
import signal

import pytest

from fastadv.cli import app
from fastadv.data import LFW, Pair, read_manifest, render_faces, to_uint8, write_pairs_csv, write_png
from fastadv.data.lfw import write_lfw_pairs

PEOPLE = 8


@pytest.fixture(scope="module")
def lfw(tmp_path_factory):
    """Synthetic people in LFW's layout, 160 x 160 with landmarks: two folds of eight pairs."""
    root = tmp_path_factory.mktemp("lfw")
    lines = []
    for person in range(PEOPLE):
        batch = render_faces([900_000 + person] * 3, range(3), size=160)
        (root / "images" / f"person{person}").mkdir(parents=True)
        for k in range(3):
            name = f"person{person}/person{person}_{k + 1:04d}"
            write_png(root / "images" / f"{name}.png", to_uint8(batch.images[k]))
            lines.append(f"{name}.png " + " ".join(f"{v:.3f}" for v in batch.landmarks[k].ravel().tolist()))
    (root / "landmarks.txt").write_text("\n".join(lines) + "\n")

    def name(person, number):
        return f"person{person % PEOPLE}/person{person % PEOPLE}_{number:04d}"

    same = [Pair(first=name(p, 1), second=name(p, 2), same=True, fold=p % 2) for p in range(PEOPLE)]
    other = [Pair(first=name(p, 1), second=name(p + 3, 3), same=False, fold=p % 2) for p in range(PEOPLE)]
    write_lfw_pairs(root / "pairs.txt", same + other)
    return root


def arguments(lfw, out, *more):
    return (
        *("talfw", "--data", lfw, "--model", "synth-vgg", "--out", out, "--attack", "m-fim"),
        *("--eps", "10/255", "--steps", "12", "--batch", "2", *more),
    )


@pytest.fixture(scope="module")
def finished(fastadv, lfw, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    done = fastadv(*arguments(lfw, out, "--json"))
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.fixture
def here(capsys):
    """The command line in this process, for what ends well: its standard output."""

    def call(*words):
        app([str(word) for word in words], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_verify_reads_the_copy_unchanged_and_its_accuracy_drops(finished, here, lfw):
    out, summary = finished
    assert (summary["pairs"], summary["images"], summary["changed"]) == (16, 24, 8)
    assert summary["reader"] == ["--data", str(out)]
    assert summary["kept"] > 0.5
    assert (out / "pairs.txt").read_bytes() == (lfw / "pairs.txt").read_bytes()
    clean, copied = (
        json.loads(here("verify", *where, "--model", "synth-vgg", "--json"))["clean"]
        for where in (("--data", lfw), summary["reader"])
    )
    assert clean["pairs"] == copied["pairs"] == 16
    assert clean["accuracy"] > 0.8
    assert copied["accuracy"] < clean["accuracy"]
    assert copied["auc"] < 0.2


def test_started_again_it_writes_nothing(finished, here, lfw, content):
    before = content(finished[0])
    again = json.loads(here(*arguments(lfw, finished[0], "--json")))
    assert content(finished[0]) == before
    assert {**again, "seconds": 0} == {**finished[1], "seconds": 0}


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bytes(finished, stopped, fastadv, lfw, content, tmp_path):
    out = tmp_path / "out"
    stopped(signal.SIGKILL, 2, *arguments(lfw, out, "--json"))
    assert len(list(out.glob("crops/images/*/*.png"))) == 2
    assert not (out / "pairs.txt").exists()
    resumed = fastadv(*arguments(lfw, out, "--json"))
    assert resumed.returncode == 0, resumed.stderr
    assert content(out) == content(finished[0])


def test_the_paper_s_attack_is_the_default_and_people_get_a_table(here, lfw, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    pairs, out = tmp_path / "pairs.csv", tmp_path / "out"
    write_pairs_csv(pairs, LFW(lfw).pairs[:3])
    more = ("--pairs", pairs, "--threshold", "0.5", "--steps", "2", "--drop-rate", "0.05", "--batch", "3")
    said = here("talfw", "--data", lfw, "--model", "synth-vgg", "--out", out, *more)
    for text in (
        "dfanet-di-m-fim, linf 10/255, synth-vgg",
        "images changed, of all",
        "3 of 6",
        "change left after alignment",
        f"fastadv verify --data {out} --pairs {out / 'pairs.csv'} --model",
    ):
        assert text in said
    assert [row.attack for row in read_manifest(out / "crops")] == ["dfanet-di-m-fim"] * 3
    assert LFW(out).names == tuple(sorted({n for p in LFW(lfw).pairs[:3] for n in (p.first, p.second)}))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--eps", "8"), "eps: expected at most hi - lo = 1, got 8"),
        (("--threshold", "7"), "threshold: expected a cosine value in [-1, 1], got 7.0"),
        (("--attack", "dfanet-fim", "--targets", "all"), "targets: expected one for dfanet-fim, which compares with"),
        (("--targets", "some"), "--targets: expected one of all, one, got 'some'"),
        (("--folds", "3"), "folds: expected some of the 2 of the pairs, got 3"),
        (("--limit", "0"), "limit: expected a whole number of at least 1, got 0"),
        (("--slots", "3"), "slots: expected a multiple of batch = 2, got 3"),
        (("--seed", "-1"), "seed"),
    ],
)
def test_a_wrong_argument_is_one_clear_sentence(more, text, inside, lfw, tmp_path):
    code, said = inside(*arguments(lfw, tmp_path / "out", *more))
    assert code == 2
    assert text in " ".join(said.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(inside, lfw, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    code, said = inside(*arguments(lfw, tmp_path))
    assert code == 2
    assert "out: expected a new or empty folder, or one of talfw" in said
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_faces_without_pairs_ask_for_them(inside, faces, tmp_path):
    code, said = inside(*arguments(faces, tmp_path / "out"))
    assert code == 2
    assert "pairs: expected faces with a list of pairs or --pairs FILE" in said


def test_another_configuration_is_refused(finished, inside, lfw):
    code, said = inside(*arguments(lfw, finished[0], "--seed", "5"))
    assert code == 2
    assert "holds another run; seed" in said
