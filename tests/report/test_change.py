"""What attacks did to pixels and embeddings: noted when they are made, drawn in the report, absent from old runs."""

import json
from dataclasses import replace
from html import unescape

import numpy as np
import pyarrow.parquet
import pytest
import torch

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from rows import row
from typer.testing import CliRunner

from fastadv.attacks import Gallery, GalleryClass, Misclassify, by_name
from fastadv.cli import app
from fastadv.core import text
from fastadv.data import IdentityFolder, RunFolder, read_image, read_manifest, write_png
from fastadv.engine import Engine
from fastadv.models import load
from fastadv.report.pages.change import change_figures, series_of
from fastadv.report.pages.run import render
from fastadv.runs import Work
from fastadv.runs.production import Order, changed_levels, produce

SIZE = 112


def written(path):
    """The rows without the hashes of their images, which only a folder knows."""
    return [replace(each, image_hash="") for each in read_manifest(path)]


def test_the_levels_are_counted_by_pixel_in_the_channel_that_changes_most():
    before = torch.full((3, 2, 3), 100 / 255)
    after = before.clone()
    after[0, 0, 0] += 2 / 255
    after[2, 0, 0] -= 5 / 255
    after[1, 1, 2] += 1 / 255
    assert changed_levels(before, after) == (4, 1, 0, 0, 0, 1)
    assert changed_levels(before, before) == (6,)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for who in ("Ann", "Bob", "Cid"):
        (root / who).mkdir()
        coarse = rng.integers(20, 230, (7, 7, 3))
        for i in range(2):
            image = np.kron(coarse, np.ones((16, 16, 1))) + rng.integers(-20, 20, (SIZE, SIZE, 3))
            write_png(root / who / f"{who}_{i}.png", image.clip(0, 255).astype(np.uint8))
    return IdentityFolder(root, size=SIZE)


def attacked(faces, path, name, **options):
    """Three faces that are to be taken for the next identity's template."""
    model = load("synth-vgg").eval()
    with torch.no_grad():
        known = model(torch.stack([faces.load(n).image for n in faces.names[1::2]]))
    gallery = Gallery.from_embeddings(known, torch.arange(3))

    def goal_of(order, face):
        label = (faces.names.index(order.source) // 2 + 1) % 3
        return GalleryClass(gallery=gallery, labels=torch.tensor([label]))

    orders = [Order(name=n, source=n) for n in faces.names[::2]]
    config = {"command": "attack", "model": "synth-vgg", "attack": {"name": name}}
    with RunFolder.open(path, config) as folder:
        rows = produce(
            orders, goal_of, faces, by_name(name, **options), model,
            Work(engine=Engine(batch=3).resolve(model), folder=folder), goal_name="identify-as",
        )  # fmt: skip
        folder.finish([order.name for order in orders])
    return model, gallery, rows


def test_what_a_run_notes_can_be_measured_again_and_is_drawn(faces, tmp_path):
    model, gallery, rows = attacked(faces, tmp_path / "one", "fim", eps=8 / 255, steps=10)
    assert written(tmp_path / "one") == rows
    total = np.zeros(9)
    for each in rows:
        source = (faces.load(each.name).image.permute(1, 2, 0).numpy() * 255).round()
        made = np.asarray(read_image(tmp_path / "one" / "images" / f"{each.name}.png"), np.float64)
        change = np.abs(made - source).max(2)
        assert each.levels == tuple(np.bincount(change.astype(int).ravel()))
        assert sum(each.levels) == SIZE * SIZE
        total[: len(each.levels)] += each.levels
        with torch.no_grad():
            d = gallery.distances(model(torch.from_numpy(made / 255).float().permute(2, 0, 1)[None]))
        assert each.template_distance == pytest.approx(float(d.min()), abs=1e-5)
    attacked(faces, tmp_path / "two", "fim", eps=2 / 255, steps=2)
    page = unescape(render(tmp_path / "one", beside=[tmp_path / "two"]).read_text())
    assert "How much the pixels change" in page
    assert "How near the embeddings come" in page
    within = f"{text.percent(total[:6].sum() / total.sum())} (fim 8/255, identify-as)"
    assert f"At most 5/255: {within}, {text.percent(1.0)} (fim 2/255, identify-as)." in page
    alone = unescape(render(tmp_path / "one").read_text())
    assert f"At most 5/255: {within}." in alone
    again = CliRunner().invoke(app, ["report", str(tmp_path / "one"), "--beside", str(tmp_path / "two")])
    assert again.exit_code == 0, again.output
    assert unescape((tmp_path / "one" / "report.html").read_text()) == page


def test_a_run_beside_that_is_none_is_named(faces, tmp_path):
    attacked(faces, tmp_path / "one", "fgsm")
    with pytest.raises(ValueError, match="two: expected a folder, got no such folder"):
        render(tmp_path / "one", beside=[tmp_path / "two"])


def test_goals_without_a_gallery_note_no_distance(faces):
    model = load("synth-vgg").eval()
    model.head = torch.nn.Linear(model.embedding_size, 4).eval()
    orders = [Order(name=n, source=n) for n in faces.names[:2]]
    rows = produce(
        orders, lambda order, face: Misclassify(torch.tensor([0])), faces, by_name("fgsm"), model,
        Work(engine=Engine(batch=2).resolve(model)), goal_name="misclassify",
    )  # fmt: skip
    assert [r.template_distance for r in rows] == [None, None]
    (only,) = change_figures(series_of([("run", rows)]))
    assert only.title == "How much the pixels change"


def test_runs_of_older_versions_are_read_and_drawn_without_figures(tmp_path):
    image = np.zeros((2, 2, 3), np.uint8)
    rows = [row(f"P/{i}", score_after=0.1 * i) for i in range(3)]
    with RunFolder.open(tmp_path / "run", {"command": "attack"}) as folder:
        for each in rows:
            folder.write(each, image)
        journal = tmp_path / "run" / "manifest.jsonl"
        old = [json.loads(line) for line in journal.read_text().splitlines()]
        folder.finish([each.name for each in rows])
    for each in old:
        del each["levels"], each["template_distance"]
    parquet = tmp_path / "run" / "manifest.parquet"
    table = pyarrow.parquet.read_table(parquet)
    pyarrow.parquet.write_table(table.drop_columns(["levels", "template_distance"]), parquet)
    assert written(tmp_path / "run") == rows
    journal.write_text("".join(json.dumps(each) + "\n" for each in old))
    assert written(journal) == rows
    journal.unlink()
    assert change_figures(series_of([("run", rows)])) == ()
    assert "How much the pixels change" not in render(tmp_path / "run").read_text()


def test_series_are_named_by_attack_radius_and_goal():
    own = [row("a", attack="knn-df", eps=5 / 255, goal="identify-as"), row("b", attack="cw-l2", eps=1.0)]
    found = series_of([("one", own), ("two", own[:1]), ("two", own[:1])])
    assert list(found) == [
        "knn-df 5/255, identify-as",
        "cw-l2, impersonate",
        "knn-df 5/255, identify-as (two)",
        "knn-df 5/255, identify-as (two) (two)",
    ]
