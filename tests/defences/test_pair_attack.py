"""Attack as defence on pairs: the verifier's own decision is flipped."""

from __future__ import annotations

import pytest
import torch

import fastadv as fa
from fastadv.attacks import Evade, Impersonate
from fastadv.defences import PairAttackAsDefence, content_ids
from fastadv.engine import Engine

PGD = fa.attacks.pgd(eps=16 / 255, steps=6)


def cosine(model, first, second):
    with torch.no_grad():
        return (model(first) * model(second)).sum(1)


@pytest.fixture
def case(model, faces):
    """Pairs of which one half is accepted, and the threshold that says so."""
    first, second = faces(6), faces(6, seed=2)
    scores = cosine(model, first, second)
    return first, second, float(scores.sort().values[2:4].mean()), scores


@pytest.mark.parametrize("side", ["both", "gallery", "query"])
def test_decisions_are_flipped_and_only_the_images_of_the_side_move(side, model, case):
    first, second, threshold, before = case
    made = PairAttackAsDefence(attack=PGD, side=side).attacked(model, first, second, threshold=threshold, seed=3)
    flipped = (cosine(model, *made) >= threshold) != (before >= threshold)
    # of a refused pair, two images that both go to where the other one was change places
    assert flipped[before >= threshold].all() if side == "both" else flipped.all()
    for image, clean, kept in zip(made, (first, second), ("gallery", "query"), strict=True):
        assert torch.equal(image, clean) == (side == kept)
        assert float((image - clean).abs().amax()) <= 16 / 255 + 1e-6
        assert torch.equal(image, torch.round(image * 255) / 255)


@pytest.mark.filterwarnings("ignore")
def test_each_image_is_the_attack_on_the_other_as_it_came(model, case):
    """Away from it where the pair is accepted, towards it where not."""
    first, second, threshold, before = case
    engine = Engine(batch=4)
    made = PairAttackAsDefence(attack=PGD, engine=engine).attacked(model, first, second, threshold=threshold, seed=3)
    accepted = before >= threshold
    for image, own, other in ((made[0], first, second), (made[1], second, first)):
        for chosen, goal in ((accepted, Evade(references=other[accepted], threshold=threshold)), (~accepted, None)):
            goal = goal or Impersonate(other[chosen], threshold=threshold)
            ids = content_ids(own[chosen]).tolist()
            expected = fa.run(PGD, goal, model, own[chosen], seed=3, ids=ids, engine=engine)
            assert torch.equal(image[chosen], expected.images)


def test_a_pair_has_one_result_in_any_order_and_number(model, case):
    first, second, threshold, _ = case
    defence = PairAttackAsDefence(attack=PGD)
    made = defence.attacked(model, first, second, threshold=threshold, seed=3)
    order = [4, 0, 3]
    again = defence.attacked(model, first[order], second[order], threshold=threshold, seed=3)
    assert all(torch.equal(some, whole[order]) for some, whole in zip(again, made, strict=True))
    other = defence.attacked(model, first, second, threshold=threshold, seed=4)
    assert not torch.equal(other[0], made[0])  # another random start
    assert all(len(each) == 0 for each in defence.attacked(model, first[:0], second[:0], threshold=threshold))


def test_a_clean_verifier_becomes_wrong_and_an_attacked_one_right(model, case):
    """The finding: what the defence gains on attacked pairs, it loses on clean ones."""
    first, second, threshold, before = case
    same = before >= threshold  # a verifier without errors
    targets = Impersonate(second[~same], threshold=threshold), Evade(references=second[same], threshold=threshold)
    attacked = first.clone()
    for chosen, goal in zip((~same, same), targets, strict=True):
        attacked[chosen] = fa.run(fa.attacks.minimal_pgd(), goal, model, first[chosen]).images
    assert ((cosine(model, attacked, second) >= threshold) != same).all()
    defence = PairAttackAsDefence(attack=PGD, side="gallery")
    for queries, right in ((attacked, True), (first, False)):
        pairs = defence.attacked(model, queries, second, threshold=threshold)
        assert (((cosine(model, *pairs) >= threshold) == same) == right).all()


def test_names_and_precision():
    assert PairAttackAsDefence(attack=PGD).name == "pair(pgd)"
    assert PairAttackAsDefence(attack=PGD, side="query").name == "pair(pgd):query"
    assert PairAttackAsDefence(attack=PGD).run_in("bf16").engine.precision == "bf16"


def test_errors_of_attacks_on_pairs(model, faces):
    with pytest.raises(TypeError, match="attack: expected a Recipe, got 'pgd'; use attacks.by_name"):
        PairAttackAsDefence(attack="pgd")
    with pytest.raises(ValueError, match="side: expected one of both, gallery, query, got 'left'"):
        PairAttackAsDefence(attack=PGD, side="left")
    defence = PairAttackAsDefence(attack=PGD)
    with pytest.raises(ValueError, match=r"gallery: expected one image for each query, shape \(3, .* got \(2,"):
        defence.attacked(model, faces(3), faces(2), threshold=0.1)
    with pytest.raises(ValueError, match="seed: expected an integer"):
        defence.attacked(model, faces(1), faces(1, seed=2), threshold=0.1, seed=-1)
    with pytest.raises(ValueError, match="threshold: expected a cosine value"):
        defence.attacked(model, faces(1), faces(1, seed=2), threshold=1.5)
