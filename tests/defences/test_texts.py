"""Defences, attacks and threats of a study, from their texts."""

import pytest

from fastadv.attacks import pgd
from fastadv.defences import (
    AttackAsDefence,
    BitDepth,
    Chain,
    GaussianBlur,
    Jpeg,
    MeanFilter,
    OneOf,
    PairAttackAsDefence,
    PerfectKnowledge,
    RandomResizePad,
    SelectiveDropout,
    ZeroKnowledge,
)
from fastadv.studies.defences.plan import Planned, parse_defence, parse_threat, read_attack


@pytest.mark.parametrize(
    ("text", "defence"),
    [
        ("none", None),
        ("mean", MeanFilter()),
        ("mean:5", MeanFilter(size=5)),
        ("gauss:7:1.5", GaussianBlur(size=7, sigma=1.5)),
        ("jpeg:30:identity", Jpeg(quality=30)),
        ("bits:3+mean", Chain(parts=(BitDepth(bits=3), MeanFilter()))),
        ("one(mean|jpeg+bits:2)", OneOf(parts=(MeanFilter(), Chain(parts=(Jpeg(), BitDepth(bits=2)))))),
        ("resize-pad:0.8", RandomResizePad(smallest=0.8)),
        ("selective:3:0.1", SelectiveDropout(gamma=3, kappa=0.1)),
    ],
)
def test_defences_from_text(text, defence):
    assert parse_defence(text) == Planned(label=text, defence=defence)


def test_attacks_as_defences_from_text():
    found = parse_defence("attack(cw-l2:50):4/255:0.3").defence
    assert isinstance(found, AttackAsDefence)
    assert (found.start, found.threshold) == (4 / 255, 0.3)
    assert found.attack.attack.inner_steps == 50
    assert parse_defence("pair(pgd:3@2/255)").defence == PairAttackAsDefence(attack=pgd(steps=3, eps=2 / 255))
    assert parse_defence("pair(cw-l2:50):query").defence.side == "query"


def test_attacks_from_text():
    found = read_attack("fim:13@10/255")
    assert (found.label_without_eps, found.radius, found.family) == ("fim:13", 10 / 255, "iterative")
    assert found.recipe().attack.steps == 13
    assert read_attack("ffm").family == "one-step"
    assert read_attack("noise-uniform").family == "noise"
    assert read_attack("noise-uniform").radius is None


def test_threats_from_text():
    assert parse_threat("zero") == ZeroKnowledge()
    assert parse_threat("perfect:8") == PerfectKnowledge(samples=8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: parse_defence("means"), "defence: expected none, mean.:SIZE., .* got 'means'"),
        (lambda: parse_defence("mean:x"), "defence: expected a number for size, got 'x' in 'mean:x'"),
        (lambda: parse_defence("mean:3:4"), "at most 1 numbers after its name, got 'mean:3:4'"),
        (lambda: parse_defence("mean:4"), "size: expected an odd integer"),
        (lambda: parse_defence("attack(nose)"), "attack: expected NAME"),
        (lambda: parse_defence("pair(pgd):left"), "side: expected one of both, gallery, query, got 'left'"),
        (lambda: read_attack("e-fim"), "single network, got 'e-fim'"),
        (lambda: read_attack("fim:x"), "a whole number of at least 1 for the steps, got 'fim:x'"),
        (lambda: read_attack("ffm:3"), "steps: expected none, since ffm makes one step, got 3"),
        (lambda: parse_threat("some"), "threat: expected zero, perfect"),
        (lambda: parse_threat("perfect:x"), "threat: expected zero, perfect"),
        (lambda: parse_threat("adaptive"), "detector: expected a calibrated one for the threat 'adaptive', got none"),
    ],
)
def test_wrong_texts(call, words):
    with pytest.raises(ValueError, match=words):
        call()
