"""Whose images go where, how attacks are written, who each logit is."""

import pytest
import torch

from fastadv.attacks.spec import parse_attack
from fastadv.studies.detection import plan as detect_plan
from fastadv.studies.detection.plan import Selection, draw_splits, fit_classes, read_classes, read_names


def test_everybody_is_in_one_part_and_every_image_in_one_place(plan):
    found = draw_splits(plan.people.names, natural=2, attacked=3, validate=0.25, test=0.25, by="people", seed=1)
    places = [found.rest, *found.natural.values(), *found.attacked.values()]
    assert sorted(name for names in places for name in names) == sorted(plan.people.names)
    people = {part: {n.rpartition("/")[0] for n in found.natural[part]} for part in detect_plan.PARTS}
    assert [len(people[part]) for part in detect_plan.PARTS] == [4, 2, 2]
    assert people == {part: {n.rpartition("/")[0] for n in found.attacked[part]} for part in detect_plan.PARTS}
    assert len(set.union(*people.values())) == 8
    for person in found.people:
        own = [name for name in plan.people.names if name.startswith(f"{person}/")]
        assert sum(name in found.rest for name in own) == 16 - 5
    for name, target in found.targets.items():
        assert target != name.rpartition("/")[0]
        assert found.guide(name).startswith(f"{target}/")
        assert found.guide(name) in found.rest
    assert found.part_of(found.natural["test"][0]) == "test"
    assert found.part_of(found.rest[0]) is None


def test_by_images_everybody_is_in_every_part(plan):
    whole = draw_splits(plan.people.names, natural=4, attacked=2, validate=0.25, test=0.25, by="people", seed=2)
    found = draw_splits(plan.people.names, natural=4, attacked=2, validate=0.25, test=0.25, by="images", seed=2)
    assert (found.rest, found.targets) == (whole.rest, whole.targets)
    for ours, theirs, counts in (
        (found.natural, whole.natural, (16, 8, 8)),
        (found.attacked, whole.attacked, (8, 4, 4)),
    ):
        assert tuple(len(ours[part]) for part in detect_plan.PARTS) == counts
        assert sorted(n for names in ours.values() for n in names) == sorted(n for ns in theirs.values() for n in ns)
    people = [{n.rpartition("/")[0] for n in found.natural[part]} for part in ("fit", "test")]
    assert people[0] & people[1]


def test_what_is_drawn_of_a_person_does_not_depend_on_the_others(plan):
    whole = draw_splits(plan.people.names, natural=2, attacked=2, seed=4)
    fewer = draw_splits([n for n in plan.people.names if "000002" not in n], natural=2, attacked=2, seed=4)
    assert set(fewer.rest) == {n for n in whole.rest if "000002" not in n}
    other = draw_splits(plan.people.names, natural=2, attacked=2, seed=5)
    assert set(other.rest) != set(whole.rest)


def test_people_outside_the_classes_are_drawn_by_the_seed_and_shared_out(plan):
    def draw(seed=1, outside=0.4, by="people"):
        return draw_splits(plan.people.names, natural=2, attacked=2, outside=outside, by=by, seed=seed)

    found = draw()
    owners = {part: {n.rpartition("/")[0] for n in names} for part, names in found.outside.items()}
    assert [len(people) for people in owners.values()] == [1, 1, 1]
    everybody = {name.rpartition("/")[0] for name in plan.people.names}
    assert set.union(*owners.values()) == everybody - set(found.people)
    assert all(len(names) == 16 for names in found.outside.values())
    assert found.outside == draw(by="images").outside == draw().outside != draw(seed=2).outside
    assert set(found.targets.values()) <= set(found.people)
    assert draw(outside=0.3).outside == dict.fromkeys(detect_plan.PARTS, ())  # two of eight are too few to share out
    assert len(draw(outside=0.0).people) == 8


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"natural": 0}, "natural: expected at least 1, got 0"),
        ({"attacked": 0}, "attacked: expected at least 1, got 0"),
        ({"by": "sex"}, "split_by: expected one of people, images, got 'sex'"),
        ({"outside": 1.0}, r"outside: expected a share in \[0, 1\), got 1.0"),
        ({"outside": 0.8}, "outside: expected a share that leaves at least 3 people as classes, got 0.8"),
        ({"test": 1.0}, "validate and test: expected shares above 0 with a sum below 1"),
        ({"natural": 12}, r"expected 12 \+ 2 images and 3 for the class head of every person, got fewer for 8 of 8"),
    ],
)
def test_splits_that_cannot_be_are_refused(more, expected, plan):
    with pytest.raises(ValueError, match=expected):
        draw_splits(plan.people.names, **{"natural": 2, "attacked": 2, **more})
    with pytest.raises(ValueError, match="at least 3 people"):
        draw_splits([n for n in plan.people.names if "000001" in n or "000002" in n], natural=2, attacked=2)


def test_attacks_are_written_as_name_steps_and_budget(tmp_path, plan):
    spec = parse_attack("bim:30@8/255")
    assert (spec.name, spec.steps, spec.eps, spec.label) == ("bim", 30, 8 / 255, "bim:30@8/255")
    assert spec.recipe().attack.steps == 30
    assert parse_attack("fgsm").label == "fgsm"
    assert parse_attack("fim").on_logits is False
    more = parse_attack("knn-df:9@7/255,margin=0.5,history=3")
    assert (more.recipe().attack.steps, more.recipe().attack.margin, more.recipe().attack.history) == (9, 0.5, 3)
    assert parse_attack(more.label) == more
    for text, expected in (
        ("bin", "attack: expected NAME"),
        ("bim:0", "attack: expected a whole number of at least 1 for the steps"),
        ("fgsm:3", "steps: expected none, since fgsm makes one step"),
        ("bim@big", "eps: expected a positive number"),
        ("e-fim", "which works on several"),
        ("bim,eps", "set: expected NAME=VALUE such as confidence=0.1, got 'eps'"),
        ("bim,candidates=3", "set: expected an option of bim .*random_start.*, got 'candidates'"),
    ):
        with pytest.raises(ValueError, match=expected):
            parse_attack(text)
    with pytest.raises(ValueError, match="expected each one once, got bim:30@8/255 twice"):
        plan.config(attacks=(spec, spec))
    with pytest.raises(ValueError, match="attack: expected at least one, or a run of one, got none"):
        plan.config(attacks=())


def test_a_selection_is_a_source(tmp_path, plan):
    file = tmp_path / "names.txt"
    file.write_text("s3-000001/0002.jpg\n\ns3-000000/0001\n")
    assert read_names(file) == ("s3-000001/0002", "s3-000000/0001")
    chosen = Selection(plan.people, read_names(file))
    assert chosen.names == ("s3-000000/0001", "s3-000001/0002")
    assert torch.equal(chosen.load("s3-000001/0002").image, plan.people.load("s3-000001/0002").image)
    with chosen.stream() as faces:
        assert [face.name for face in faces] == list(chosen.names)
    with pytest.raises(KeyError):
        chosen.load("s3-000001/0003")
    with pytest.raises(KeyError, match="nobody/0"):
        Selection(plan.people, ["nobody/0"])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="expected a name a line, got none"):
        read_names(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="the names cannot be read"):
        read_names(tmp_path / "none.txt")


def test_everybody_has_a_logit(tmp_path):
    assert fit_classes(3, ("a", "b", "c"), None) == ("a", "b", "c")
    assert fit_classes(3, ("a", "c"), ("c", "b", "a")) == ("c", "b", "a")
    with pytest.raises(ValueError, match="a network's head of 500 classes and data of 2 people"):
        fit_classes(500, ("a", "b"), None)
    with pytest.raises(ValueError, match="got a list without 1 people, first 'z'"):
        fit_classes(2, ("a", "z"), ("a", "b"))
    with pytest.raises(ValueError, match="expected names of the 3 logits of the network's head, got 2"):
        fit_classes(3, ("a",), ("a", "b"))
    (tmp_path / "c.json").write_text('["a", "a"]')
    with pytest.raises(ValueError, match="a JSON list of distinct names"):
        read_classes(tmp_path / "c.json")
