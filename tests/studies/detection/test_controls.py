"""Harmless changes: what each does in closed form, and that an image's is its own in any batch and order."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastadv.attacks.spec import parse_attack
from fastadv.data import face_id, render_faces, to_tensor, to_uint8
from fastadv.defences import GaussianBlur, Jpeg, Median, content_key
from fastadv.studies.detection.controls import (
    AFTER,
    CONTROLS,
    UNSEEN,
    Control,
    fitted_controls,
    noise_of_norm,
    parse_control,
    parse_controls,
)

SOME = tuple(
    parse_control(text)
    for text in (
        *("gaussian:6/255", "signs:8/255", "blur:1", "jpeg:75", "resize:0.5", "brightness:1.3", "contrast:0.7"),
        "median:3",
    )
)


@pytest.fixture(scope="module")
def faces():
    images = render_faces([0, 1, 2, 3, 4], [0] * 5, seed=3).images
    return to_tensor(to_uint8(images)), torch.tensor([face_id(f"p{k}/0") for k in range(5)])


def test_noise_has_the_norm_that_is_asked_for(faces):
    images, ids = faces
    for norms in (torch.tensor([0.3, 0.75, 1.5, 3.9, 12.0]), torch.full((5,), 6.0, dtype=torch.float64)):
        made = noise_of_norm(images, norms, ids)
        found = (made.double() - images.double()).flatten(1).norm(dim=1)
        torch.testing.assert_close(found, norms.double(), rtol=2e-4, atol=0)
        assert torch.equal(made, to_tensor(to_uint8(made)))
    assert torch.equal(noise_of_norm(images, torch.zeros(5), ids), images)
    # more than the pixels can change by: nearly all are at an end
    far = noise_of_norm(images, torch.full((5,), 1e9), ids)
    assert ((far == 0) | (far == 1)).float().mean() > 0.85


def test_signs_are_plus_and_minus_eps_in_whole_grey_levels(faces):
    images, ids = faces
    for text, level in (("signs:8/255", 8), ("signs:0.03", 7), ("signs:1/255", 1)):
        change = 255 * (parse_control(text)(images, ids) - images).double()
        inside = (images * 255 >= level) & (images * 255 <= 255 - level)
        assert inside.float().mean() > 0.5
        assert set(change[inside].round().tolist()) == {-float(level), float(level)}
        assert (change[inside] - change[inside].round()).abs().max() < 1e-3
        assert (change[inside] > 0).double().mean() == pytest.approx(0.5, abs=0.01)


def test_gaussian_noise_has_its_standard_deviation(faces):
    _, ids = faces
    grey = to_tensor(np.full((5, 64, 64, 3), 128, np.uint8))
    change = (parse_control("gaussian:6/255")(grey, ids) - grey).double()
    assert change.std() == pytest.approx(((6 / 255) ** 2 + 1 / 12 / 255**2) ** 0.5, rel=0.01)
    assert abs(float(change.mean())) < 2e-4


def test_the_others_are_their_formulas(faces):
    images, ids = faces
    key = content_key(images, 0)

    def rounded(values):
        return (values.clamp(0, 1) * 255).round() / 255

    expected = {
        "blur:1": GaussianBlur(size=7, sigma=1.0)(images, key),
        "jpeg:40": Jpeg(quality=40)(images, key),
        "median:3": Median(size=3)(images, key),
        "brightness:1.3": images * 1.3,
        "contrast:0.7": 0.5 + 0.7 * (images - 0.5),
        "resize:0.5": F.interpolate(
            F.interpolate(images, (56, 56), mode="bilinear", antialias=True), (112, 112), mode="bilinear"
        ),
        "resize:1": images,
    }
    for text, values in expected.items():
        assert torch.equal(parse_control(text)(images, ids), rounded(values)), text
    flat = to_tensor(np.full((2, 112, 112, 3), 77, np.uint8))
    for text in ("blur:2", "resize:0.35", "median:5", "jpeg:75"):
        assert (255 * (parse_control(text)(flat, ids[:2]) - flat)).abs().max() < 1.001, text


@pytest.mark.parametrize("control", [*SOME, "noise"], ids=str)
def test_an_image_is_changed_alike_in_any_batch_and_order(control, faces):
    images, ids = faces
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    def change(order, layout=torch.contiguous_format):
        chosen = images[order].contiguous(memory_format=layout)
        if control == "noise":
            return noise_of_norm(chosen, norms[order], ids[order], seed=4)
        return control(chosen, ids[order], seed=4)

    whole = change([0, 1, 2, 3, 4])
    for order in ([4, 2, 0], [3], [1, 3, 4, 0, 2]):
        for layout in (torch.contiguous_format, torch.channels_last):
            assert torch.equal(change(order, layout), whole[order])
    assert whole.shape == images.shape
    assert torch.equal(whole, to_tensor(to_uint8(whole)))
    assert not torch.equal(whole, images)
    if control == "noise" or control.kind in ("gaussian", "signs"):
        ids = ids + 1
        assert not torch.equal(change([0, 1, 2, 3, 4]), whole)


def test_a_control_is_written_as_name_and_strength():
    for control in (*SOME, *UNSEEN, *AFTER):
        assert parse_control(str(control)) == control
    assert str(Control(kind="gaussian", strength=6 / 255)) == "gaussian:6/255"
    assert str(parse_control("signs:0.03")) == "signs:0.03"
    assert parse_control("jpeg:75") == Control(kind="jpeg", strength=75)
    assert (parse_controls(None), parse_controls([]), parse_controls(["none"])) == (None, None, ())
    assert parse_controls(["blur:1", "jpeg:75"]) == AFTER


def test_the_fit_has_neither_the_strengths_nor_two_kinds_of_the_evaluation():
    found = fitted_controls([parse_attack(text) for text in ("bim:4@8/255", "mi-fgsm@8/255", "fgsm@0.03", "cw-l2")])
    assert [str(c) for c in found if c.kind == "signs"] == ["signs:8/255", "signs:7/255"]
    assert not set(found) & set(UNSEEN)
    alike = fitted_controls([parse_attack(text) for text in ("bim:4@0.03", "fgsm@7/255", "pgd@0.016")])
    assert [str(c) for c in alike if c.kind == "signs"] == ["signs:7/255", "signs:4/255"]
    assert set(alike) & set(UNSEEN) == {parse_control("signs:4/255")}  # the evaluation counts it as fitted
    kinds = {control.kind for control in found}
    assert {control.kind for control in UNSEEN} - kinds == {"median", "contrast"}
    assert kinds < {control.kind for control in UNSEEN} == set(CONTROLS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blurr:1", "control: expected gaussian:SIGMA, .* or median:SIZE, got 'blurr'"),
        ("blur", "control: expected gaussian:SIGMA, .*, got 'blur'"),
        ("blur:x", "control: expected gaussian:SIGMA, .*, got 'blur:x'"),
        ("blur:9", r"control: expected a standard deviation in \[0.1, 5\] pixels for blur, got 9"),
        ("jpeg:75.5", r"control: expected a whole quality in \[1, 95\] for jpeg, got 75.5"),
        ("median:4", r"control: expected an odd size in \[3, 7\] for median, got 4"),
        ("signs:0.001", r"control: expected a size in \[1/255, 1\] for signs, got 0.001"),
        ("resize:2", r"control: expected a ratio in \[0.05, 1\] for resize, got 2"),
        ("brightness:-1", "control: expected gaussian:SIGMA"),
    ],
)
def test_a_control_that_cannot_be_is_refused(text, expected):
    with pytest.raises(ValueError, match=expected):
        parse_control(text)


def test_a_control_comes_once(plan):
    twice = (parse_control("blur:1"), parse_control("blur:1.0"))
    with pytest.raises(ValueError, match="control: expected each one once, got blur:1 twice"):
        plan.config(controls=twice)
    for name, count in itertools.product(("runs", "also_natural"), (2,)):
        with pytest.raises(ValueError, match=f"{name}: expected different folders, got a, a"):
            plan.config(**{name: ("a",) * count})
