"""One call attacks by name; every recipe takes its machine's options; results say what they are and save themselves."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from small import curved_model, grey_images, linear_model, predicted

import fastadv as fa
from fastadv.attacks import CATALOG, ClassifyAs, Misclassify

pytestmark = pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")
MODEL, X = curved_model(), grey_images(4)
LABELS = predicted(MODEL, X)


def test_it_is_run_with_the_goal_that_the_labels_stand_for():
    for targeted, kind, labels in ((False, Misclassify, LABELS), (True, ClassifyAs, (LABELS + 1) % 6)):
        goal = kind(labels)
        made = fa.attack("pgd", MODEL, X, labels, eps=4 / 255, steps=3, targeted=targeted, seed=5)
        same = fa.run(fa.attacks.pgd(eps=4 / 255, steps=3), goal, MODEL, X, seed=5)
        assert torch.equal(made.images, same.images)


def test_without_labels_the_models_own_are_left():
    made, same = fa.attack("bim", MODEL, X, steps=2), fa.attack("bim", MODEL, X, LABELS, steps=2)
    assert torch.equal(made.images, same.images)


def test_a_goal_and_an_attack_with_its_own_budget():
    goal = fa.Impersonate(X.flip(0), threshold=0.9)
    made = fa.attack(fa.attacks.fim(eps=2 / 255), MODEL, X, goal=goal, stop_at_success=True)
    assert torch.equal(made.images, fa.run(fa.attacks.fim(eps=2 / 255, stop_at_success=True), goal, MODEL, X).images)


def test_several_radii_give_a_result_each():
    made = fa.attack("fgsm", MODEL, X, LABELS, eps=[1 / 255, 8 / 255])
    assert [round(float(one.linf.max() * 255)) for one in made] == [1, 8]
    assert torch.equal(made[1].images, fa.attack("fgsm", MODEL, X, LABELS, eps=8 / 255).images)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fa.attack("pdg", MODEL, X), ValueError, "got 'pdg'; did you mean 'pgd'"),
        (lambda: fa.attack("PGD", MODEL, X), ValueError, "got 'PGD'; did you mean 'pgd'"),
        (lambda: fa.attack("pgd", MODEL, X, eps="8/255"), ValueError, "eps: expected a positive number, got '8/255'"),
        (lambda: fa.attack("pgd", MODEL, X, fa.Misclassify(LABELS)), TypeError, "labels: .* pass it as goal="),
        (lambda: fa.attack("pgd", MODEL, X, stop_at_sucess=True), TypeError, "did you mean 'stop_at_success'"),
        (lambda: fa.attack("pgd", MODEL.backbone, X), TypeError, "got Sequential; use fastadv.wrap"),
        (lambda: fa.attack("pgd", MODEL, X, targeted=True), ValueError, "labels: expected the classes to reach"),
        (lambda: fa.attack("pgd", MODEL, X, LABELS, goal=Misclassify(LABELS)), ValueError, "goal: expected none"),
        (lambda: fa.attack(fa.attacks.pgd(), MODEL, X, eps=0.1), ValueError, "eps: expected none beside an attack"),
        (lambda: fa.attacks.pgd(colour=3), TypeError, "colour: expected an option of pgd"),
        (lambda: fa.attacks.pgd(steps=0), ValueError, "steps"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_every_named_attack_is_a_function_that_takes_its_machines_options():
    listed = {entry.name: entry for entry in fa.attacks.list()}
    assert listed == dict(CATALOG)
    for name, entry in listed.items():
        assert getattr(fa.attacks, name.replace("-", "_")) is entry.make
        assert repr(entry).startswith(f"{name}: ")
        assert "\n" not in repr(entry)
    assert fa.attacks.pgd(stop_at_success=True, margin=0.5).attack.margin == 0.5
    assert fa.attacks.deepfool(overshoot=0.1).attack.overshoot == 0.1
    assert fa.attacks.di_fim(stop_at_success=True).attack.stop_at_success
    assert fa.attacks.minimal_pgd(bisections=3, momentum=0.5).attack.attack.momentum == 0.5


def test_a_result_in_a_line_a_table_and_a_folder(tmp_path):
    made = fa.attack("pgd", linear_model(), X, eps=8 / 255, steps=2)
    won = int(made.success.sum())
    assert repr(made) == f"Adversarials(4 images, {won} succeeded, median L∞ 8/255, 2.0 evaluations each)"
    assert len(made) == 4
    folder = made.save(tmp_path / "out")
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"00000{i}.png" for i in range(4)]
    assert [row["success"] == "True" for row in rows] == made.success.tolist()
    with Image.open(folder / "000002.png") as image:
        np.testing.assert_array_equal(np.asarray(image) / np.float32(255), made.images[2].permute(1, 2, 0).numpy())
    grid = made.show(count=3, columns=2)
    assert grid.size == (10, 12)
    assert np.array_equal(np.asarray(grid)[:6, 5:], np.asarray(Image.open(folder / "000001.png")))
    assert made._repr_html_().count("data:image/png;base64,") == 1
    with pytest.raises(ValueError, match="count, columns: expected 1 or more"):
        made.show(0)


def test_a_table_needs_pandas_and_says_so(monkeypatch):
    made = fa.attack("fgsm", MODEL, X, LABELS)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(
        ImportError,
        match=r"to_pandas: expected the package pandas, got no such package; pip install 'fastadv\[pandas\]'",
    ):
        made.to_pandas()


def test_the_table_has_a_row_an_image():
    pytest.importorskip("pandas")
    made = fa.attack("fgsm", MODEL, X, LABELS)
    table = made.to_pandas()
    assert list(table["success"]) == made.success.tolist()
    assert list(table["linf"]) == made.linf.tolist()


def test_a_warning_names_the_line_of_the_caller():
    goal = Misclassify((LABELS + 1) % 6)  # met before
    for call in (lambda: fa.attack("fgsm", MODEL, X, goal=goal), lambda: fa.run(fa.attacks.fgsm(), goal, MODEL, X)):
        with pytest.warns(fa.AttackWarning) as seen:
            call()
        assert {warning.filename for warning in seen} == {__file__}
