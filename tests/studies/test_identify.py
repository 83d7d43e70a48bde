"""Identification in a folder: roles, figures against a count by hand, attacks aimed and not."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fastadv import load
from fastadv.attacks import by_name
from fastadv.data import RunFolder, read_manifest
from fastadv.data.synthetic import SyntheticFaces
from fastadv.engine import Engine
from fastadv.report.pages.curves import draw_identification
from fastadv.report.pages.identify import figures, tables
from fastadv.report.pages.run import render
from fastadv.runs import Work
from fastadv.runs.enrolment import enrol
from fastadv.runs.goals import Enrolled, GoalChoice
from fastadv.runs.production import Order
from fastadv.studies.identify import assign, describe, identify, save
from fastadv.surrogates import Ensemble, Surrogate

PEOPLE = SyntheticFaces(identities=6, per_identity=4, seed=2)
ENGINE = Engine(batch=8)
LIMIT = 6


@pytest.fixture(scope="module")
def model():
    return load("synth-mobile")


@pytest.fixture(scope="module")
def roles():
    return assign(PEOPLE.names, enrol=2, limit=LIMIT)


@pytest.fixture(scope="module")
def embeddings(model):
    images = torch.stack([PEOPLE.load(name).image for name in PEOPLE.names])
    with torch.no_grad():
        return dict(zip(PEOPLE.names, model(images), strict=True))


@pytest.fixture(scope="module")
def runs(model, roles, tmp_path_factory):
    found = {}
    for goal in ("identify-as", "misidentify"):
        path = tmp_path_factory.mktemp("runs") / goal
        with RunFolder.open(path, {"command": "identify", "goal": goal}) as folder:
            found[goal] = (
                path,
                identify(
                    PEOPLE,
                    roles,
                    model,
                    attack=by_name("knn-df", eps=16 / 255, steps=60),
                    aim=GoalChoice(goal=goal),
                    work=Work(folder=folder, engine=ENGINE),
                ),
            )
        save(found[goal][1], path)
        draw_identification(found[goal][1], path / "identification.svg", title=goal)
    return found


def test_the_first_images_are_enrolled_and_some_people_are_not():
    names = [f"{p}/{i}" for p, count in (("a", 3), ("b", 1), ("c", 4), ("d", 2)) for i in range(count)]
    roles = assign(names, enrol=2)
    assert roles.enrolled == ("a/0", "a/1", "c/0", "c/1")
    assert roles.mated == ("a/2", "c/2", "c/3")
    assert roles.unmated == ("b/0", "d/0", "d/1")
    assert assign(names, enrol=2, limit=2).mated == ("a/2", "c/2")
    # everybody has enough: every fifth person is left out
    many = assign([f"{p}/{i}" for p in "abcdefghij" for i in range(2)], enrol=1)
    assert {name[0] for name in many.unmated} == {"e", "j"}
    assert len(many.mated) == 8
    # too few people to leave one out
    assert assign(["a/0", "a/1", "b/0", "b/1"], enrol=1).unmated == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"enrol": 0}, "enrol: expected at least 1, got 0"),
        ({"enrol": 1, "limit": 0}, "limit: expected at least 1, got 0"),
        ({"enrol": 4}, "enrol: expected two or more people with more than 4 images, got 0"),
    ],
)
def test_roles_that_cannot_be_given(arguments, text):
    with pytest.raises(ValueError, match=text):
        assign(PEOPLE.names, **arguments)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_clean_figures_are_those_of_a_count_by_hand(metric, model, roles, embeddings):
    result = identify(PEOPLE, roles, model, metric=metric, neighbours=3)
    people = sorted({name.split("/")[0] for name in roles.enrolled})
    means = torch.stack([torch.stack([embeddings[n] for n in roles.enrolled if n[:9] == p]).mean(0) for p in people])
    templates = F.normalize(means, dim=1) if metric == "cosine" else means
    right = named = 0
    for probe in roles.mated:
        right += people[int((templates - embeddings[probe]).norm(dim=1).argmin())] == probe[:9]
        near = torch.stack([(embeddings[n] - embeddings[probe]).norm() for n in roles.enrolled]).argsort()[:3]
        votes = [roles.enrolled[i][:9] for i in near]
        named += max(votes, key=votes.count) == probe[:9]
    assert result.clean.rank1 == right / LIMIT
    assert result.clean.neighbours == named / LIMIT
    assert (result.clean.people, result.clean.mated, result.clean.unmated) == (5, LIMIT, 4)
    assert [(rate.threshold, rate.tpir) for rate in result.clean.open_set] == [(None, None)] * 2
    assert result.clean.notes == tuple(
        f"TPIR at FPIR {rate}: not measurable from 4 faces of people not enrolled; needs at least {needed}"
        for rate, needed in ((0.01, 100), (0.1, 10))
    )
    assert (result.attacked, result.aim, result.summary) == (None, None, None)


def test_an_aimed_attack_is_named_as_the_next_person(runs, roles):
    path, result = runs["identify-as"]
    rows = read_manifest(path)
    people = sorted({name.split("/")[0] for name in roles.enrolled})
    for row in rows:
        own, aimed = row.name.split("/")[0], row.target.split("/")[0]
        assert people.index(aimed) == (people.index(own) + 1) % len(people)
        assert row.target in roles.enrolled
    assert result.attacked is not None
    assert result.attacked.target is not None
    assert result.attacked.target.rank1 == sum(row.success for row in rows) / LIMIT
    assert result.attacked.target.rank1 >= 0.5
    assert result.attacked.rank1 <= 1 - result.attacked.target.rank1
    assert result.summary is not None
    assert result.summary.images == result.attacked.probes == LIMIT


def test_the_goal_of_misidentify_has_no_guide_but_for_an_ensemble(model, roles):
    enrolled = enrol(PEOPLE, roles.enrolled, model)
    aim, name = GoalChoice(goal="misidentify"), roles.mated[0]
    assert not aim.needs_target
    order = Order(name=name, source=name, target=roles.mated[-1])
    face = PEOPLE.load(name)
    for ensemble in (False, True):
        goal = aim.goals(PEOPLE, model, enrolled, ensemble=ensemble)(order, face)
        assert goal.any_other
        assert (goal.guides is not None) == ensemble
    moves = replace(by_name("knn-df"), surrogate=Surrogate(ensemble=Ensemble(others=(model,))))
    aim.check_guides(moves, [order])
    aim.check_guides(by_name("knn-df"), [Order(name=name, source=name)])
    with pytest.raises(ValueError, match="goal: expected identify-as with an ensemble, .* got misidentify; give pairs"):
        aim.check_guides(moves, [Order(name=name, source=name)])


def test_an_attack_without_an_aim_moves_to_the_most_similar_other(runs, roles, embeddings, model):
    path, result = runs["misidentify"]
    rows = read_manifest(path)
    enrolled = enrol(PEOPLE, roles.enrolled, model)
    for row in rows:
        source = row.name.split("__")[0]
        distances = enrolled.gallery.distances(embeddings[source][None])[0]
        distances[int(enrolled.label(source))] = torch.inf
        assert row.target.split("/")[0] == enrolled.people[int(distances.argmin())]
    assert result.attacked is not None
    assert result.attacked.target is None
    assert result.attacked.rank1 == 1 - sum(row.success for row in rows) / LIMIT
    assert result.attacked.open_set[0].threshold == result.clean.open_set[0].threshold
    # anybody else is nearer than a chosen one
    assert result.summary is not None
    aimed = runs["identify-as"][1].summary
    assert result.summary.mean_ticks <= aimed.mean_ticks


def test_a_finished_run_is_read_again(runs, model, roles):
    path, first = runs["identify-as"]
    with RunFolder.open(path, {"command": "identify", "goal": "identify-as"}) as folder:
        again = identify(
            PEOPLE,
            roles,
            model,
            attack=by_name("knn-df", eps=16 / 255, steps=60),
            aim=GoalChoice(goal="identify-as"),
            work=Work(folder=folder, engine=ENGINE),
        )
    assert describe(again) == describe(first)


def test_files_screen_and_page_say_the_same(runs):
    path, result = runs["identify-as"]
    saved = json.loads((path / "identification.json").read_text())
    assert figures(saved) == figures(describe(result))
    lines = {name: (before, after) for name, before, after in figures(saved)}
    assert lines["named rightly, nearest template"] == (result.clean.rank1, result.attacked.rank1)
    assert lines["named as the target, nearest template"] == (None, result.attacked.target.rank1)
    assert "TPIR at FPIR 0.1" not in lines
    shown = json.loads(json.dumps(saved))
    for part, tpir in (("clean", 0.75), ("attacked", 0.25)):
        shown[part]["open_set"][1].update(threshold=0.5, tpir=tpir)
    assert ("TPIR at FPIR 0.1", 0.75, 0.25) in figures(shown)
    svg = (path / "identification.svg").read_text()
    assert svg.count("<svg") == 1
    page = render(path, data=PEOPLE).read_text()
    for text in (
        "named as the target, nearest template",
        "to be identified as another person",
        "TPIR at FPIR 0.1: not measurable from 4 faces of people not enrolled; needs at least 10",
        "success of the rest",
    ):
        assert text in page
    assert tables(path.parent) == []


def test_without_unmated_faces_there_is_no_open_set(model, tmp_path):
    few = SyntheticFaces(identities=2, per_identity=3, seed=2)
    result = identify(few, assign(few.names, enrol=2), model, neighbours=1)
    assert (result.clean.open_set, result.curves) == ((), ())
    save(result, tmp_path)
    assert draw_identification(result, tmp_path / "identification.svg") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["identification.json"]
    assert [name for name, *_ in figures(describe(result))][:1] == ["named rightly, nearest template"]


def test_a_template_is_the_mean_of_its_images(model, embeddings):
    names = [n for n in PEOPLE.names if not n.startswith("s2-000001")]
    for metric in ("cosine", "euclidean"):
        enrolled = enrol(PEOPLE, names, model, metric=metric)
        assert isinstance(enrolled, Enrolled)
        assert "s2-000001" not in enrolled
        for k, person in enumerate(enrolled.people):
            mean = torch.stack([embeddings[n] for n in names if n.startswith(person)]).mean(0)
            expected = F.normalize(mean, dim=0) if metric == "cosine" else mean
            torch.testing.assert_close(enrolled.gallery.templates[k], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="gallery: expected at least two people, got 1"):
        enrol(PEOPLE, PEOPLE.names[:2], model)
    with pytest.raises(KeyError):
        enrolled.label("s2-000001/0000")


def test_users_errors(model, roles, tmp_path):
    moves = by_name("fim")
    with pytest.raises(ValueError, match="metric: expected one of cosine, euclidean, got 'l1'"):
        identify(PEOPLE, roles, model, metric="l1")
    for wrong in (0, 99):
        with pytest.raises(
            ValueError, match=f"neighbours: expected 1 to 10, the number of enrolled images, got {wrong}"
        ):
            identify(PEOPLE, roles, model, neighbours=wrong)
    with pytest.raises(ValueError, match="attack: expected an aim"):
        identify(PEOPLE, roles, model, attack=moves)
    with (
        RunFolder.open(tmp_path / "run", {}) as folder,
        pytest.raises(ValueError, match="attack: expected an aim"),
    ):
        identify(
            PEOPLE, roles, model, attack=moves, aim=GoalChoice(goal="evade", threshold=0.3), work=Work(folder=folder)
        )
    (tmp_path / "identification.json").write_text("[1]")
    with pytest.raises(
        ValueError, match="identification.json: expected the figures of a study, got a file that cannot be read"
    ):
        tables(tmp_path)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"goal": "hide"}, "goal: expected one of evade, impersonate, match, identify-as, .*, got 'hide'"),
        ({"goal": "evade"}, "threshold: expected the verifier's threshold for evade, got none"),
        ({"goal": "evade", "threshold": 7.0}, r"threshold: expected a cosine value in \[-1, 1\], got 7.0"),
        ({"goal": "identify-as", "metric": "l1"}, "metric: expected one of cosine, euclidean, got 'l1'"),
        ({"goal": "misidentify", "threshold": 0.3}, "threshold: expected none for misidentify"),
        (
            {"goal": "classify-as", "threshold": 0.3},
            "threshold: expected none for classify-as, decided by the largest logit, got 0.3",
        ),
    ],
)
def test_an_aim_that_cannot_be(fields, text):
    with pytest.raises(ValueError, match=text):
        GoalChoice(**fields)


def test_an_aim_needs_its_people_and_its_layer(model):
    aim = GoalChoice(goal="identify-as")
    with pytest.raises(ValueError, match="enrolled: expected templates of the people for identify-as, got none"):
        aim.goals(PEOPLE, model)
    assert aim.describe() == {"goal": "identify-as", "metric": "cosine"}
    assert replace(aim, goal="match", layer="blocks.1", threshold=2.0).describe() == {
        "goal": "match",
        "threshold": 2.0,
        "layer": "blocks.1",
    }
    with pytest.raises(ValueError, match="got 'nose'"):
        GoalChoice(goal="match", layer="nose", threshold=1.0).check_model(model)
    with pytest.raises(ValueError, match="goal: expected a network with a class head for misclassify"):
        GoalChoice(goal="misclassify").check_model(model)
    with pytest.raises(ValueError, match="got apgd-dlr, whose goal is classify-as or misclassify"):
        aim.check_attack(by_name("apgd-dlr"))
