"""One type for an attack: every name gives it, every function takes it, and what is none is told the way over."""

import inspect
from dataclasses import replace

import pytest
import torch
from small import grey_images, linear_model

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import APGD, CarliniWagner, Linf, MinimalEps, Misclassify, Recipe, SignGradient
from fastadv.defences import AttackAsDefence, PerfectKnowledge, ZeroKnowledge
from fastadv.engine import Job, stream_jobs, trace
from fastadv.runs.goals import GoalChoice, check_goal
from fastadv.runs.identity import describe
from fastadv.studies.identify import assign, identify
from fastadv.studies.talfw.measure import choose_targets
from fastadv.studies.verify import verify
from fastadv.surrogates import InputDiversity, Surrogate

MODEL, X, LABELS = linear_model(), grey_images(3), torch.tensor([0, 1, 0])
GOAL = Misclassify(LABELS)
JOB = Job(name="0", id=0, image=X[0], goal=GOAL.row(0))
FACES = fa.data.SyntheticFaces(identities=2, per_identity=2, seed=1)
ROLES = assign(FACES.names, enrol=1)
PAIRS = FACES.pairs(2, seed=1, folds=1)
MACHINE = SignGradient(budget=Linf(8 / 255), steps=3, step_size=2 / 255, random_start=True, name="pgd")


@pytest.mark.parametrize("entry", attacks.list(), ids=lambda entry: entry.name)
def test_every_named_attack_is_a_recipe_and_says_so(entry):
    made = entry.make(**({"others": [MODEL]} if entry.ensemble else {}))
    assert type(made) is Recipe
    assert inspect.signature(entry.make).return_annotation is Recipe
    assert list(inspect.signature(entry.make).parameters) == list(entry.defaults)


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("pgd", MACHINE),
        ("apgd", APGD(budget=Linf(8 / 255), steps=3)),
        ("cw-l2", CarliniWagner(inner_steps=3)),
        (
            "minimal-bim",
            MinimalEps(
                attack=SignGradient(budget=Linf(8 / 255), steps=3, step_size=2.5 * 8 / 255 / 3, name="bim"),
                first=0.5 / 255,
                largest=128 / 255,
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")
def test_a_state_machine_of_ones_own_gives_the_bytes_of_the_named_attack(name, machine):
    given = {"step_size": 2 / 255} if name == "pgd" else {}
    named = attacks.by_name(name, steps=3, **given)
    assert named == Recipe(machine)
    one, other = (fa.run(recipe, GOAL, MODEL, X, seed=5) for recipe in (named, Recipe(attack=machine)))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.ticks, other.ticks)
    assert describe(named) == describe(Recipe(machine))


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (attacks.pgd(), "Recipe('pgd', linf 8/255, 40 steps)"),
        (attacks.fgsm(eps=0.03), "Recipe('fgsm', linf 0.03, 1 step)"),
        (attacks.deepfool(), "Recipe('deepfool', smallest change, 50 steps)"),
        (attacks.di_fim(steps=9), "Recipe('di-fim', linf 10/255, 9 steps, InputDiversity)"),
    ],
)
def test_a_recipe_in_a_line(recipe, text):
    assert repr(recipe) == text


def test_a_recipe_moves_on_another_surrogate():
    recipe = replace(attacks.pgd(steps=3), surrogate=Surrogate(diversity=InputDiversity()))
    assert recipe == Recipe(attacks.pgd(steps=3).attack, surrogate=Surrogate(diversity=InputDiversity()))
    assert (recipe.name, recipe.budget, recipe.steps) == ("pgd", Linf(8 / 255), 3)


DOORS = {
    "run": lambda given: fa.run(given, GOAL, MODEL, X),
    "attack": lambda given: fa.attack(given, MODEL, X, LABELS),
    "attack with eps": lambda given: fa.attack(given, MODEL, X, LABELS, eps=0.1),
    "stream_jobs": lambda given: next(stream_jobs(given, [JOB], MODEL)),
    "trace": lambda given: next(trace(given, GOAL, MODEL, X, at=[1])),
    "stream": lambda given: next(fa.stream(given, lambda face: GOAL.row(0), MODEL, FACES)),
    "unaware": lambda given: ZeroKnowledge().attacker(given, MODEL, None),
    "white-box": lambda given: PerfectKnowledge().attacker(given, MODEL, None),
    "defence": lambda given: AttackAsDefence(attack=given),
    "verify": lambda given: verify(FACES, PAIRS, MODEL, attack=given),
    "identify": lambda given: identify(FACES, ROLES, MODEL, neighbours=1, attack=given),
    "talfw": lambda given: choose_targets(None, given),
    "goals": lambda given: check_goal(given, "evade"),
    "aim": lambda given: GoalChoice(goal="evade", threshold=0.5).check_attack(given),
    "identity": describe,
}
"""Every function that takes an attack from a user."""


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_recipe_is_told_the_way_over(door):
    for given, text in (
        (MACHINE, r"SignGradient\(budget=Linf.*; write Recipe\(SignGradient\(\.\.\.\)\)$"),
        (SignGradient, r"<class '.*'>; write Recipe\(SignGradient\(\.\.\.\)\)$"),
        (attacks.pgd, r"<function pgd at .*>; call it$"),
        ("pgd", r"'pgd'; use attacks\.by_name\('pgd'\)$"),
        (3, "3$"),
        (torch.zeros(2), r"a Tensor of torch\.float32 of shape \(2,\)$"),
    ):
        if isinstance(given, str) and door.startswith("attack"):
            continue  # fastadv.attack takes names
        with pytest.raises(TypeError, match=f"^attack: expected a Recipe, got {text}"):
            DOORS[door](given)


def test_a_recipe_is_of_a_state_machine_and_a_surrogate():
    way = r"Recipe\('pgd', linf 8/255, 40 steps\); use dataclasses\.replace\(recipe, surrogate=\.\.\.\)$"
    for given, text in (
        (attacks.pgd(), way),
        (attacks.pgd, "<function pgd at .*>; call it$"),
        (SignGradient, "<class '.*SignGradient'>; call it$"),
        ("pgd", r"'pgd'; use attacks\.by_name\('pgd'\)$"),
        (None, "None$"),
    ):
        with pytest.raises(TypeError, match=rf"^attack: expected a state machine such as .*, got {text}"):
            Recipe(given)
    with pytest.raises(TypeError, match=r"^surrogate: expected a Surrogate, got InputDiversity\("):
        Recipe(MACHINE, surrogate=InputDiversity())
    with pytest.raises(TypeError, match="attack: expected a SignGradient, got Recipe; use recipe.attack"):
        MinimalEps(attack=attacks.pgd(), first=0.1, largest=0.5)
