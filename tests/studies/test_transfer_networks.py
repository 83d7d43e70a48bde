"""A study of transfer whose networks have names of the user's own, other sizes, and thresholds at several rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastadv.cli import app
from fastadv.data import SyntheticFaces, read_image, read_manifest, to_tensor, write_pairs_csv
from fastadv.data.synthetic import write_faces
from fastadv.models import load
from fastadv.models.resized import Resize
from fastadv.studies.transfer.networks import NamedNetwork, on_one_crop, open_networks, parse_network
from fastadv.training import save_weights

pytestmark = pytest.mark.filterwarnings("ignore::fastadv.core.notices.Notice")  # of crops of another size

PEOPLE = SyntheticFaces(identities=24, per_identity=2, seed=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Faces, verification pairs, other weights of a shipped architecture, and a network of 128×128."""
    root = tmp_path_factory.mktemp("inputs")
    write_faces(PEOPLE, PEOPLE.names, root / "faces")
    write_pairs_csv(root / "pairs.csv", (replace(p, fold=None) for p in PEOPLE.pairs(40, seed=1)))
    save_weights(load("synth-shuffle", random_weights_seed=1), root / "w.safetensors")
    (root / "wide.toml").write_text('architecture = "synth-shuffle"\ninput_size = 128\n')
    return root


def call(place: Path, out: Path, *more: str, networks: tuple[str, ...]) -> list[str]:
    words = ["transfer", "--data", f"{place}/faces", "--verification", f"{place}/pairs.csv", "--out", str(out)]
    words += ["--pairs", "4", "--images", "4", "--batch", "4", "--precision", "fp32", "--json", *more]
    return words + [word for network in networks for word in ("--network", network)]


def printed(words: list[str]) -> dict:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(words: list[str]) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    return str(result.exception)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("synth-vgg", ("synth-vgg", "synth-vgg", None)),
        ("synth-vgg=w.pth", ("synth-vgg", "synth-vgg", "w.pth")),
        ("synth-vgg=a:b.pth", ("synth-vgg", "synth-vgg", "a:b.pth")),
        ("web=iresnet50:w.pth", ("web", "iresnet50", "w.pth")),
        ("web=iresnet50:a:b.pth", ("web", "iresnet50", "a:b.pth")),
        ("mine=synth-vgg", ("mine", "synth-vgg", None)),
        ("d/mine.toml=w.pth", ("mine", "d/mine.toml", "w.pth")),
        ("own=d/mine.toml", ("own", "d/mine.toml", None)),
        ("own=d/mine.toml:w.pth", ("own", "d/mine.toml", "w.pth")),
        ("own=d:e/mine.onnx", ("own", "d:e/mine.onnx", None)),
    ],
)
def test_networks_are_read_from_text(text, expected):
    name, model, weights = expected
    found = parse_network(text)
    assert found == NamedNetwork(name=name, model=model, weights=weights)
    assert found.text == (model if weights is None else f"{model}={weights}")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("synth-vgg=", "network: expected NAME=WEIGHTS or ALIAS=NAME:WEIGHTS, got 'synth-vgg=' without a file"),
        ("web=resnet:w.pth", r"with a NAME of 'fastadv models', .*, got 'web=resnet:w.pth'; did you mean"),
        ("sinth-vgg=w.pth", "got 'sinth-vgg=w.pth'; did you mean 'synth-vgg'"),
        ("web=synth-vgg:", "expected NAME, NAME=WEIGHTS or ALIAS=NAME:WEIGHTS .*, got 'web=synth-vgg:'"),
        ("a+b=synth-vgg", r"network: expected an alias of letters, digits, '.', '_' and '-', got 'a\+b'"),
        ("a/b=synth-vgg:w", "expected an alias of letters, .* got 'a/b'"),
        ("=synth-vgg", "expected an alias of letters, .* got ''"),
    ],
)
def test_texts_that_name_no_network_are_refused(text, error):
    with pytest.raises(ValueError, match=error):
        parse_network(text)


def test_names_come_once_and_networks_are_several():
    with pytest.raises(ValueError, match="expected each one once, got 'a' twice; give one of them a name, ALIAS=NAME:"):
        open_networks(["a=synth-vgg", "a=synth-mobile"])
    with pytest.raises(ValueError, match="network: expected two or more, got a"):
        open_networks(["a=synth-vgg"])


def test_one_architecture_comes_twice(place):
    found = open_networks(["synth-shuffle", f"other=synth-shuffle:{place}/w.safetensors"])
    assert list(found) == ["synth-shuffle", "other"]
    assert [model.name for model in found.values()] == ["synth-shuffle"] * 2
    x = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(*(model(x) for model in found.values()))


def test_crops_are_the_first_networks_and_square():
    first, wide = load("synth-vgg"), load("synth-shuffle").replace(input_size=(144, 144))
    narrow = load("synth-shuffle").replace(input_size=(112, 96))
    assert on_one_crop({"a": first, "b": load("synth-mobile")})["a"] is first
    for given, side in (((first, wide), 112), ((wide, first), 144), ((narrow, wide), 112), ((narrow, first), 112)):
        found = on_one_crop(dict(zip("ab", given, strict=True)))
        assert {model.input_size for model in found.values()} == {(side, side)}
    alike = on_one_crop({"a": narrow, "b": narrow.replace()})
    assert {model.input_size for model in alike.values()} == {(112, 96)}
    assert {model.input_size for model in on_one_crop({"a": first, "b": wide}, 160).values()} == {(160, 160)}
    assert on_one_crop({"a": first, "b": wide}, 112)["a"] is first


def test_networks_of_other_templates_are_refused():
    first, other = load("synth-vgg"), load("synth-mobile")
    moved = other.replace(template=[(x + 1.0, y) for x, y in np.full((5, 2), 50.0)])
    with pytest.raises(ValueError, match="network: expected all of one template, got a and b with another"):
        on_one_crop({"a": first, "b": moved})
    with pytest.raises(ValueError, match="size: expected a positive number of pixels, got 0"):
        on_one_crop({"a": first, "b": other}, 0)


@pytest.fixture(scope="module")
def mixed(place, tmp_path_factory) -> tuple[Path, list[str], dict]:
    """A study of a network of 112×112, twice, and one of 128×128, at two false accept rates."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    networks = ("a=synth-shuffle", f"b=synth-shuffle:{place}/w.safetensors", f"{place}/wide.toml")
    words = call(
        *(place, out, "--far", "0.05,0.2", "--method", "fim:4", "--method", "dfanet-fim:4", "--at", "1-3:2"),
        *("--surrogate", "wide", "--surrogate", "a+wide", "--target-set", "own=b+wide"),
        networks=networks,
    )
    return out, words, printed(words)


def test_every_network_sees_the_crop_at_its_own_size(mixed):
    out, _, found = mixed
    wide = load("synth-shuffle").replace(input_size=(128, 128))
    rows = [row for row in read_manifest(out) if row.name.startswith("wide/fim")]
    assert len(rows) == 4
    enlarged = Resize((112, 112), (128, 128), scale=112 / 128)
    for row in rows:
        made = to_tensor(read_image(out / "images" / f"{row.name}.png"))[None]
        target = PEOPLE.load(row.target).image[None]
        assert made.shape == target.shape
        with torch.no_grad():
            one, other = (wide(enlarged(x)) for x in (made, target))
        assert row.score_after == pytest.approx(float((one * other).sum()), abs=1e-4)
        assert row.score_after > row.score_before + 0.05
    both = {c["method"]: c for c in found["cells"] if c["surrogate"] == "a+wide" and c["target"] == "a"}
    assert all(c["white_box"] and c["steps"] == [1, 3, 4] for c in both.values())


def test_hits_are_counted_at_every_rate(mixed):
    _, _, found = mixed
    assert found["far"] == [0.2, 0.05]
    for network in found["networks"].values():
        at = network["by_far"]
        assert [each["far"] for each in at] == [0.2, 0.05]
        assert at[0]["threshold_cosine"] == network["threshold_cosine"] < at[1]["threshold_cosine"]
        assert at[0]["accuracy_at_threshold"] == network["accuracy_at_threshold"]
        assert at[1]["threshold_distance"] == pytest.approx(np.sqrt(2 - 2 * at[1]["threshold_cosine"]))
    for cell in found["cells"]:
        first, second = cell["by_far"]
        assert first["hits"] >= second["hits"]
        assert (first["hit_rate"], first["low"], first["high"]) == (cell["hit_rate"], cell["low"], cell["high"])


def test_sets_are_means_over_the_networks_that_are_not_attacked(mixed):
    _, _, found = mixed
    cells = {(c["surrogate"], c["method"], c["target"]): c for c in found["cells"]}
    sets = {(s["surrogate"], s["method"], s["set"]): s for s in found["sets"]}
    assert len(sets) == 8
    assert sets["wide", "fim:4", "others"]["networks"] == ["a", "b"]
    assert sets["a+wide", "fim:4", "others"]["networks"] == ["b"]
    assert sets["wide", "fim:4", "own"]["networks"] == ["b"]
    for (surrogate, method, _), one in sets.items():
        parts = [cells[surrogate, method, name] for name in one["networks"]]
        for name in ("hit_rate_by_steps", "distance_by_steps"):
            np.testing.assert_allclose(one[name], np.mean([p[name] for p in parts], axis=0), atol=1e-12)
        assert one["hits"] == sum(p["by_far"][0]["hits"] for p in parts) == round(one["hit_rate"] * one["trials"])
        assert [f["hits"] for f in one["by_far"]] == [sum(p["by_far"][k]["hits"] for p in parts) for k in (0, 1)]
        assert one["low"] <= one["hit_rate"] <= one["high"]


def test_a_finished_study_takes_further_rates_and_sets_without_new_images(mixed, place, tmp_path):
    out, words, found = mixed
    before = {file: file.stat().st_mtime_ns for file in (*out.rglob("*.png"), *out.rglob("*.npy"))}
    page = (out / "report.html").read_text()
    assert "At several false accept rates" in page
    assert "mean of others" in page
    again = printed([w.replace("0.05,0.2", "0.2,0.1,0.05").replace("own=b+wide", "two=a+b") for w in words])
    assert again["far"] == [0.2, 0.1, 0.05]
    assert {s["set"] for s in again["sets"]} == {"others", "two"}
    assert [c["hit_rate_by_steps"] for c in again["cells"]] == [c["hit_rate_by_steps"] for c in found["cells"]]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    said = refused([w.replace("0.05,0.2", "0.05,0.25") for w in words])
    assert "far: expected 0.2 (as in run.json), got 0.25" in said
    renamed = [w.replace("a=synth-shuffle", "c=synth-shuffle").replace("a+wide", "c+wide") for w in words]
    assert "(as in run.json)" in refused(renamed)
    assert "(as in run.json)" in refused([*words, "--size", "128"])


def test_the_crop_may_have_a_size_of_its_own(place, tmp_path):
    words = call(
        *(place, tmp_path / "out", "--far", "0.2", "--method", "fim:1", "--size", "96", "--surrogate", "synth-vgg"),
        networks=("synth-vgg", "synth-mobile"),
    )
    printed(words)
    made = read_image(next((tmp_path / "out" / "images").rglob("*.png")))
    assert made.shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("--far", "0.2,0.2"), "far: expected each one once, got 0.2 twice"),
        (("--far", "0.2,1e-4"), "far: expected a rate that 20 negative pairs can measure, got 0.0001"),
        (("--far", "0.2,x"), "far: expected rates between 0 and 1 with commas between them such as 1e-3,1e-4, got"),
        (("--far", "0"), "far: expected rates between 0 and 1"),
        (("--at", "9-3"), "at: expected positive whole numbers with commas between them such as 13,50 or 1-13,50-200"),
        (("--target-set", "x"), r"target-set: expected NAME=A\+B with each NAME once, none of them 'others', got 'x'"),
        (("--target-set", "others=synth-vgg"), "none of them 'others', got 'others=synth-vgg'"),
        (
            ("--target-set", "x=synth-vgg+me"),
            "target-set: expected networks of synth-vgg, synth-mobile, each once",
        ),
        (("--target-set", "x=synth-vgg+synth-vgg"), "each once, with '.' between, got x=synth-vgg.synth-vgg"),
        (("--method", "gd-uap:9"), "method: expected --untargeted with gd-uap, got a study of targeted attacks"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(more, error, place, tmp_path):
    words = call(place, tmp_path / "out", "--method", "fim:1", *more, networks=("synth-vgg", "synth-mobile"))
    result = CliRunner().invoke(app, words if "--far" in more else [*words, "--far", "0.2"])
    assert result.exit_code != 0
    with pytest.raises(ValueError, match=error):
        raise result.exception
    assert not (tmp_path / "out").exists()


def test_gd_uap_has_steps_of_its_own(place, tmp_path):
    more = ("--method", "gd-uap:3", "--method", "fim:1", "--untargeted", "--surrogate", "synth-vgg", "--steps", "2")
    words = call(place, tmp_path / "out", *more, networks=("synth-vgg", "synth-mobile"))
    found = printed(words)
    assert {row["method"] for row in found["rows"]} == {"clean", "gd-uap:3", "fim:1"}
    rows = [row for row in read_manifest(tmp_path / "out") if row.attack == "gd-uap"]
    assert {row.steps for row in rows} == {3}
    assert {row.name.split("/")[0] for row in rows} == {"gd-uap:3"}
    # a folder of before, when gd-uap had as many steps as the others
    file = tmp_path / "out" / "run.json"
    described = json.loads(file.read_text())
    assert described["config"].pop("universal steps") == {"gd-uap:3": 3}
    file.write_text(json.dumps(described))
    assert 'universal steps: expected none (as in run.json), got {"gd-uap:3": 3}; use --fresh' in refused(words)


def test_gamma_is_a_part_of_a_method_and_of_the_run(place, tmp_path):
    more = ("--far", "0.2", "--method", "s-fim:1,gamma=0.5", "--method", "s-fim:1", "--surrogate", "synth-resnet")
    words = call(place, tmp_path / "out", *more, networks=("synth-resnet", "synth-mobile"))
    assert {c["method"] for c in printed(words)["cells"]} == {"s-fim:1,gamma=0.5", "s-fim:1"}
    config = json.loads((tmp_path / "out" / "run.json").read_text())["config"]["attacks"]
    assert {label: each["surrogate"]["skip"]["gamma"] for label, each in config.items()} == {
        "s-fim:1,gamma=0.5": 0.5,
        "s-fim:1": 0.3,
    }
