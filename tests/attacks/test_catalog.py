"""The catalogue: the papers' parameters."""

from types import ModuleType
from typing import Any

import pytest

from fastadv import attacks
from fastadv.attacks import CATALOG, L2, Linf, Recipe, SignGradient, by_name, fim_steps
from fastadv.attacks.budget import Box
from fastadv.attacks.registry import collect, named
from fastadv.models import load
from fastadv.surrogates import FeatureDropout


def moves(recipe: Recipe) -> Any:
    """The attack itself, also where another one looks for its smallest radius."""
    return getattr(recipe.attack, "attack", recipe.attack)


def test_the_papers_step_counts():
    assert fim_steps(10 / 255) == 13
    assert fim_steps(8 / 255) == 10
    assert fim_steps(16 / 255) == 20
    assert fim_steps(40 / 255) == 44
    assert fim_steps(0.1 / 255) == 1


def test_recipes_have_the_papers_parameters():
    eps = 10 / 255
    for made, wanted in (
        (attacks.fgsm(eps=eps), SignGradient(budget=Linf(eps), steps=1, step_size=eps, name="fgsm")),
        (attacks.itgsm(eps=eps), SignGradient(budget=Linf(eps), steps=13, step_size=1 / 255, name="itgsm")),
        (attacks.fim(eps=eps), SignGradient(budget=Linf(eps), steps=13, step_size=1 / 255, name="fim")),
    ):
        assert made == Recipe(wanted)
    assert attacks.m_fim(eps=eps).attack.momentum == 1.0
    assert attacks.m_fim(eps=eps).attack.norm == "l1"
    assert attacks.mi_fgsm(eps=eps, steps=5).attack.step_size == pytest.approx(eps / 5)
    assert attacks.mi_fgsm_l2(eps=3.0, steps=6).budget == L2(3.0)
    assert attacks.mi_fgsm_l2(eps=3.0, steps=6).attack.step_size == pytest.approx(0.5)
    assert attacks.pgd(eps=eps).steps == 40
    assert attacks.pgd(eps=eps).attack.random_start
    assert attacks.bim(eps=eps).steps == 30


@pytest.mark.parametrize("name", CATALOG)
def test_every_name_builds_itself(name):
    entry = CATALOG[name]
    others = [load("synth-vgg")] if entry.ensemble else []
    given = {"eps": 0.03} if entry.eps else {}
    recipe = by_name(name, **given, others=others)
    assert isinstance(recipe, Recipe)
    assert recipe.name == recipe.attack.name == name
    assert (recipe.budget, recipe.steps) == (recipe.attack.budget, recipe.attack.steps)
    assert repr(recipe).startswith(f"Recipe('{name}', ")
    assert len(repr(recipe)) <= 120
    if entry.eps:
        assert recipe.attack.budget.eps == 0.03
        assert recipe.attack.budget.norm == entry.norm
    else:
        assert recipe.attack.budget == Box()
        with pytest.raises(
            ValueError, match=f"eps: expected none, since {name} looks for the smallest perturbation, got 1"
        ):
            by_name(name, eps=1.0)
    assert (recipe.surrogate.dropout is not None) == entry.masks
    assert (recipe.surrogate.ensemble is not None) == entry.ensemble
    if entry.steps:
        # of an attack that runs another one several times, they are the steps of each run
        assert 7 in vars(moves(by_name(name, **given, steps=7, others=others))).values()
    if entry.masks:
        masked = by_name(name, rate=0.2, others=others)
        assert masked.surrogate.dropout == FeatureDropout(rate=0.2)


@pytest.mark.parametrize("name", CATALOG)
def test_an_entry_says_where_its_recipe_is_from_and_what_it_takes(name):
    entry = CATALOG[name]
    assert entry.name == name
    assert entry.source[-1] != "."
    assert entry.make.__doc__.endswith(f"\n\nSource: {entry.source}.")
    others = {"others": [load("synth-vgg")]} if entry.ensemble else {}
    given = {**entry.defaults, **others}
    assert entry.make(**given) == entry.make(**others)
    assert entry.make(**others).attack.needs_gradient == entry.gradient
    assert entry.level in ("logits", "embedding", "features", "gallery")


def test_the_catalogue_has_the_recipes_of_a_module_in_the_order_of_its_text():
    module = ModuleType("recipes")

    @named("a step", level="logits", source="a paper, eq. 1", norm="l2")
    def one_step(*, eps: float = 0.1) -> SignGradient:
        """A step."""
        return SignGradient(budget=Linf(eps), steps=1, step_size=eps)

    @named("no step", level="logits", source="another paper", gradient=False)
    def no_step() -> SignGradient:
        return SignGradient(budget=Linf(0.1), steps=1, step_size=0.1)

    vars(module).update(one_step=one_step, helper=len, no_step=no_step)
    found = collect(module)
    assert list(found) == ["one-step", "no-step"]
    assert [entry.family for entry in found.values()] == ["one-step", "noise"]
    assert found["one-step"].defaults == {"eps": 0.1}
    assert (found["one-step"].norm, found["one-step"].eps, found["one-step"].steps) == ("l2", True, False)
    assert one_step.__doc__ == "A step.\n\nSource: a paper, eq. 1."
    assert no_step.__doc__ == "Source: another paper."


def test_recipes_are_made_of_the_parts_that_their_names_say():
    parts = {name: by_name(name) for name in CATALOG if not CATALOG[name].ensemble}
    for name, recipe in parts.items():
        pieces = name.split("-")
        surrogate = recipe.surrogate
        assert (surrogate.diversity is not None) == ("di" in pieces), name
        assert (surrogate.dropout is not None) == ("dfanet" in pieces), name
        assert (surrogate.smoothing is not None) == ("ti" in pieces), name
        assert (surrogate.skip is not None) == (pieces[0] == "s"), name
        if pieces[-1] == "fim":
            assert (moves(recipe).momentum == 1.0) == ("m" in pieces), name
            assert moves(recipe).step_size == 1 / 255
    assert parts["dfanet-di-m-fim"].attack.steps == 1500  # N_max of Zhong and Deng
    assert parts["dfanet-di-m-fim"].attack.budget == Linf(10 / 255)


def test_a_wrong_name_or_parameter_is_refused():
    with pytest.raises(ValueError, match="attack: expected a name in .*, got 'fgms'; did you mean 'fgsm'"):
        by_name("fgms")
    with pytest.raises(ValueError, match="steps: expected none, since fgsm makes one step, got 3"):
        by_name("fgsm", steps=3)
    with pytest.raises(ValueError, match=r"rate: expected none, since fim has no masks, got 0\.1"):
        by_name("fim", rate=0.1)
    with pytest.raises(ValueError, match=r"others: expected at least one other model with e-fim, got \[\]"):
        by_name("e-fim")
    with pytest.raises(ValueError, match=r"others: expected none with fim, got \['synth-vgg'\]"):
        by_name("fim", others=[load("synth-vgg")])


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("budget", 0.1, r"budget: expected Linf\(eps\) or L2\(eps\), got 0.1"),
        ("steps", 0, "steps: expected an integer of at least 1, got 0"),
        ("steps", 2.5, "steps: expected an integer"),
        ("step_size", 0.0, "step_size: expected a positive number, got 0.0"),
        ("momentum", -1.0, "momentum: expected None or a number of at least 0"),
        ("norm", "l3", "norm: expected 'l1' or 'l2', got 'l3'"),
        ("margin", -0.1, "margin: expected a number of at least 0"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    good = {"budget": Linf(0.1), "steps": 3, "step_size": 0.01}
    with pytest.raises(ValueError, match=text):
        SignGradient(**{**good, field: value})
