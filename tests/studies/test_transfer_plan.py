"""What a transfer study is given: pairs, methods as text, thresholds."""

import numpy as np
import pytest

from fastadv import load
from fastadv.attacks.spec import AttackSpec
from fastadv.data import SyntheticFaces
from fastadv.studies.transfer import plan as transfer_plan
from fastadv.studies.transfer.plan import Universal, negative_pairs, parse_method, parse_untargeted

PEOPLE = SyntheticFaces(identities=24, per_identity=2, seed=5)


def test_negative_pairs_come_in_an_order_that_repeats_images_late():
    accepted = np.zeros((3, 3), bool)
    accepted[1, 1] = True
    found = negative_pairs(["a", "b", "c"], ["x", "y", "z"], accepted, 5)
    assert found == [("a", "x"), ("c", "z"), ("a", "y"), ("b", "z"), ("c", "x")]
    with pytest.raises(ValueError, match="pairs: expected at most 8, which no network accepts of 3 x 3 images, got 9"):
        negative_pairs(["a", "b", "c"], ["x", "y", "z"], accepted, 9)


def test_methods_are_read_from_text():
    assert parse_method("fim") == AttackSpec(name="fim")
    assert parse_method("fim:13") == AttackSpec(name="fim", steps=13)
    spec = parse_method("dfanet-fim:200,rate=0.05")
    assert (spec, spec.rate) == (AttackSpec(name="dfanet-fim", steps=200, settings=(("rate", "0.05"),)), 0.05)
    assert spec.label == "dfanet-fim:200,rate=0.05"
    for wrong in ("fmi", "fim:", "fim:0", "fim:x", "dfanet-fim,rate"):
        with pytest.raises(ValueError, match="expected"):
            parse_method(wrong)
    with pytest.raises(ValueError, match="single network, got 'e-fim', which works on several"):
        parse_method("e-fim")


def test_the_steps_of_gd_uap_are_its_own():
    assert parse_untargeted("gd-uap") == parse_untargeted("gd-uap:40000") == Universal(steps=40_000)
    assert (parse_untargeted("gd-uap").label, parse_untargeted("gd-uap:200").label) == ("gd-uap", "gd-uap:200")
    assert parse_untargeted("fim:13") == parse_method("fim:13")
    for text, error in (
        ("gd-uap:x", "method: expected gd-uap or gd-uap:STEPS, got 'gd-uap:x'"),
        ("gd-uap:0", "method: expected gd-uap or gd-uap:STEPS"),
        ("gd-uap:1048576", "steps: expected a number below 2\\*\\*20, got 1048576"),
        ("gd-uap,rate=1", "method: expected"),
    ):
        with pytest.raises(ValueError, match=error):
            parse_untargeted(text)


def test_gamma_of_a_skip_gradient_is_a_setting():
    spec = parse_method("s-fim:9,gamma=0.5")
    assert spec.label == "s-fim:9,gamma=0.5"
    assert spec.recipe().surrogate.skip.gamma == 0.5
    assert spec.recipe().steps == 9
    for text, error in (
        ("s-fim,gamma=2", r"gamma: expected a number in \(0, 1\], got 2.0"),
        ("s-fim,gamma=x", "gamma of s-fim: expected a value of the type float, got 'x'"),
        ("fim,gamma=0.5", r"set: expected an option of fim \(.*\), got 'gamma'"),
    ):
        with pytest.raises(ValueError, match=error):
            parse_method(text)


def test_an_old_drop_rate_does_not_become_a_radius():
    with pytest.raises(ValueError, match=r"--eps of the study, got 'dfanet-fim:9@0.05'; .* dfanet-fim:9,rate=0.05$"):
        parse_method("dfanet-fim:9@0.05")


def test_thresholds_need_enough_negatives():
    with pytest.raises(
        ValueError, match="far: expected a rate that 10 negative pairs can measure, got 0.001; needs at least 1,000"
    ):
        transfer_plan.calibrate(
            PEOPLE, PEOPLE.pairs(20, seed=1), load("synth-vgg"), far=(0.1, 1e-3), progress=lambda *_: None
        )
    for far in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="far: expected a rate above 0, up to 1, got"):
            transfer_plan.check_far((far,), PEOPLE.pairs(20, seed=1))
