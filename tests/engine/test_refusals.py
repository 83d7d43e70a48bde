"""What is wrong with a call is named; what is right already is left alone."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from small import LAYERED_SIZE as SIZE
from small import grey_images, strided_model, strided_net
from torch import Tensor, nn

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import CATALOG, ClassifyAs, Evade, Impersonate, Misclassify, by_name
from fastadv.core.errors import ArgumentError, ArgumentTypeError, Error
from fastadv.core.notices import Notice
from fastadv.engine import Engine, Job, stream_jobs, trace

faces = partial(grey_images, size=SIZE)


NET, X = strided_model(), faces(3)
GOAL = Impersonate(faces(3, seed=2), threshold=0.9999)
SMALLEST = [name for name, entry in CATALOG.items() if not entry.eps]


@pytest.mark.parametrize("seed", [3.5, True, -1, 2**64, "7", None])
def test_a_seed_is_an_integer(seed):
    calls = (
        lambda: fa.run(attacks.fgsm(), GOAL, NET, X, seed=seed),
        lambda: next(trace(attacks.pgd(steps=1), GOAL, NET, X, at=[1], seed=seed)),
        lambda: next(stream_jobs(attacks.fgsm(), [], NET, seed=seed)),
    )
    for call in calls:
        with pytest.raises(ArgumentError, match=r"seed: expected an integer in \[0, 2\*\*64\), got"):
            call()


@pytest.mark.parametrize("first", [-1, 1.5, 2**63, True, "0"])
def test_an_id_is_an_integer(first):
    with pytest.raises(ArgumentError, match=r"ids\[0\]: expected an integer in \[0, 2\*\*63\), got"):
        fa.run(attacks.fgsm(), GOAL, NET, X, ids=[first, 1, 2])
    with pytest.raises(ArgumentError, match="id of 'a': expected an integer"):
        list(stream_jobs(attacks.fgsm(), [Job(name="a", id=first, image=X[0], goal=GOAL.row(0))], NET))


def test_ids_may_be_an_array():
    plain = fa.run(attacks.pgd(steps=1), GOAL, NET, X, ids=[4, 5, 6]).images
    assert torch.equal(fa.run(attacks.pgd(steps=1), GOAL, NET, X, ids=torch.tensor([4, 5, 6])).images, plain)
    assert torch.equal(fa.run(attacks.pgd(steps=1), GOAL, NET, X, ids=torch.tensor([4, 5, 6]).numpy()).images, plain)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fa.run("pgd", GOAL, NET, X), r"attack: expected .* got 'pgd'; use attacks.by_name\('pgd'\)"),
        (lambda: fa.run(attacks.pgd, GOAL, NET, X), "attack: expected .*function pgd.*; call it"),
        (lambda: fa.run(attacks.APGD, GOAL, NET, X), "attack: expected a Recipe, got .*APGD.*; write Recipe"),
        (lambda: fa.run(attacks.pgd(), "evade", NET, X), "goal: expected a goal such as .* got str"),
        (
            lambda: fa.run(attacks.pgd(), GOAL, NET.backbone, X),
            "model: expected a FaceModel, got Sequential; use .*wrap",
        ),
        (lambda: fa.run(attacks.pgd(), GOAL, NET, X.numpy()), "images: expected a torch.Tensor .* got ndarray"),
        (
            lambda: list(stream_jobs(attacks.fgsm(), [Job(name="a", id=0, image=X[0].numpy(), goal=GOAL.row(0))], NET)),
            "image 'a': expected a torch.Tensor, got ndarray",
        ),
    ],
)
def test_another_kind_of_thing_is_a_sentence(call, text):
    with pytest.raises(ArgumentTypeError, match=text):
        call()


def test_a_job_has_a_goal_of_one_row():
    with pytest.raises(ArgumentError, match="goal of 'a': expected one row, for its image, got 3"):
        list(stream_jobs(attacks.fgsm(), [Job(name="a", id=0, image=X[0], goal=GOAL)], NET))


@pytest.mark.parametrize("goal", [Misclassify, ClassifyAs])
@pytest.mark.parametrize("name", ["fgsm", "deepfool", "cw-l2", "apgd"])
def test_a_head_of_one_class_is_refused(goal, name):
    with pytest.raises(
        ArgumentError, match="model: expected a class head of two classes or more.* got 1 from .* 'small'"
    ):
        fa.run(by_name(name), goal(torch.zeros(3, dtype=torch.int64)), strided_model(head=nn.Linear(12, 1)), X)


def said_about(head: nn.Module, goal: object) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fa.run(attacks.bim(steps=2), goal, strided_model(head=head), X)
    return [str(w.message) for w in said if w.category is Notice]


def test_a_softmax_at_the_end_of_the_head_is_said_once():
    labels = Misclassify(torch.tensor([0, 1, 2]))
    (text,) = said_about(nn.Sequential(nn.Linear(12, 4), nn.Softmax(1)), labels)
    assert text.startswith("head: the outputs of the head of 'small' look like probabilities")
    for head in (
        nn.Linear(12, 4),
        nn.Sequential(nn.Linear(12, 4), nn.LogSoftmax(1)),
        nn.Sequential(nn.Linear(12, 4), nn.Sigmoid()),
    ):
        assert said_about(head, labels) == []
    assert said_about(nn.Sequential(nn.Linear(12, 4), nn.Softmax(1)), GOAL) == []


@pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")
@pytest.mark.parametrize("name", SMALLEST)
def test_what_is_met_already_is_left_alone_where_the_smallest_change_is_wanted(name):
    met = fa.Evade(references=faces(3, seed=2), threshold=0.999)  # strangers
    entry = CATALOG[name]
    attack = by_name(name, **({"steps": 3} if entry.steps else {}))
    made = fa.run(attack, met, NET, X)
    assert torch.equal(made.images, X)
    assert made.flags == (("met_at_start",),) * 3
    assert made.success.tolist() == [True] * 3
    assert made.ticks.tolist() == [1] * 3
    assert made.l2.tolist() == made.linf.tolist() == [0.0] * 3


@pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")
def test_met_images_among_others_and_more_of_them_than_slots():
    goal = fa.Evade(references=torch.cat([faces(3, seed=2), X[:1], faces(6, seed=3)]), threshold=0.9)
    x = torch.cat([faces(3), torch.round((X[:1] * 0.9) * 255) / 255, faces(6, seed=4)])
    made = fa.run(by_name("noise-gaussian"), goal, NET, x, engine=fa.Engine(slots=2, batch=2))
    alone = [
        fa.run(by_name("noise-gaussian"), goal.row(i), NET, x[i : i + 1], ids=[i], engine=fa.Engine(slots=2, batch=2))
        for i in range(10)
    ]
    assert all(torch.equal(made.images[i], one.images[0]) for i, one in enumerate(alone))
    met = ["met_at_start" in flags for flags in made.flags]
    assert 0 < sum(met) < 10
    assert made.ticks.tolist() == [int(one.ticks) for one in alone]


def test_a_success_that_lacks_the_margin_is_attacked():
    goal = fa.Evade(references=faces(3, seed=2), threshold=0.999)
    attack = fa.Recipe(attacks.CarliniWagner(inner_steps=3, search_steps=1, confidence=1.5))
    with pytest.warns(fa.AttackWarning, match="had reached the goal before"):
        made = fa.run(attack, goal, NET, X)
    assert min(made.ticks.tolist()) > 1


@pytest.mark.parametrize("name", ["deepfool", "deepfool-linf"])
def test_deepfool_away_from_its_own_embedding_leaves_the_picture_and_names_it(name):
    with pytest.warns(fa.AttackWarning, match="3 images had an all-zero gradient at every step"):
        made = fa.run(by_name(name), fa.Evade(threshold=0.3), NET, X)
    assert torch.equal(made.images, X)
    assert made.flags == (("zero_gradient",),) * 3
    assert made.success.tolist() == [False] * 3


class Blind(nn.Module):
    """The same embedding for every image, with a gradient of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :12] * 0 + torch.arange(1.0, 13.0)


@pytest.mark.parametrize(
    "name", [n for n, e in CATALOG.items() if n.startswith("minimal-") or n in ("bim", "pgd", "deepfool")]
)
def test_an_image_without_a_gradient_is_named(name):
    net = fa.FaceModel(Blind(), input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, name="blind").eval()
    steps = {"steps": 2} if CATALOG[name].steps else {}
    with pytest.warns(fa.AttackWarning, match="3 images had an all-zero gradient at every step"):
        made = fa.run(by_name(name, **steps), Impersonate(-torch.ones(3, 12), threshold=0.9), net, X)
    assert made.flags == (("zero_gradient",),) * 3


@pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")
def test_minimal_attacks_with_a_gradient_are_not_named():
    made = fa.run(by_name("minimal-pgd", steps=2), GOAL, NET, X)
    assert made.flags == ((),) * 3


NUMBERS = (0, -1, float("nan"), float("inf"), "x", True)


@pytest.mark.parametrize("name", [n for n, e in CATALOG.items() if not e.ensemble])
def test_a_wrong_number_is_a_sentence_with_every_attack(name):
    entry = CATALOG[name]
    for value in NUMBERS if entry.eps else ():
        with pytest.raises(Error, match="eps: expected a positive number, got"):
            by_name(name, eps=value)
    for value in (*NUMBERS, 2.5) if entry.steps else ():
        with pytest.raises(Error, match="steps(_each)?: expected an integer of at least 1, got"):
            by_name(name, steps=value)


@pytest.mark.parametrize("value", [0, 0.0, -0.1, float("nan"), "x"])
@pytest.mark.parametrize("make", [attacks.bim, attacks.pgd, attacks.pgd_l2])
def test_a_step_size_of_zero_is_not_the_default(make, value):
    with pytest.raises(ArgumentError, match="step_size: expected a positive number"):
        make(step_size=value)
    assert make(step_size=None) == make()


@pytest.mark.parametrize("name", CATALOG)
def test_every_name_of_the_catalogue_can_be_called(name):
    made = getattr(attacks, name.replace("-", "_"))
    others = {"others": [NET]} if CATALOG[name].ensemble else {}
    assert made(**others).name == name
    assert name.replace("-", "_") in attacks.__all__


def test_an_ensemble_of_other_classes_is_refused_by_name():
    few, many = (
        fa.wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, k)), input_size=4, name=f"{k} classes")
        for k in (2, 5)
    )
    goal = fa.Misclassify(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="others: expected class heads of 2 classes .*, got 5 from .*'5 classes'"):
        fa.run(attacks.by_name("e-fim", others=[many]), goal, few, torch.rand(3, 3, 4, 4))


def test_images_of_bytes_are_told_how_they_become_pixels():
    with pytest.raises(ValueError, match=r"got torch\.uint8 .*; use images\.float\(\) / 255"):
        fa.run(attacks.pgd(), GOAL, NET, (X * 255).to(torch.uint8))


@pytest.mark.parametrize(
    ("name", "given", "ours"),
    [
        ("pgd", "alpha", "step_size"),
        ("cw-l2", "lr", "learning_rate"),
        ("mi-fgsm", "decay", "momentum"),
        ("cw-l2", "kappa", "confidence"),
    ],
)
def test_an_option_by_the_name_of_another_library_is_told_ours(name, given, ours):
    with pytest.raises(
        TypeError, match=f"{given}: expected an option of {name} .*, got '{given}'; did you mean '{ours}'"
    ):
        attacks.by_name(name, **{given: 1})


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fa.run(attacks.fim(), Evade(threshold=0.5), strided_model().train(), faces(1)), "train"),
        (
            lambda: fa.run(attacks.fim(), Evade(threshold=0.5), NET, faces(1) * 255),
            r"image '0': expected values in \[0, 1\], got values in \[\d+, 25\d.*; divide by 255",
        ),
        (
            lambda: fa.run(attacks.fim(), Evade(threshold=0.5), NET, faces(1) * torch.nan),
            r"image '0': expected values in \[0, 1\], got NaN",
        ),
        (
            lambda: fa.run(attacks.fim(), Evade(threshold=0.5), NET, faces(1).double()),
            r"image '0': expected float32 of shape \(3, 16, 16\), got torch\.float64 of shape \(3, 16, 16\)",
        ),
        (
            lambda: fa.run(attacks.fim(), Evade(threshold=0.5), NET, faces(1)[..., :8]),
            r"image '0': expected float32 of shape \(3, 16, 16\), got torch\.float32 of shape \(3, 16, 8\)",
        ),
        (
            lambda: fa.run(attacks.fim(), Evade(threshold=0.5), NET, faces(1)[0]),
            "images: expected the shape",
        ),
        (
            lambda: fa.run(attacks.fim(), Impersonate(faces(3), threshold=0.5), NET, faces(2)),
            "one row for each of",
        ),
        (
            lambda: fa.run(attacks.fim(), Misclassify(torch.tensor([1])), NET, faces(1)),
            "head: expected a class head for logits, got 'small' without one",
        ),
        (
            lambda: fa.run(
                attacks.fim(), Misclassify(torch.tensor([7, 7, 7])), strided_model(head=nn.Linear(12, 3)), X
            ),
            "labels: expected numbers below the model's 3 classes, got 7",
        ),
        (
            lambda: fa.run(attacks.fim(), Impersonate(torch.ones(1, 5), threshold=0.5), NET, faces(1)),
            "goal: expected embeddings of 12 numbers like the model's, got 5",
        ),
        (
            lambda: fa.run(attacks.fim(), Evade(threshold=0.5), NET, faces(1), ids=[1, 2]),
            "ids: expected one entry",
        ),
        (
            lambda: fa.run(attacks.fim(), Evade(threshold=0.5), NET, faces(1), seed=-1),
            "seed: expected an integer in",
        ),
        (lambda: Engine(precision="fp8"), "precision: expected one of fp32, tf32, bf16, auto, got 'fp8'"),
        (lambda: Engine(slots=12, batch=8), "slots: expected a multiple of batch = 8, got 12"),
        (lambda: Engine(slots=0), "slots: expected a positive integer"),
        (lambda: Engine(batch=-1), "batch: expected a positive integer"),
        (lambda: Engine(poll=0), "poll: expected a positive integer"),
        (
            lambda: Engine(capture=True).resolve(NET),
            "capture: expected a model on a CUDA device with True, got one on cpu",
        ),
        (
            lambda: (
                Engine(precision="tf32").resolve(NET)
                and fa.run(attacks.fim(), Evade(threshold=0.5), NET, faces(1), engine=Engine(precision="tf32"))
            ),
            "tf32",
        ),
    ],
)
def test_a_users_error_is_one_clear_sentence(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_goals_of_two_kinds_in_one_stream_are_refused():
    x = faces(2)
    mixed = [
        Job(name="a", id=0, image=x[0], goal=Evade(threshold=0.5)),
        Job(name="b", id=1, image=x[1], goal=Evade(threshold=0.6)),
    ]
    with pytest.raises(
        ValueError, match=r"goal of 'b': expected one like the first, Evade\(references=None, threshold=0\.5, metric='"
    ):
        list(stream_jobs(attacks.pgd(steps=1), mixed, strided_model()))


def test_a_network_without_a_gradient_is_refused():
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = strided_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return self.net(x)

    model = fa.FaceModel(Held(), input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="held").eval()
    with pytest.raises(fa.Error, match="model: expected a network whose outputs have a gradient, got one without"):
        fa.run(attacks.fim(), Impersonate(faces(1, seed=2), threshold=0.9), model, faces(1))


def test_an_argument_in_the_place_of_another_is_named_by_its_type():
    model = fa.FaceModel(strided_net(), input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="n").eval()
    with pytest.raises(TypeError) as refused:
        fa.run(attacks.fim(), model, Impersonate(faces(1), threshold=0.9), faces(1))
    assert len(str(refused.value)) < 200
