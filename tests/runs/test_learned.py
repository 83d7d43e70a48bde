"""A face is embedded once, whether it is attacked or another one's target; the rows are those of targets as images."""

import pytest
import torch
from torch import nn

import fastadv as fa
from fastadv.core.spent import Spent
from fastadv.data import RunFolder, SyntheticFaces
from fastadv.engine import Engine
from fastadv.models.small_mobile import SmallMobile
from fastadv.runs import Work
from fastadv.runs.attack import attack_folder, next_identity
from fastadv.runs.goals import GoalChoice
from fastadv.runs.learned import Learned
from fastadv.runs.production import Order, produce

PEOPLE = SyntheticFaces(identities=32, per_identity=1, seed=3)
MODEL = fa.load("synth-mobile")
ATTACK = fa.attacks.bim(steps=1)
WORK = {"engine": Engine(batch=4), "seed": 1}


def passes(call):
    """Images that pass the network without a gradient."""
    seen = []

    def count(module, given):
        if isinstance(module, SmallMobile) and not given[0].requires_grad:
            seen.append(len(given[0]))

    hook = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        made = call()
    finally:
        hook.remove()
    return made, sum(seen)


def rows(goal, *, learned):
    orders = next_identity(PEOPLE.names)
    aim = GoalChoice(goal=goal, threshold=0.3)
    known = aim.learns(PEOPLE, MODEL, ATTACK, orders) if learned else None
    goal_of = aim.goals(PEOPLE, MODEL, learned=known)
    return produce(
        orders, goal_of, PEOPLE, ATTACK, MODEL, Work(**WORK), goal_name=goal, known={} if known is None else known
    )


@pytest.mark.parametrize("goal", ["impersonate", "evade"])
def test_the_rows_are_those_of_targets_as_images(goal):
    rows("evade", learned=False)  # checks the network, which takes passes too
    by_image, many = passes(lambda: rows(goal, learned=False))
    by_embedding, few = passes(lambda: rows(goal, learned=True))
    for a, b in zip(by_image, by_embedding, strict=True):
        assert (a.name, a.linf) == (b.name, b.linf)
        assert a.score_before == pytest.approx(b.score_before, abs=1e-5)
        assert a.score_after == pytest.approx(b.score_after, abs=1e-3)  # rounding decides the sign of a gradient near 0
    # clean, target and attacked images; learned: each face, and attacked images. Preparing a network takes a few more
    assert 3 * 32 <= many < 3 * 32 + 16
    assert 2 * 32 <= few < 2 * 32 + 16


def test_nothing_is_learned_where_images_are_needed_or_nothing_is_compared():
    orders = next_identity(PEOPLE.names)
    alone = [Order(name=name, source=name) for name in PEOPLE.names]
    evade, match = GoalChoice(goal="evade", threshold=0.3), GoalChoice(goal="match", threshold=0.3)
    assert evade.learns(PEOPLE, MODEL, ATTACK, alone) is None
    assert evade.learns(PEOPLE, MODEL, fa.attacks.dfanet_fim(steps=1, rate=0.1), orders) is None
    assert match.learns(PEOPLE, MODEL, ATTACK, orders) is None
    assert isinstance(evade.learns(PEOPLE, MODEL, ATTACK, orders), Learned)


def test_each_face_is_computed_once_while_it_is_remembered():
    learned = Learned(PEOPLE, MODEL, "embedding")
    names = PEOPLE.names
    with PEOPLE.stream(names[:4]) as faces:
        loaded = list(faces)
    _, first = passes(lambda: learned.learn(loaded, names[2:6], Spent()))
    _, second = passes(lambda: learned.learn(loaded, names[:6], Spent()))
    assert (first, second) == (32, 0)
    assert sorted(learned) == sorted(names[:6])
    with torch.no_grad():
        expected = MODEL(torch.stack([face.image for face in loaded]))
    torch.testing.assert_close(torch.stack([learned[face.name] for face in loaded]), expected, rtol=1e-4, atol=1e-5)


def test_what_is_asked_for_again_is_not_forgotten():
    names = PEOPLE.names
    learned = Learned(PEOPLE, MODEL, "embedding", remembered=4)
    with PEOPLE.stream(names[:8]) as faces:
        loaded = list(faces)
    for face in loaded[1:]:  # one target for all
        learned.learn([face], names[:1], Spent())
        assert {face.name, names[0]} <= set(learned)
    assert len(learned) == 4
    with torch.no_grad():
        expected = MODEL(torch.stack([loaded[0].image, loaded[-1].image]))
    found = torch.stack([learned[names[0]], learned[loaded[-1].name]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    learned.learn(loaded, [], Spent())  # more than are remembered
    assert len(learned) == 8


def test_a_whole_folder_is_attacked_by_embeddings(tmp_path):
    with RunFolder.open(tmp_path / "run", {}) as folder:
        aim = GoalChoice(goal="impersonate", threshold=0.3)
        summary = attack_folder(
            PEOPLE, MODEL, ATTACK, aim, Work(folder=folder, **WORK), orders=next_identity(PEOPLE.names)
        )
    assert summary.images == 32
