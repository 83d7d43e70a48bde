"""The demo: what it shows is what it found, twice the same, and every folder of it is an ordinary one."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fastadv.attacks import by_name
from fastadv.core import text
from fastadv.data import IdentityFolder, RunFolderError, read_image, read_manifest, read_pairs_csv
from fastadv.models import FaceModel
from fastadv.report.pages.demo import write_demo
from fastadv.report.pages.run import render
from fastadv.studies.demo import DemoResult, demo
from fastadv.studies.verify import verify

SIZE = 32


def network(name: str = "tiny") -> FaceModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.Tanh(), nn.Conv2d(8, 8, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(392, 16)
        )
    return FaceModel(backbone, input_size=(SIZE, SIZE), mean=(0.5,) * 3, std=(0.5,) * 3, name=name).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    found = demo(tmp_path_factory.mktemp("demo") / "out", pairs=20, model=network())
    assert write_demo(found) == found.out / "report.html"
    return found


def test_what_is_there(made: DemoResult) -> None:
    assert [run.label for run in made.runs] == ["FGSM", "PGD", "FIM", "M-FIM"]
    assert [run.attack for run in made.runs] == [by_name(n) for n in ("fgsm", "pgd", "fim", "m-fim")]
    assert made.stopped.attack == by_name("fim", stop_at_success=True, margin=0.02)
    assert read_pairs_csv(made.out / "pairs.csv") == made.pairs
    assert sum(p.same for p in made.pairs) == 10
    # as earlier versions wrote it: their folders go on
    assert json.loads((made.out / "demo.json").read_bytes()) == {"seed": 0, "pairs": 20, "size": SIZE}
    for run in (*made.runs, made.stopped):
        assert tuple(read_manifest(run.path)) == run.rows
        assert len(run.rows) == 20
        assert {p.name for p in run.path.iterdir()} >= {"run.json", "verification.json", "roc.svg", "images"}
        assert run.seconds is not None
        assert run.seconds > 0
        for row in run.rows:
            assert row.linf <= 8 / 255 + 1e-6
            assert read_image(run.path / "images" / f"{row.name}.png").shape == (SIZE, SIZE, 3)
    assert max(r.ticks for r in made.stopped.rows) <= 10


def test_the_page_shows_what_was_found(made: DemoResult) -> None:
    html = unescape((made.out / "report.html").read_text(encoding="utf-8"))
    cells = re.findall(r"<td>([^<]*)</td>", html)
    clean = made.runs[0].verification.clean
    found = [run.verification.attacked for run in made.runs]
    accuracies = [text.percent(clean.accuracy), *(text.percent(a.accuracy) for a in found)]
    assert cells[:5] == accuracies
    assert cells[5:10] == [text.percent(clean.auc), *(text.percent(a.auc) for a in found)]
    assert cells[10:15] == [text.percent(clean.eer), *(text.percent(a.impersonation_at_eer) for a in found)]
    assert cells[15:20] == [text.percent(clean.eer), *(text.percent(a.evasion_at_eer) for a in found)]
    assert cells[20:25] == ["–", "1", "40", "10", "10"]
    met = [{r.name for r in run.rows if "met_at_start" in r.flags} for run in made.runs]
    hits = [[r for r in run.rows if r.success] for run in made.runs]
    gained = [[r for r in rows if r.name not in before] for rows, before in zip(hits, met, strict=True)]
    assert cells[25:30] == ["–", *(text.percent(len(rows) / 20) for rows in hits)]
    assert cells[30:35] == ["–", *(text.percent(len(before) / 20) for before in met)]
    shares = [len(rows) / (20 - len(before)) for rows, before in zip(gained, met, strict=True)]
    assert cells[35:40] == ["–", *(text.percent(share) for share in shares)]
    assert cells[45:50] == ["–", *(f"{sum(r.l2 for r in rows) / len(rows):.2f}" if rows else "–" for rows in gained)]
    worst = min(a.accuracy for a in found)
    assert f'<div class="value">{text.percent(worst)}</div>' in html
    assert html.count("image/webp") == 6 * (2 + 2 * 4)
    for run in made.runs:
        for row in run.rows[:1]:
            assert f"{text.score(row.score_before)} → {text.score(row.score_after)}" in html
    for label in ("FGSM", "PGD", "FIM", "M-FIM", "FIM, stopping"):
        assert f"<h3>{label}</h3>" in html
    assert "fastadv demo --seed 0" in html
    assert "fastadv verify --data faces --model tiny --attack" in html
    assert "://" not in html
    assert str(made.out) not in html


def test_the_same_seed_gives_the_same_demo(made: DemoResult, tmp_path: Path) -> None:
    stages = []
    again = demo(tmp_path / "x", pairs=20, model=network(), progress=lambda stage, done, total: stages.append(stage))
    write_demo(again)
    assert {"drawing faces", "embedding", "fgsm: impersonate", "m-fim: evade"} <= set(stages)
    for one, two in zip((*made.runs, made.stopped), (*again.runs, again.stopped), strict=True):
        assert one.rows == two.rows
        for file in ("verification.json", "roc.svg", "manifest.parquet"):
            assert (one.path / file).read_bytes() == (two.path / file).read_bytes()


def test_a_second_demo_takes_up_the_first(made: DemoResult, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made.out, out)
    images = sorted(p for run in made.runs for p in (out / run.path.name / "images").rglob("*.png"))
    times = [p.stat().st_mtime_ns for p in images]
    again = demo(out, pairs=20, model=network())
    assert [p.stat().st_mtime_ns for p in images] == times
    assert [run.rows for run in again.runs] == [run.rows for run in made.runs]
    assert all(run.seconds is None for run in again.runs)
    assert "an earlier demo had made these images" in write_demo(again).read_text(encoding="utf-8")


def test_a_demo_with_other_arguments_keeps_its_hands_off(made: DemoResult) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.out.rglob("*")}
    with pytest.raises(ValueError, match=r"holds another demo; seed: expected 0 .as in demo\.json., got 4"):
        demo(made.out, pairs=20, model=network(), seed=4)
    assert {p: p.stat().st_mtime_ns for p in made.out.rglob("*")} == before
    with pytest.raises(RunFolderError, match="holds another run; model: expected"):
        demo(made.out, pairs=20, model=network("another"))


def test_its_runs_are_ordinary(made: DemoResult) -> None:
    """The faces and pairs on the disk give the same figures to `verify`, and `report` shows each run."""
    source = IdentityFolder(made.out / "faces", size=SIZE)
    found = verify(source, read_pairs_csv(made.out / "pairs.csv"), network(), attack=by_name("fgsm"))
    assert found.clean == made.runs[0].verification.clean
    assert found.attacked == made.runs[0].verification.attacked
    page = render(made.runs[0].path, data=source, out=made.out / "fgsm.html").read_text(encoding="utf-8")
    assert page.count(">original<") == 12


def test_errors_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="out: expected a new or empty folder, or that of a demo, got .*mine"):
        demo(tmp_path / "mine", pairs=20, model=network())
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="out: expected a folder, got the file"):
        demo(tmp_path / "mine" / "thesis.tex", pairs=20, model=network())
    for count in (0, -20, 7):
        with pytest.raises(ValueError):
            demo(tmp_path / "new", pairs=count, model=network())
    with pytest.raises(ValueError, match="seed"):
        demo(tmp_path / "new", pairs=20, model=network(), seed=-1)
    assert not (tmp_path / "new").exists()


def test_a_demo_that_was_killed_before_its_first_file_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".0123456789abcdef.fastadv-tmp").write_text('{"seed"')

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, pairs=20, model=network(), progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "faces"]
