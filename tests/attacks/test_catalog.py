"""The catalogue: the papers' parameters."""

import pytest

from fastadv import attacks
from fastadv.attacks import CATALOG, L2, Linf, SignGradient, by_name, fim_steps


def test_the_papers_step_counts():
    assert fim_steps(10 / 255) == 13
    assert fim_steps(8 / 255) == 10
    assert fim_steps(16 / 255) == 20
    assert fim_steps(40 / 255) == 44
    assert fim_steps(0.1 / 255) == 1


def test_recipes_have_the_papers_parameters():
    eps = 10 / 255
    assert attacks.fgsm(eps=eps) == SignGradient(budget=Linf(eps), steps=1, step_size=eps, name="fgsm")
    assert attacks.itgsm(eps=eps) == SignGradient(budget=Linf(eps), steps=13, step_size=1 / 255, name="itgsm")
    assert attacks.fim(eps=eps) == SignGradient(budget=Linf(eps), steps=13, step_size=1 / 255, name="fim")
    assert attacks.m_fim(eps=eps).momentum == 1.0
    assert attacks.m_fim(eps=eps).norm == "l1"
    assert attacks.mi_fgsm(eps=eps, steps=5).step_size == pytest.approx(eps / 5)
    assert attacks.mi_fgsm_l2(eps=3.0, steps=6).budget == L2(3.0)
    assert attacks.mi_fgsm_l2(eps=3.0, steps=6).step_size == pytest.approx(0.5)
    assert attacks.pgd(eps=eps).steps == 40
    assert attacks.pgd(eps=eps).random_start
    assert attacks.bim(eps=eps).steps == 30


@pytest.mark.parametrize("name", CATALOG)
def test_every_name_builds_itself(name):
    attack = by_name(name, eps=0.03)
    assert attack.name == name
    assert attack.budget.eps == 0.03
    assert attack.budget.norm == CATALOG[name].norm
    if CATALOG[name].steps:
        assert by_name(name, eps=0.03, steps=7).steps == 7


def test_a_wrong_name_or_parameter_is_refused():
    with pytest.raises(ValueError, match="attack must be one of fgsm, .* got 'fgms'"):
        by_name("fgms")
    with pytest.raises(ValueError, match="fgsm is a one-step attack and takes no steps, got steps=3"):
        by_name("fgsm", steps=3)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("budget", 0.1, r"budget must be Linf\(eps\) or L2\(eps\), got 0.1"),
        ("steps", 0, "steps must be an integer of at least 1, got 0"),
        ("steps", 2.5, "steps must be an integer"),
        ("step_size", 0.0, "step_size must be a positive number, got 0.0"),
        ("momentum", -1.0, "momentum must be None or a number of at least 0"),
        ("norm", "l3", "norm must be 'l1' or 'l2', got 'l3'"),
        ("margin", -0.1, "margin must be a number of at least 0"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    good = {"budget": Linf(0.1), "steps": 3, "step_size": 0.01}
    with pytest.raises(ValueError, match=text):
        SignGradient(**{**good, field: value})
