"""The transfer study: its pairs, its numbers, its verdicts, and that it goes on where it was stopped."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastadv import load
from fastadv.cli import app
from fastadv.data import (
    RunFolder,
    SyntheticFaces,
    read_image,
    read_manifest,
    to_tensor,
    to_uint8,
    write_pairs_csv,
    write_png,
)
from fastadv.data.synthetic import write_faces
from fastadv.engine import Engine
from fastadv.report.pages import transfer as transfer_page
from fastadv.runs import Work
from fastadv.studies.transfer import measure as transferring
from fastadv.studies.transfer import plan as transfer_plan
from fastadv.studies.transfer import results
from fastadv.studies.transfer import untargeted as comparing
from fastadv.studies.transfer.plan import (
    UNIVERSAL,
    TransferSettings,
    Universal,
    Verifier,
    parse_method,
)

PEOPLE = SyntheticFaces(identities=24, per_identity=2, seed=5)
NAMES = ("synth-vgg", "synth-mobile")
METHODS = tuple(map(parse_method, ("fim", "dfanet-fim,rate=0.02", "m-fim:5")))


@pytest.fixture(scope="module")
def verifiers() -> dict[str, Verifier]:
    return {
        name: Verifier(model=load(name), threshold=t, accuracy=1.0) for name, t in zip(NAMES, (0.5, 0.4), strict=True)
    }


def study(path, verifiers, **more) -> results.Transfer:
    settings = {
        "surrogates": ["synth-vgg", "synth-vgg+synth-mobile"],
        "methods": METHODS,
        "eps": 10 / 255,
        "steps": 6,
        "at": (2, 5),
        "pairs": 6,
        "images": 6,
        "seed": 3,
        "engine": Engine(batch=8),
        **more,
    }
    with RunFolder.open(path, {"pairs": 6, "eps": 10 / 255, "far": 1e-3}) as folder:
        parts = ("seed", "engine", "progress")
        work = Work(folder=folder, **{name: settings.pop(name) for name in parts if name in settings})
        found = transferring.transfer(PEOPLE, verifiers, TransferSettings(**settings), work)
        results.save(found, folder)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, verifiers):
    path = tmp_path_factory.mktemp("study") / "run"
    return path, study(path, verifiers)


def test_pairs_are_negative_for_every_network_and_share_no_image(made, verifiers):
    _, found = made
    assert len({s for s, _ in found.pairs} | {t for _, t in found.pairs}) == 12
    people = {n.split("/")[0] for pair in found.pairs for n in pair}
    assert len(people) == 12
    for k, name in enumerate(NAMES):
        assert (found.clean[k] < verifiers[name].threshold).all()
        model = verifiers[name].model
        for (source, target), value in zip(found.pairs, found.clean[k], strict=True):
            with torch.no_grad():
                one, other = (model(PEOPLE.load(n).image[None]) for n in (source, target))
            assert value == pytest.approx(float((one * other).sum()), abs=1e-4)


def test_similarities_are_those_of_the_written_images(made, verifiers):
    path, found = made
    rows = {row.name: row for row in read_manifest(path)}
    assert len(rows) == len(found.cells) * len(found.pairs)
    assert all(row.linf <= 10 / 255 + 1e-6 for row in rows.values())
    cell = found.cells[1]
    assert (cell.method, cell.steps) == ("dfanet-fim,rate=0.02", (2, 5, 6))
    own = [row for name, row in rows.items() if name.startswith("synth-vgg/dfanet-fim,rate=0.02/")]
    assert [row.score_after for row in own] == pytest.approx(cell.similarity[-1, 0].tolist(), abs=1e-6)
    assert [row.success for row in own] == found.hits(cell, "synth-vgg").tolist()
    assert np.allclose(cell.distance, np.sqrt(2 - 2 * cell.similarity), atol=1e-6)


def test_iterates_come_nearer_to_the_target_in_the_white_box(made):
    _, found = made
    for cell in found.cells:
        distance = cell.distance[:, 0].mean(1)
        assert distance[-1] < np.sqrt(2 - 2 * found.clean[0].astype(float)).mean() - 0.05
        assert distance[-1] < distance[0]


def test_an_ensemble_is_nearer_on_its_second_network_than_a_single_surrogate(made):
    _, found = made
    by_surrogate = {c.surrogate: c for c in found.cells if c.name == "fim"}
    single, both = by_surrogate["synth-vgg"], by_surrogate["synth-vgg+synth-mobile"]
    assert both.distance[-1, 1].mean() < single.distance[-1, 1].mean()


def test_verdicts_compare_a_method_with_what_it_adds_to(made):
    _, found = made
    rows = list(results.verdicts(found))
    assert {(s, t, m, b) for s, t, m, b, _ in rows} == {
        ("synth-vgg", "synth-mobile", "dfanet-fim,rate=0.02", "fim"),
        ("synth-vgg", "synth-mobile", "m-fim:5", "fim at 5 of 6 steps"),
    }
    plain = results.describe(found)
    for row in plain["cells"]:
        assert row["low"] <= row["hit_rate"] <= row["high"]
        assert row["white_box"] == (row["target"] in row["surrogate"].split("+"))


def invented(verifiers, *cells: tuple[str, tuple[int, ...], str]) -> results.Transfer:
    """A study of four pairs: the hits of each cell's measurements as text, ``"..xx"`` by steps, ``/`` between them."""
    made = []
    for label, steps, hits in cells:
        method = parse_method(label)
        rows = [[[1.0 if mark == "x" else -1.0 for mark in row]] * 2 for row in hits.split("/")]
        made.append(
            results.TransferCell(
                surrogate="synth-vgg",
                method=label,
                name=method.name,
                rate=method.rate,
                steps=steps,
                similarity=np.array(rows, np.float32),
            )
        )
    pairs = tuple((f"a/{k}", f"b/{k}") for k in range(4))
    return results.Transfer(verifiers=verifiers, pairs=pairs, clean=np.zeros((2, 4)), cells=tuple(made))


def test_hits_are_asked_for_at_rates_of_the_study_only():
    rates = tuple(transfer_plan.Threshold(far=far, cosine=c, accuracy=1.0) for far, c in ((0.1, 0.4), (0.01, 1.5)))
    verifier = Verifier(model=load("synth-vgg"), threshold=0.4, accuracy=1.0, thresholds=rates)
    found = invented(dict.fromkeys(NAMES, verifier), ("fim", (3,), "xx.."))
    (cell,) = found.cells
    assert found.fars == (0.1, 0.01)
    assert [int(found.hits(cell, "synth-mobile", far=far).sum()) for far in (None, 0.1, 0.01)] == [2, 2, 0]
    assert found.hit_rate(cell, "synth-mobile", far=0.1) == 0.5
    assert found.over(cell, ["synth-vgg"]) is None
    with pytest.raises(ValueError, match="far: expected one of 0.1, 0.01, got 0.2"):
        found.hits(cell, "synth-mobile", far=0.2)


def test_a_method_is_compared_with_its_base_after_as_many_steps(verifiers):
    """The base that comes first has fewer steps and fewer hits: 100 steps against 13 would be a gain of the steps."""
    found = invented(
        verifiers, ("fim:13", (13,), "...."), ("fim", (100,), "xxx."), ("dfanet-fim,rate=0.02", (100,), "xxxx")
    )
    base = found.base(found.cells[2])
    assert (base.label, base.steps) == ("fim", 100)
    assert found.against_base(found.cells[2], "synth-mobile").difference == pytest.approx(0.25)
    plain = [row for row in results.describe(found)["cells"] if row["method"] == "dfanet-fim,rate=0.02"]
    assert [(row["base"], row["base_steps"]) for row in plain] == [("fim", 100)] * 2
    assert found.notices() == ()


def test_a_measurement_on_the_way_is_such_a_base(verifiers):
    found = invented(verifiers, ("fim", (13, 100), "x.../xxxx"), ("m-fim:13", (13,), "xx.."))
    base = found.base(found.cells[1])
    assert (base.label, base.steps) == ("fim at 13 of 100 steps", 13)
    assert found.against_base(found.cells[1], "synth-mobile").difference == pytest.approx(0.25)


def test_a_base_of_other_steps_only_is_none_and_the_study_says_so(verifiers):
    found = invented(verifiers, ("fim:13", (13,), "...."), ("dfanet-fim,rate=0.02", (100,), "xxxx"))
    assert found.base(found.cells[1]) is None
    assert list(results.verdicts(found)) == []
    plain = results.describe(found)
    assert {(row["base"], row["base_steps"]) for row in plain["cells"]} == {(None, None)}
    assert plain["notices"] == [
        "dfanet-fim,rate=0.02 (100 steps) is not compared with fim, which was measured after 13 steps; "
        "add --method fim:100"
    ]


def test_a_study_that_was_stopped_ends_the_same(made, verifiers, tmp_path):
    _, whole = made
    calls = itertools.count()

    def stop(stage, done, total):
        if "dfanet" in stage and next(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "run", verifiers, progress=stop)
    again = study(tmp_path / "run", verifiers)
    for one, other in zip(whole.cells, again.cells, strict=True):
        assert np.array_equal(one.similarity, other.similarity)
    third = study(tmp_path / "run", verifiers)
    assert all(np.array_equal(a.similarity, b.similarity) for a, b in zip(whole.cells, third.cells, strict=True))


def test_a_truncated_measurement_is_made_again(made, verifiers, tmp_path):
    _, whole = made
    study(tmp_path / "run", verifiers)
    file = tmp_path / "run" / "cells" / "synth-vgg" / "fim-000000.npy"
    file.write_bytes(file.read_bytes()[:50])
    again = study(tmp_path / "run", verifiers)
    assert np.array_equal(again.cells[0].similarity, whole.cells[0].similarity)


def test_the_page_is_drawn_from_the_folder_alone(made):
    path, _ = made
    page = transfer_page.render(path, source=PEOPLE)
    first = page.read_text()
    assert "dfanet-fim,rate=0.02" in first
    assert first.count("image/svg+xml") >= 3
    assert "http://" not in first.replace("http://www.w3.org", "")
    assert transfer_page.render(path, source=PEOPLE).read_text() == first
    with pytest.raises(ValueError, match="expected a finished study"):
        transfer_page.render(path.parent, source=None)


def test_label_level_methods_aim_at_the_class_of_the_target(verifiers, tmp_path):
    found = study(tmp_path / "run", verifiers, surrogates=["synth-vgg"], methods=(parse_method("itgsm"),), at=())
    assert found.cells[0].steps == (6,)
    with pytest.raises(ValueError, match="head"):
        study(tmp_path / "other", verifiers, surrogates=["synth-mobile"], methods=(parse_method("itgsm"),), at=())


def test_half_of_the_images_are_attacked_and_no_pair_twice():
    pairs = PEOPLE.pairs(40, seed=2)
    names = {n for p in pairs for n in (p.first, p.second)}
    chosen, remaining = comparing.halve(pairs, seed=1)
    assert len(chosen) <= len(names) // 2
    assert all(name in ("", p.first, p.second) for p, name in remaining)
    attacked = {name for _, name in remaining if name}
    assert attacked == set(chosen)
    left = [p for p, _ in remaining]
    assert all(not (p.first in attacked and p.second in attacked) for p in left)
    assert comparing.halve(pairs, seed=1) == (chosen, remaining)


def test_untargeted_attacks_lower_the_white_boxs_curve(tmp_path):
    models = {name: load(name) for name in NAMES}
    pairs = PEOPLE.pairs(40, seed=2)
    with RunFolder.open(tmp_path / "run", {"test": "untargeted"}) as folder:
        found = comparing.untargeted(
            PEOPLE,
            pairs,
            models,
            surrogate="synth-vgg",
            methods=[parse_method("fim"), Universal(steps=8)],
            eps=10 / 255,
            steps=8,
            work=Work(folder=folder, engine=Engine(batch=8)),
        )
        comparing.save(found, folder)
    assert found.scores.shape == (3, 2, len(found.same))
    rows = {(r["method"], r["network"]): r for r in comparing.describe(found)["rows"]}
    assert rows["fim", "synth-vgg"]["auc"] < rows["clean", "synth-vgg"]["auc"]
    unchanged = [k for k in range(len(found.same)) if np.array_equal(found.scores[0, :, k], found.scores[1, :, k])]
    _, remaining = comparing.halve(pairs, seed=0)
    assert unchanged == [k for k, (_, name) in enumerate(remaining) if not name]
    text = transfer_page.render(tmp_path / "run", source=None).read_text()
    assert "gd-uap" in text
    assert "TAR at FAR 1e-2: not measurable from" in text
    assert {r["tar_at_far_1e2"] for r in rows.values()} == {None}
    _universal_rows_are_measured(tmp_path / "run", models["synth-vgg"])
    for name, words in (("itgsm", "'itgsm', which works on logits"), ("df", "random start for --untargeted, got 'df'")):
        with pytest.raises(ValueError, match=words), RunFolder.open(tmp_path / name, {}) as folder:
            comparing.untargeted(
                PEOPLE,
                pairs,
                models,
                surrogate="synth-vgg",
                methods=[parse_method(name)],
                eps=0.03,
                steps=2,
                work=Work(folder=folder, engine=Engine()),
            )


def _universal_rows_are_measured(folder, model):
    rows = [row for row in read_manifest(folder) if row.attack == UNIVERSAL]
    assert rows
    for row in rows:
        clean = PEOPLE.load(row.name.removeprefix("gd-uap:8/")).image
        made = to_tensor(read_image(folder / "images" / f"{row.name}.png"))
        with torch.no_grad():
            one, other = model(torch.stack([clean, made]))
        assert row.score_before == pytest.approx(1.0, abs=1e-5)
        assert row.score_after == pytest.approx(float(one @ other), abs=1e-5)
        assert row.success == (row.score_after < 0)
        assert row.success_float is None
        assert row.linf <= 10 / 255


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--network", "synth-vgg"], "network: expected two or more, got synth-vgg"),
        (
            ["--network", "synth-vgg", "--network", "synth-vgg"],
            "network: expected each one once, got 'synth-vgg' twice",
        ),
        (
            ["--network", "synth-vgg", "--network", "synth-mobile", "--at", "3,x"],
            "at: expected positive whole num",
        ),
        (
            ["--network", "synth-vgg", "--network", "synth-mobile", "--untargeted"],
            "untargeted: expected one --surr",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, arguments, text):
    faces = tmp_path / "faces"
    for person in ("a", "b"):
        (faces / person).mkdir(parents=True)
        for k in range(2):
            write_png(faces / person / f"{k}.png", to_uint8(PEOPLE.load(PEOPLE.names[k]).image))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("first,second,same\na/0,a/1,1\na/0,b/0,0\n")
    command = [
        "transfer",
        "--data",
        str(faces),
        "--method",
        "fim",
        "--verification",
        str(pairs),
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, [*command, *arguments])
    assert result.exit_code != 0
    assert text in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_matrix(tmp_path):
    faces = tmp_path / "faces"
    write_faces(PEOPLE, PEOPLE.names, faces)
    write_pairs_csv(tmp_path / "pairs.csv", (replace(p, fold=None) for p in PEOPLE.pairs(40, seed=1)))
    command = ["transfer", "--data", str(faces), "--method", "fim:3", "--surrogate", "synth-vgg", "--json"]
    command += ["--verification", str(tmp_path / "pairs.csv"), "--far", "0.1", "--pairs", "4", "--images", "4"]
    command += ["--network", "synth-vgg", "--network", "synth-mobile", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert len(printed["cells"]) == 2
    assert (tmp_path / "out" / "report.html").is_file()
