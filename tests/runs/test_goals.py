"""Which attacks can move towards which goals: the table, and that every command keeps to it."""

import pytest

from fastadv import load
from fastadv.attacks import APGD, CATALOG, Linf, Recipe, by_name
from fastadv.data import RunFolder, SyntheticFaces
from fastadv.runs import Work
from fastadv.runs.goals import CLASSIFIED, COMMANDS, GOALS, IDENTIFIED, GoalChoice, check_goal, goals_of
from fastadv.runs.production import Order
from fastadv.studies.defences import plan as defend_plan
from fastadv.studies.talfw.measure import build, plan
from fastadv.studies.transfer import plan as transfer_plan
from fastadv.studies.verify import verify

PEOPLE = SyntheticFaces(identities=8, per_identity=2, seed=3)
MODEL = load("synth-mobile")
SINGLE = [name for name, entry in CATALOG.items() if not entry.ensemble]


@pytest.mark.parametrize("name", SINGLE)
def test_the_table(name):
    possible = {"knn-df": IDENTIFIED, "apgd-dlr": CLASSIFIED}.get(name, GOALS)
    moves = by_name(name)
    assert goals_of(moves) == possible
    for goal in GOALS:
        if goal in possible:
            check_goal(moves, goal)
        else:
            with pytest.raises(ValueError, match=f"attack: expected one .* the goal {goal}, got {name}, whose goal is"):
                check_goal(moves, goal)


def test_the_ratio_of_logits_is_known_by_what_it_does():
    with pytest.raises(ValueError, match="the goal evade, got mine, whose goal is classify-as or misclassify"):
        check_goal(Recipe(APGD(budget=Linf(0.1), loss="dlr", name="mine")), "evade")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_uses_goals_that_there_are(command):
    assert set(COMMANDS[command]) <= set(GOALS)


@pytest.mark.parametrize("name", ["knn-df", "apgd-dlr"])
def test_calls_from_python_keep_to_it(name, tmp_path):
    moves, pairs = by_name(name), PEOPLE.pairs(4, seed=1, folds=1)
    with pytest.raises(ValueError, match=f"the goal impersonate, got {name}"):
        verify(PEOPLE, pairs, MODEL, attack=moves)
    with pytest.raises(ValueError, match=f"the goal impersonate, got {name}"), RunFolder.open(tmp_path, {}) as folder:
        build([], pairs, PEOPLE, MODEL, moves, Work(folder=folder), out=tmp_path, threshold=0.5)
    with pytest.raises(ValueError, match="attack"):
        defend_plan.read_attack(name)
    with pytest.raises(ValueError, match="method: expected"):
        check_study(name)
    with pytest.raises(ValueError, match="data: expected a folder"):
        plan(PEOPLE, pairs)


def check_study(*names, **more):
    given = {"surrogates": ["v"], "eps": 0.03, "steps": 4, "at": (), "pairs": 4, "images": 2, **more}
    methods = [transfer_plan.parse_method(name) for name in names]
    settings = transfer_plan.TransferSettings(methods=methods, **given)
    transfer_plan.check_plan({"v": load("synth-vgg"), "m": MODEL}, settings)


@pytest.mark.parametrize(
    ("names", "more", "text"),
    [
        (("df",), {}, "method: expected one whose last step is its result, such as fim or pgd, got df, which keeps"),
        (("cw-l2",), {}, "cw-l2"),
        (("apgd",), {}, "got apgd, which keeps the best of its trials"),
        (("fim", "fim"), {}, "method: expected each one once, got fim twice"),
        (("fim,rate=0.1",), {}, "rate: expected none, since fim has no masks"),
        (("ffm:3",), {}, "steps: expected none, since ffm makes one step, got 3"),
        (("fim",), {"surrogates": ["v", "v"]}, "surrogate: expected each one once, got v twice"),
        (("fim",), {"surrogates": ["x"]}, r"surrogate: expected some of v, m, .* got 'x'"),
        (("itgsm",), {"surrogates": ["m"]}, "for m, whose weights bring no class head, got itgsm, which works on logi"),
        (("fim",), {"at": (5,)}, "at: expected at most the 4 steps of the longest method, got 5"),
        (("fim",), {"pairs": 5}, "pairs: expected at most images x images = 4, got 5; give more --images"),
    ],
)
def test_a_transfer_study_is_checked_before_it_begins(names, more, text):
    with pytest.raises(ValueError, match=text):
        check_study(*names, **more)


def test_a_study_that_can_be_finished_passes():
    check_study("fim", "dfanet-fim:2,rate=0.05", "itgsm", "pgd", at=(2,))
    check_study("fim", surrogates=["v+m"])


def test_an_order_without_a_target_is_named():
    goal_of = GoalChoice(goal="impersonate", threshold=0.5).goals(PEOPLE, MODEL)
    with pytest.raises(ValueError, match="target: expected an image for the goal impersonate, got none for a/1"):
        goal_of(Order(name="a/1", source=PEOPLE.names[0]), PEOPLE.load(PEOPLE.names[0]))
