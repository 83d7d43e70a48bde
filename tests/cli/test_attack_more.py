"""`fastadv attack` with the attacks that optimise and those that look for the smallest perturbation, and its goals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastadv.attacks import CATALOG, SignGradient, by_name
from fastadv.attacks.options import options_of, with_options
from fastadv.data import read_image, read_manifest, to_tensor
from fastadv.data.synthetic import SyntheticFaces, write_faces
from fastadv.models import load
from fastadv.report.pages.parts import command_line

PEOPLE = 4
QUICK = {"steps": 25, "search_steps": 1, "inner_steps": 15, "searches": 2, "bisections": 3, "restarts": 1, "retries": 1}
"""Options that bound the work of an attack, for those that have them."""


def is_new(name):
    return not CATALOG[name].ensemble and not isinstance(by_name(name).attack, SignGradient)


# the bisections on eps differ in what they run only: one stands for all
NEW = [n for n in CATALOG if is_new(n) and (not n.startswith("minimal-") or n in ("minimal-fim", "minimal-fgsm"))]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    source = SyntheticFaces(identities=PEOPLE, per_identity=2, seed=5)
    write_faces(source, source.names, root)
    return root


@pytest.fixture(scope="module")
def headed(tmp_path_factory):
    """The shipped network with a class head of 7 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "headed.safetensors"
    model = load("synth-mobile")
    head = torch.nn.Linear(model.embedding_size, 7)
    state = {**model.backbone.state_dict(), "class_head.weight": head.weight, "class_head.bias": head.bias}
    save_file({k: v.detach().contiguous() for k, v in state.items()}, str(path))
    return path


def words(name, people, out, *more):
    settings = [f"--set={key}={value}" for key, value in QUICK.items() if key in options_of(by_name(name))]
    given = ("--data", people, "--model", "synth-mobile", "--out", out, "--limit", "3", "--batch", "4", "--json")
    return ("attack", name, *given, *settings, *more)


def default_goal(name):
    return {"features": "match", "gallery": "identify-as"}.get(CATALOG[name].level, "impersonate")


@pytest.mark.parametrize("name", [n for n in NEW if "dlr" not in n])
def test_every_attack_writes_the_same_manifest(name, inside, people, tmp_path, capsys):
    goal, out = default_goal(name), tmp_path / "out"
    more = () if goal == "identify-as" else ("--threshold", "0.6")
    code, said = inside(*words(name, people, out, *more))
    assert code == 0, said
    rows = read_manifest(out)
    assert [r.name for r in rows] == sorted(r.name for r in rows)
    assert {(r.attack, r.goal, r.flags) for r in rows} == {(name, goal, "")}
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["attack"]["name"] == name
    for row in rows:
        made = np.asarray(Image.open(out / "images" / f"{row.name}.png")).astype(int)
        source = np.asarray(Image.open(people / f"{row.name}.png")).astype(int)
        assert row.target.split("/")[0] != row.name.split("/")[0]
        assert row.linf == pytest.approx(np.abs(made - source).max() / 255, abs=1e-6)
        assert row.l2 == pytest.approx(np.linalg.norm((made - source) / 255), rel=1e-4)
        assert row.ticks > 0
    if goal == "impersonate":
        assert all(r.success == (r.score_after >= 0.6) for r in rows)
        # noise makes nobody a chosen other, and these are given too few steps here
        if not name.startswith(("noise", "cw")):
            assert sum(r.success for r in rows) >= 2
    # the command of the report says what was chosen
    command = command_line(config)
    assert all(f"--set {k}={v}" in command or f"--{k} {v} " in command for k, v in config_settings(name).items())


def config_settings(name):
    """The quick options of an attack that are not its own."""
    usual = vars(by_name(name).attack)
    return {k: v for k, v in QUICK.items() if k in usual and usual[k] != v}


def test_a_gallery_decides_for_the_target_or_against_oneself(inside, people, tmp_path):
    for goal, eps in (("identify-as", "16/255"), ("misidentify", "16/255")):
        out = tmp_path / goal
        code, said = inside(*words("knn-df", people, out, "--goal", goal, "--eps", eps))
        assert code == 0, said
        rows = read_manifest(out)
        assert all(r.success == (r.score_after > 0) for r in rows)
        assert all(r.metric == "template_margin" and r.goal == goal and r.score_before < 0 for r in rows)
        assert all(r.success for r in rows)
    other, few = tmp_path / "other", tmp_path / "few"
    code, said = inside(*words("fim", people, other, "--goal", "identify-as", "--gallery", people, "--neighbours", "2"))
    assert code == 0, said
    config = json.loads((other / "run.json").read_text())["config"]
    assert (config["goal"], config["neighbours"], len(config["gallery"])) == ("identify-as", 2, 64)
    assert "threshold" not in config
    assert "--goal identify-as --metric cosine --neighbours 2 --gallery=GALLERY " in command_line(config)
    # a gallery that lacks somebody is refused before anything is made
    for person in sorted(p for p in people.iterdir())[:2]:
        (few / person.name).mkdir(parents=True)
        (few / person.name / "a.png").write_bytes((person / "0000.png").read_bytes())
    code, said = inside(*words("knn-df", people, tmp_path / "none", "--gallery", few))
    assert code == 2
    assert "gallery: expected images of every person that the goals name, got none of 1" in said.replace("\n", " ")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["apgd-dlr", "bim", "cw-l2"])
@pytest.mark.parametrize("goal", ["classify-as", "misclassify"])
def test_a_class_head_decides(name, goal, inside, people, headed, tmp_path):
    out = tmp_path / "out"
    code, said = inside(*words(name, people, out, "--weights", headed, "--goal", goal))
    assert code == 0, said
    rows, model = read_manifest(out), load("synth-mobile", weights=headed)
    assert all((r.metric, bool(r.target)) == ("logit_margin", goal == "classify-as") for r in rows)
    assert sum(r.success for r in rows) >= 2 or name == "cw-l2"

    def said_of(path):
        with torch.no_grad():
            return int(model.logits(to_tensor(read_image(path))[None]).argmax())

    for row in rows:
        made = said_of(out / "images" / f"{row.name}.png")
        wanted = said_of(people / f"{row.target or row.name}.png")
        assert row.success == (made == wanted if goal == "classify-as" else made != wanted)


def test_features_of_a_layer_are_matched(inside, people, tmp_path):
    out = tmp_path / "out"
    more = ("--layer", "blocks.3", "--threshold", "3", "--steps", "6")
    code, said = inside(*words("df", people, out, *more))
    assert code == 0, said
    rows = read_manifest(out)
    assert all(r.metric == "feature_distance" and r.score_after < 0.9 * r.score_before for r in rows)
    assert all(r.success == (r.score_after <= 3) for r in rows)
    assert json.loads((out / "run.json").read_text())["config"]["layer"] == "blocks.3"


def test_without_a_layer_the_threshold_of_a_match_is_the_verifiers(inside, people, tmp_path):
    out = tmp_path / "out"
    code, said = inside(*words("df", people, out, "--threshold", "0.6", "--steps", "8"))
    assert code == 0, said
    # cosine 0.6 is the distance sqrt(2 - 1.2)
    assert all(r.success == (r.score_after <= 0.8**0.5) for r in read_manifest(out))


@pytest.mark.parametrize(("metric", "threshold"), [("euclidean", 0.9), ("cosine", 0.595)])
def test_the_probability_of_a_pair_is_attacked(metric, threshold, inside, people, tmp_path):
    """Mehr and Schroeder's classifier: one half at the distance 0.9, which is the cosine 0.595, and 0 at 1.8."""
    given = ("--threshold", threshold, "--metric", metric, "--max-distance", "1.8", "--eps", "16/255", "--steps", "20")
    model = load("synth-mobile")

    def embedded(path):
        with torch.no_grad():
            return model(to_tensor(read_image(path))[None])

    for goal in ("impersonate", "evade"):
        out = tmp_path / goal
        code, said = inside(*words("pgd", people, out, "--goal", goal, *given))
        assert code == 0, said
        rows = read_manifest(out)
        assert {(r.metric, bool(r.target)) for r in rows} == {("probability_same", goal == "impersonate")}
        for row in rows:  # without a pair an image is to be taken for another person than itself
            distance = (
                embedded(out / "images" / f"{row.name}.png") - embedded(people / f"{row.target or row.name}.png")
            ).norm()
            same = 1 - distance / 1.8 if distance < 0.9 else 0.5 - 0.5 * (distance - 0.9) / 0.9
            assert row.score_after == pytest.approx(float(same), abs=1e-4)
            assert row.success == ((row.score_after >= 0.5) == (goal == "impersonate"))
        assert sum(r.success for r in rows) >= 2
        config = json.loads((out / "run.json").read_text())["config"]
        assert f"--threshold {threshold} --max-distance 1.8 --metric {metric} " in command_line(config)


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("df", (), "threshold: expected the verifier's threshold for match, got none"),
        (
            "df",
            ("--layer", "blocks.3"),
            "threshold: expected the largest distance of the layer's features for match, got none",
        ),
        (
            "df",
            ("--layer", "nose", "--threshold", "1"),
            "layer: expected a submodule of the backbone of 'synth-mobile'",
        ),
        ("df", ("--layer", "blocks.3", "--threshold", "-1"), "threshold: expected a distance of at least 0, got -1.0"),
        (
            "df",
            ("--threshold", "0.5", "--set", "history=few"),
            "history of df: expected a value of the type int, got 'few'",
        ),
        (
            "df",
            ("--threshold", "0.5", "--set", "steps"),
            "set: expected NAME=VALUE such as confidence=0.1, got 'steps'",
        ),
        (
            "df",
            ("--threshold", "0.5", "--set", "margin=1", "--set", "margin=2"),
            "set: expected each name once",
        ),
        ("df", ("--threshold", "0.5", "--set", "history=0"), "history: expected an integer of at least 1, got 0"),
        (
            "knn-df",
            ("--threshold", "0.5"),
            "threshold: expected none for identify-as, decided by the nearest template, got 0.5",
        ),
        ("knn-df", ("--neighbours", "9"), "neighbours: expected at most the 4 templates, got 9"),
        ("knn-df", ("--neighbours", "0"), "neighbours: expected at least 1, got 0"),
        (
            "knn-df",
            ("--layer", "blocks.3"),
            "layer: expected it with the goal match only, got 'blocks.3' with identify-as",
        ),
        (
            "fim",
            ("--threshold", "0.5", "--neighbours", "1"),
            "neighbours: expected it with the goals identify-as and misidentify",
        ),
        (
            "fim",
            ("--threshold", "0.5", "--goal", "match", "--max-distance", "1"),
            "max_distance: expected it with the goals evade and impersonate only, got 1 with match",
        ),
        (
            "fim",
            ("--threshold", "0.5", "--max-distance", "3"),
            "max_distance: expected a distance in (0, 2], got 3.0",
        ),
        (
            "fim",
            ("--threshold", "0.5", "--max-distance", "1"),  # the cosine 0.5 is the distance 1
            "threshold: expected a distance in (0, max_distance = 1), got 1.0",
        ),
        (
            "fim",
            ("--threshold", "0.5", "--gallery", "x"),
            "gallery: expected it with --goal identify-as or misidentify only",
        ),
        ("fim", ("--threshold", "0.5", "--set", "nose=1"), "set: expected an option of fim (margin, momentum, norm"),
        ("fim", (), "threshold: expected the verifier's threshold for impersonate, got none"),
        (
            "bim",
            ("--goal", "misclassify"),
            "goal: expected a network with a class head for misclassify, got synth-mob",
        ),
        (
            "bim",
            ("--goal", "classify-as", "--threshold", "1"),
            "threshold: expected none for classify-as, decided by the largest logit",
        ),
        ("apgd-dlr", ("--threshold", "0.5"), "got apgd-dlr, whose goal is classify-as or misclassify"),
        (
            "lbfgs",
            ("--threshold", "0.5", "--stop-at-success"),
            "stop_at_success: expected False with lbfgs, which decides itself when to stop",
        ),
        ("lbfgs", ("--threshold", "0.5", "--margin", "-1"), "margin: expected a number of at least 0, got -1.0"),
    ],
)
def test_a_wrong_option_is_one_clear_sentence(name, more, text, inside, people, tmp_path):
    code, said = inside(*words(name, people, tmp_path / "out", *more))
    assert code == 2
    assert text in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [n for n in CATALOG if not CATALOG[n].ensemble])
def test_every_attack_takes_its_own_options_and_no_others(name):
    recipe = by_name(name)
    known = options_of(recipe)
    assert "name" not in known
    assert "backend" not in known
    same = with_options(recipe, settings={k: str(v) for k, v in vars(recipe.attack).items() if k in known})
    assert same == recipe
    if "margin" in known or "confidence" in known:
        assert with_options(recipe, margin=0.125).attack.margin == 0.125
    else:
        with pytest.raises(ValueError, match=f"{name} has no margin to choose, got margin=0.125"):
            with_options(recipe, margin=0.125)
    if "stop_at_success" in known:
        made = with_options(recipe, stop=True).attack
        assert getattr(made, "attack", made).stop_at_success
    else:
        with pytest.raises(
            ValueError,
            match=f"stop_at_success: expected False with {name}, which decides itself when to stop, got True",
        ):
            with_options(recipe, stop=True)
    with pytest.raises(ValueError, match=rf"set: expected an option of {name} \(.*\), got 'nose'"):
        with_options(recipe, settings={"nose": "1"})


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("df", {"first_step": "1/255"}, {"first_step": 1 / 255}),
        ("df", {"first_step": "none", "evaluations": "7"}, {"first_step": None, "evaluations": 7}),
        ("df", {"random_start": "true"}, {"random_start": True}),
        ("mi-fgsm", {"norm": "l2", "momentum": "0.5"}, {"norm": "l2", "momentum": 0.5}),
    ],
)
def test_text_becomes_the_fields_own_type(name, settings, expected):
    made = with_options(by_name(name), settings=settings).attack
    assert {k: getattr(made, k) for k in expected} == expected
    assert all(type(getattr(made, k)) is type(v) for k, v in expected.items())


def test_gamma_of_a_skip_gradient_is_an_option():
    recipe = by_name("s-fim")
    assert options_of(recipe)["gamma"] == "float"
    made = with_options(recipe, settings={"gamma": "1/4", "step_size": "2/255"})
    assert (made.surrogate.skip.gamma, made.attack.step_size) == (0.25, 2 / 255)
    assert "gamma" not in options_of(by_name("fim"))
    with pytest.raises(ValueError, match=r"gamma: expected a number in \(0, 1\], got 0.0"):
        with_options(recipe, settings={"gamma": "0"})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": "1.5"}, "steps of df: expected a value of the type int, got '1.5'"),
        ({"steps": "none"}, "steps of df: expected a value of the type int, got 'none'"),
        ({"tolerance": "1/0"}, "tolerance of df: expected a value of the type float, got '1/0'"),
        ({"tolerance": "nan"}, "tolerance of df: expected a value of the type float, got 'nan'"),
        ({"random_start": "yes"}, "random_start of df: expected a value of the type bool, got 'yes'"),
        ({"first_step": "x"}, r"first_step of df: expected a value of the type float \| None, got 'x'"),
        ({"budget": "0.1"}, "set: expected an option of df .*, got 'budget'"),
    ],
)
def test_a_text_that_is_no_value_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        with_options(by_name("df"), settings=settings)
