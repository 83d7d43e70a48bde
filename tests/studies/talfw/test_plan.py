"""The adversarial copy of a set of pairs: who goes for whom, and what is refused."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from talfw_pairs import EPS, PAIRS, make, name, pair, pixels
from torch.nn import functional as F

import fastadv as fa
from fastadv import attacks
from fastadv.data import LFW, IdentityFolder, Pair, PairBin, PairError, face_id, read_landmarks, to_uint8
from fastadv.data.alignment import template
from fastadv.engine import Engine
from fastadv.studies.talfw.measure import Aim, check_threshold, choose_targets, plan
from fastadv.surrogates import Ensemble, Surrogate


def test_an_image_goes_for_its_negative_partners_and_without_any_leaves_its_positive_ones(lfw):
    aims = plan(LFW(lfw), PAIRS)
    assert aims == [
        Aim(name=name(0, 1), goal="impersonate", partners=(name(2, 1), name(3, 1))),
        Aim(name=name(1, 1), goal="evade", partners=(name(1, 2),)),
        Aim(name=name(2, 2), goal="evade", partners=(name(2, 3), name(2, 1))),
        Aim(name=name(3, 2), goal="impersonate", partners=(name(1, 3), name(0, 3))),
    ]


def test_one_target_is_one_that_stays_as_it_is(lfw):
    hub, left, right = (0, 1), (1, 1), (2, 1)
    pairs = [pair(hub, left), pair(hub, right), pair(hub, (0, 2)), pair(left, (1, 2)), pair(left, (3, 1))]
    both = plan(LFW(lfw), pairs)
    assert [(a.name, a.partners) for a in both] == [
        (name(0, 1), (name(1, 1), name(2, 1))),
        (name(1, 1), (name(0, 1), name(3, 1))),
    ]
    one = plan(LFW(lfw), pairs, targets="one")
    assert [a.partners for a in one] == [(name(2, 1),), (name(3, 1),)]


def test_all_targets_are_one_direction(made, lfw, model):
    """An image's goal has the mean direction u of its partners; cos(F(x), u) rises as the sum of the cosines does."""
    source = LFW(lfw)
    aim = plan(source, PAIRS)[0]
    image = source.load(aim.name).image[None]
    partners = model(torch.stack([source.load(partner).image for partner in aim.partners])).detach()
    u = F.normalize(partners.sum(0, keepdim=True), dim=1)
    goal, attack = fa.Impersonate(u, threshold=1.0), attacks.fim(eps=EPS, steps=20)
    alone = fa.run(attack, goal, model, image, ids=[face_id(aim.name)], engine=Engine(batch=4))
    np.testing.assert_array_equal(
        pixels(made[0] / "crops" / "images" / f"{aim.name}.png"), to_uint8(alone.images[0]).astype(int)
    )
    double = copy.deepcopy(model).double()
    x = image.double().requires_grad_(True)
    own = double(x)
    (by_sum,) = torch.autograd.grad((own @ partners.double().T).sum(), x, retain_graph=True)
    (by_one,) = torch.autograd.grad((own @ u.double().T).sum(), x)
    assert float(F.cosine_similarity(by_sum.flatten(), by_one.flatten(), dim=0)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ((), {}, "pairs: expected at least one, got none"),
        ([pair((0, 1), (1, 9))], {}, "pairs: expected images that are there, got Bo/Bo_0009"),
        (PAIRS, {"targets": "most"}, "targets: expected one of all, one, got 'most'"),
    ],
)
def test_a_plan_refuses_what_it_cannot_do(pairs, options, message, lfw):
    with pytest.raises(ValueError, match=message):
        plan(LFW(lfw), pairs, **options)


def test_a_plan_needs_image_files_crops_and_landmarks(lfw, tmp_path):
    with pytest.raises(PairError, match="expected two images in each"):
        plan(LFW(lfw), [pair((0, 1), (0, 1))])
    with pytest.raises(ValueError, match=r"data: expected a source of aligned crops, got one of whole files"):
        plan(LFW(lfw, size=None), PAIRS)
    some = {k: v for k, v in read_landmarks(lfw / "landmarks.txt").items() if not k.startswith("Cy")}
    with pytest.raises(ValueError, match="landmarks: expected a line for every image of the pairs, .* Cy/Cy_00"):
        plan(LFW(lfw, landmarks=some), PAIRS)
    spaced = tmp_path / "faces" / "A b"
    spaced.mkdir(parents=True)
    for k in "12":
        shutil.copy(lfw / "images" / "Bo" / "Bo_0001.png", spaced / f"{k}.png")
    points = {f"A b/{k}": template(112) for k in "12"}
    with pytest.raises(ValueError, match="data: expected names without white space"):
        plan(IdentityFolder(spaced.parent, landmarks=points), [Pair(first="A b/1", second="A b/2", same=True)])


def test_a_packed_set_must_be_unpacked(lfw):
    class Packed(PairBin):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="data: expected a folder of image files, got Packed; unpack it first"):
        plan(Packed(), PAIRS)


def test_targets_follow_what_the_attack_can(model):
    plain = attacks.fim()
    other = fa.FaceModel(model.backbone, mean=(0.5,) * 3, std=(0.5,) * 3, name="other").eval()
    several = replace(plain, surrogate=Surrogate(ensemble=Ensemble(others=(other,))))
    assert choose_targets(None, plain) == "all"
    assert choose_targets("one", plain) == "one"
    assert choose_targets(None, several) == "one"
    with pytest.raises(ValueError, match="targets: expected one for fim, which compares with a single image, got all"):
        choose_targets("all", several)
    with pytest.raises(ValueError, match="targets: expected one of all, one, got 'both'"):
        choose_targets("both", plain)


def test_a_threshold_is_a_cosine_and_measured_on_both_classes(lfw, model, tmp_path):
    check_threshold(0.3, PAIRS[:1])
    check_threshold(None, PAIRS)
    with pytest.raises(ValueError, match=r"threshold: expected a cosine value in \[-1, 1\], got 3"):
        check_threshold(3, PAIRS)
    with pytest.raises(ValueError, match="threshold: expected a number for pairs of one class only"):
        check_threshold(None, PAIRS[:2])
    with pytest.raises(ValueError, match="threshold: expected a number for pairs of one class only"):
        make(LFW(lfw), PAIRS[:2], model, tmp_path / "out")
    summary = make(LFW(lfw), [p for p in PAIRS if not p.same], model, tmp_path / "negative", threshold=0.5)
    assert (summary.threshold, summary.evasion) == (0.5, None)
