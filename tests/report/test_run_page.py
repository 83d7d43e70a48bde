"""The report of a run's folder: what is in it is shown, what is missing is said."""

import base64
import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fastadv.attacks import by_name
from fastadv.cli import app
from fastadv.core import text
from fastadv.core.notices import Notice
from fastadv.core.numbers import parse_eps
from fastadv.data import IdentityFolder, ManifestError, ManifestRow, RunFolder, SourceError, face_id, write_png
from fastadv.report.pages import parts
from fastadv.report.pages.run import render
from fastadv.runs import describe
from fastadv.runs.attack import pair_name, source_name

RNG = np.random.default_rng(3)
SIZE = 32
EVIL = "<script>alert(1)<"
CONFIG = {
    "command": "verify",
    "model": "mobilefacenet",
    "weights": "0" * 64,
    "attack": describe(by_name("m-fim", eps=8 / 255)),
    "engine": {"batch": 8, "precision": "fp32", "channels_last": True},
    "metric": "cosine",
    "seed": 5,
}


def row(first: str, second: str, goal: str, source_hash: str, number: int, **fields: object) -> ManifestRow:
    name = pair_name(first, second)
    values = {
        "ticks": 10,
        "success": number % 3 != 0,
        "success_float": True,
        "linf": 8 / 255,
        "l2": 2.5,
        "score_before": 0.2 + 0.01 * number + 0.3 * (goal == "evade"),
        "score_after": 0.7 - 0.01 * number - 0.6 * (goal == "evade"),
        "metric": "cosine",
        "flags": "",
        **fields,
    }
    return ManifestRow(
        name=name,
        id=face_id(name),
        goal=goal,
        target=second,
        attack="m-fim",
        eps=8 / 255,
        steps=10,
        seed=5,
        source_hash=source_hash,
        **values,
    )


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> IdentityFolder:
    root = tmp_path_factory.mktemp("faces")
    for who in ("Ann", "Bob", EVIL.replace("/", "")):
        (root / who).mkdir()
        for i in range(4):
            write_png(root / who / f"{who}_{i}.png", RNG.integers(10, 240, (SIZE, SIZE, 3), dtype=np.uint8))
    return IdentityFolder(root, size=SIZE)


def make(path: Path, faces: IdentityFolder, *, finish: bool = True, **fields: object) -> list[ManifestRow]:
    names, rows = faces.names, []
    with RunFolder.open(path, CONFIG) as folder:
        for i in range(8):
            first, second = names[i], names[(i + (1 if i % 2 else 5)) % len(names)]
            face = faces.load(first)
            made = row(first, second, "evade" if i % 2 else "impersonate", face.source_hash, i, **fields)
            image = (face.image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            folder.write(made, image + np.uint8(8))
            rows.append(made)
        if finish:
            folder.finish([r.name for r in rows])
    return rows


@pytest.fixture
def run(tmp_path: Path, faces: IdentityFolder) -> Path:
    make(tmp_path / "run", faces)
    return tmp_path / "run"


def read(path: Path) -> str:
    return unescape(path.read_text(encoding="utf-8"))


def test_a_run_with_its_data(run: Path, faces: IdentityFolder) -> None:
    verification = {
        "threshold": 0.4321,
        "clean": {"accuracy": 0.9125, "auc": 0.98765, "eer": 0.0678, "tar_at_far_1e3": 0.5432},
        "attacked": {"accuracy": 0.1357, "auc": None, "eer": 0.876, "impersonation_at_eer": 0.8642},
    }
    (run / "verification.json").write_text(json.dumps(verification))
    path = render(run, data=faces)
    assert path == run / "report.html"
    html = read(path)
    for share in (0.9125, 0.98765, 0.0678, 0.5432, 0.1357, 0.876, 0.8642):
        assert text.percent(share) in html
    assert "m-fim against mobilefacenet" in html
    assert html.count("image/webp") == 3 * 8
    assert html.count("difference ×15") == 8
    assert html.count(">original<") == 8
    for number in range(8):
        goal = "evade" if number % 2 else "impersonate"
        one = row("a", "b", goal, "", number)
        assert f"{text.score(one.score_before)} → {text.score(one.score_after)}" in html
    assert "ROC before and after" in html
    assert "Take note" not in html
    assert "<script" not in path.read_text(encoding="utf-8")
    assert EVIL in html


def test_the_same_folder_gives_the_same_bytes(run: Path, faces: IdentityFolder, tmp_path: Path) -> None:
    first = render(run, data=faces).read_bytes()
    shutil.move(run, tmp_path / "elsewhere")
    assert render(tmp_path / "elsewhere", data=faces.root, out=tmp_path / "x.html").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_without_data_the_adversarial_images_stand_alone(run: Path) -> None:
    html = read(render(run))
    assert html.count("image/webp") == 8
    assert "Originals and differences need the data that the run was made from (--data)." in html


def test_examples_are_spread_and_counted(run: Path, faces: IdentityFolder) -> None:
    assert read(render(run, examples=3)).count("image/webp") == 3
    assert "image/webp" not in read(render(run, examples=0))
    rows = [row(f"a/{i}", f"b/{i}", "evade" if i < 90 else "impersonate", "", i) for i in range(100)]
    chosen = parts.spread(rows, 6)
    assert [source_name(r) for r in chosen] == ["a/0", "a/30", "a/60", "a/90", "a/93", "a/96"]
    assert len(parts.spread(rows, 1000)) == 100


def test_data_that_is_not_the_runs(run: Path, faces: IdentityFolder, tmp_path: Path) -> None:
    shutil.copytree(faces.root, tmp_path / "other")
    name = faces.names[0]
    write_png(tmp_path / "other" / f"{name}.png", RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    with pytest.warns(Notice, match=f"1 original not in the data as the run had them: {re.escape(name)}"):
        html = read(render(run, data=tmp_path / "other"))
    assert f"1 original not in the data as the run had them: {name}" in html
    assert html.count(">original<") == 7
    missing = next((run / "images").rglob("*.png"))
    missing.unlink()
    with pytest.warns(Notice, match="1 image missing in the folder"):
        html = read(render(run))
    assert "1 image missing in the folder as the run had them" in html


def test_an_unfinished_run_is_shown_as_it_is(tmp_path: Path, faces: IdentityFolder) -> None:
    make(tmp_path / "run", faces, finish=False, flags="zero_gradient")
    html = read(render(tmp_path / "run"))
    assert "The run is not finished: these are the 8 images made so far." in html
    assert "8 images had an all-zero gradient at every step" in html


def test_success_is_shown_apart_from_what_was_met_before(tmp_path: Path, faces: IdentityFolder) -> None:
    make(tmp_path / "run", faces, flags="met_at_start", success=True)
    notes = ["TAR at FAR 1e-3: not measurable from 4 negative pairs; needs at least 1,000"]
    figures = {"clean": {"auc": 0.9, "tar_at_far_1e3": None, "notes": notes}, "attacked": {"auc": 0.8}}
    (tmp_path / "run" / "verification.json").write_text(json.dumps(figures))
    html = read(render(tmp_path / "run"))
    for expected in ("met before", "100.0\u00a0% (4 of 4)", "success of the rest", notes[0]):
        assert expected in html
    assert "had met the goal before" in html
    assert "and before the attack too" in html


def drawn(html: str) -> str:
    """The figures of a page, as SVG."""
    return "".join(base64.b64decode(data).decode() for data in re.findall(r'svg\+xml;base64,([^"]+)"', html))


def test_other_metrics_and_goals(tmp_path: Path, faces: IdentityFolder) -> None:
    make(tmp_path / "far", faces, metric="euclidean")
    html = read(render(tmp_path / "far"))
    assert ">distance<" in drawn(html)
    assert "ROC before and after" in html
    label = replace(row("a/b", "c/d", "misclassify", "", 1), metric="logit_margin")
    with RunFolder.open(tmp_path / "label", {**CONFIG, "command": "attack", "threshold": 0.5}) as folder:
        folder.write(label, np.zeros((8, 8, 3), np.uint8))
        folder.finish([label.name])
    html = read(render(tmp_path / "label"))
    assert "a/b: misclassify c/d" in html
    assert "ROC" not in html


def test_the_command_makes_the_configuration_again() -> None:
    line = parts.command_line(CONFIG)
    assert line == (
        "fastadv verify --data DATA --model mobilefacenet --weights WEIGHTS --attack m-fim --metric cosine "
        "--eps 8/255 --steps 10 --seed 5 --batch 8 --precision fp32 --out OUT"
    )
    stopping = describe(by_name("fgsm", eps=0.03, stop_at_success=True, margin=0.02))
    config = {"command": "attack", "attack": stopping, "goal": "evade", "threshold": 0.31, "selection": {"limit": 5}}
    line = parts.command_line(config, data="my faces", weights="")
    assert line == (
        "fastadv attack fgsm --data 'my faces' --model MODEL --goal evade --threshold 0.31 --limit=5 --eps 0.03 "
        "--stop-at-success --margin 0.02 --out OUT"
    )
    for gamma, more in ((0.3, ""), (0.5, " --set gamma=0.5")):
        line = parts.command_line({"attack": describe(by_name("s-fim", steps=9, gamma=gamma))}, weights="")
        assert line.endswith(f" --eps 10/255 --steps 9{more} --out OUT")
    for eps in (8 / 255, 0.03, 10 / 255, 1e-3):
        words = parts.command_line({"attack": describe(by_name("fim", eps=eps))}).split()
        assert parse_eps(words[words.index("--eps") + 1]) == eps
    options = {"--" + n.replace("_", "-") for c in app.registered_commands for n in c.callback.__annotations__}
    assert {w for w in parts.command_line(CONFIG).split() if w.startswith("--")} <= options


def test_bad_folders_give_one_sentence(tmp_path: Path, run: Path) -> None:
    def message(kind: type[Exception] = ValueError) -> str:
        with pytest.raises(kind) as error:
            render(run)
        assert "\n" not in str(error.value)
        assert not (run / "report.html").exists()
        return str(error.value)

    with pytest.raises(ValueError, match="got no such folder"):
        render(tmp_path / "no")
    with pytest.raises(ValueError, match="expected a folder, got a file"):
        render(run / "run.json")
    with pytest.raises(ValueError, match=r"expected the folder of a run, got one without run\.json"):
        render(run / "images")
    with pytest.raises(ValueError, match="examples: expected 0 or more, got -1"):
        render(run, examples=-1)
    with pytest.raises(SourceError, match="got no such folder"):
        render(run, data=tmp_path / "no")
    (run / "verification.json").write_text("[" * 100_000)
    assert "verification.json: expected a JSON object, got a file that cannot be read" in message()
    (run / "verification.json").write_text("[]")
    assert "verification.json: expected a JSON object, got list" in message()
    (run / "verification.json").unlink()
    saved = (run / "run.json").read_text()
    (run / "run.json").write_text("{}")
    assert "expected the description of a run, got one without config or versions" in message()
    (run / "run.json").write_text(saved)
    (run / "manifest.parquet").write_bytes(b"PAR1")
    assert "expected a Parquet file, got one that cannot be read" in message(ManifestError)
    (run / "manifest.parquet").unlink()
    (run / "manifest.jsonl").write_text("")
    assert "expected a run with images, got one without" in message()
