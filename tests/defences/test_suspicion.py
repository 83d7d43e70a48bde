"""Each sign of gradient masking, on a case made to show it and on one that does not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastadv.defences import BitDepth, Chain, Trial, gradient_ratio, suspicions
from fastadv.models import FaceModel

N = 100


def trial(attack="fim", family="iterative", eps=8 / 255, threat="perfect", hits=50, l2=2.0, **more) -> Trial:
    """The first ``hits`` of 100 images succeed."""
    return Trial(
        attack=attack,
        family=family,
        eps=eps,
        threat=threat,
        white_box=threat != "zero",
        hits=np.arange(N) < hits,
        l2=np.full(N, l2),
        **more,
    )


def signs(*trials, ratio=None):
    return [flag.sign for flag in suspicions(trials, gradient_ratio=ratio)]


HONEST = (
    trial("ffm", "one-step", hits=40),
    trial("ffm", "one-step", threat="zero", hits=10),
    trial("fim", hits=80),
    trial("fim", threat="zero", hits=20),
    trial("fim", eps=16 / 255, hits=95),
    trial("noise-uniform", "noise", None, hits=90, l2=30.0),
)


def test_an_honest_evaluation_raises_nothing():
    assert suspicions(HONEST, gradient_ratio=0.4) == ()
    assert suspicions((), gradient_ratio=None) == ()


def test_one_step_beats_iterative():
    found = suspicions([trial("ffm", "one-step", hits=60), trial("fim", hits=30), trial("pgd", hits=40)])
    assert [f.sign for f in found] == ["one-step"]
    assert found[0].text == "one step beats many: ffm 8/255 (perfect) 60.0%, pgd 8/255 (perfect) 40.0%"
    # one iterative attack that is as good clears it; so do another radius, another threat model and chance
    assert signs(trial("ffm", "one-step", hits=60), trial("fim", hits=30), trial("pgd", hits=60)) == []
    assert signs(trial("ffm", "one-step", hits=60), trial("fim", eps=4 / 255, hits=30)) == []
    assert signs(trial("ffm", "one-step", hits=60), trial("fim", threat="perfect:8", hits=30)) == []
    assert signs(trial("ffm", "one-step", hits=60), trial("fim", hits=57)) == []


def test_of_two_that_look_for_the_smallest_change_one_may_win_by_changing_more():
    pair = {"eps": None, "hits": 95, "attack": "minimal-fgsm", "family": "one-step"}
    assert signs(trial(**pair, l2=1.5), trial("deepfool", eps=None, hits=70, l2=0.6)) == []
    assert signs(trial(**pair, l2=0.5), trial("deepfool", eps=None, hits=70, l2=0.6)) == ["one-step"]


def test_success_with_a_detector_is_not_compared_with_success_without():
    blind, adaptive = trial(threat="zero", hits=90), trial(threat="adaptive", hits=30, watched=True)
    noise = trial("noise-uniform", "noise", None, hits=60, l2=1.0)
    assert signs(blind, adaptive, noise) == []
    assert signs(blind, trial(threat="adaptive", hits=30), noise) == ["black-box", "noise"]


def test_black_box_beats_white_box():
    found = suspicions([trial(threat="zero", hits=60), trial(hits=30)])
    assert [f.sign for f in found] == ["black-box"]
    assert "fim 8/255 (zero) 60.0%, fim 8/255 (perfect) 30.0%" in found[0].text
    assert signs(trial(threat="zero", hits=60), trial(hits=58)) == []
    assert signs(trial(threat="zero", hits=60), trial(hits=90)) == []
    assert signs(trial(threat="zero", hits=60), trial("pgd", hits=30)) == []


def test_zero_and_broken_gradients():
    assert signs(trial(zero=0.05)) == ["gradients"]
    assert signs(trial(zero=0.04)) == []
    assert signs(trial(threat="zero", zero=1.0)) == []  # says nothing of the defence
    assert signs(trial("noise-uniform", "noise", None, zero=1.0, hits=0)) == []
    assert signs(trial(nonfinite=0.01)) == ["gradients"]


@pytest.mark.parametrize("ratio", [1e-4, 2e3, 0.0, math.inf, math.nan])
def test_vanishing_and_exploding_gradients(ratio):
    assert signs(trial(), ratio=ratio) == ["gradients"]
    assert signs(trial(), ratio=0.01) == signs(trial(), ratio=100.0) == []


def test_success_that_does_not_grow():
    found = suspicions([trial(eps=4 / 255, hits=40), trial(eps=8 / 255, hits=60), trial(eps=32 / 255, hits=40)])
    assert [f.sign for f in found] == ["radius"]
    assert "fim 4/255 (perfect) 40.0%, fim 32/255 (perfect) 40.0%" in found[0].text
    assert signs(trial(eps=4 / 255, hits=40), trial(eps=8 / 255, hits=41)) == []
    assert signs(trial(hits=40), trial(hits=40)) == []  # one radius twice is no larger one
    assert signs(trial(eps=4 / 255, hits=99), trial(eps=8 / 255, hits=99)) == []
    assert signs(trial(eps=4 / 255, threat="zero", hits=40), trial(eps=8 / 255, threat="zero", hits=30)) == []


def test_noise_beats_gradients():
    noise = trial("noise-uniform", "noise", None, hits=70, l2=3.0)
    assert signs(noise, trial(hits=40, l2=3.0)) == ["noise"]
    assert signs(noise, trial("cw-l2", eps=None, hits=70, l2=4.0)) == ["noise"]
    assert signs(noise, trial(hits=90, l2=4.0)) == []
    assert signs(noise, trial(hits=40, l2=1.0)) == []
    assert signs(noise, trial(threat="zero", hits=0)) == []
    assert signs(trial("noise-uniform", "noise", None, hits=0), trial(hits=0)) == []


def test_the_ratio_of_gradients(model, faces):
    x, t = faces(20), faces(20, 2)
    assert gradient_ratio(model, model, x, t) == pytest.approx(1.0)
    assert 1e-3 < gradient_ratio(BitDepth(bits=6).wrap(model), model, x, t) < 1e3


def test_the_ratio_of_a_defence_made_to_mask(faces):
    """A sigmoid that is saturated lets hardly any gradient through; an unrolled logistic map blows it up."""

    class Shaped(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.shape = shape
            self.linear = nn.Linear(768, 4)

        def forward(self, x):
            return self.linear(self.shape(x.flatten(1)))

    def chaos(x):
        for _ in range(40):
            x = 3.99 * x * (1 - x)
        return x

    def build(shape):
        torch.manual_seed(0)
        zero, one = (0.0,) * 3, (1.0,) * 3
        return FaceModel(Shaped(shape), input_size=(16, 16), mean=zero, std=one, name="shaped").eval()

    x, t = faces(6) * 0.9 + 0.05, faces(6, 2) * 0.9 + 0.05
    bare = build(lambda v: v)
    vanishing = gradient_ratio(build(lambda v: torch.sigmoid(80 * (v + 0.5))), bare, x, t)
    exploding = gradient_ratio(build(chaos), bare, x, t)
    assert vanishing < 1e-3 < 1e3 < exploding
    assert signs(trial(), ratio=vanishing) == signs(trial(), ratio=exploding) == ["gradients"]


def before(trial_, count):
    """The same where the first ``count`` of the hits were met by the clean images."""
    return replace(trial_, met=np.arange(N) < count)


def test_what_was_met_before_counts_for_nobody():
    """Fifty images that the defended model gets wrong without an attack hide that noise does what gradients do not."""
    noise = before(trial("noise-uniform", "noise", None, hits=80, l2=3.0), 50)
    weak = before(trial(hits=52, l2=3.0), 50)
    assert (weak.counts.success, weak.counts.met_before, weak.share) == (0.52, 0.5, 0.04)
    (flag,) = suspicions([noise, weak])
    assert flag.sign == "noise"
    assert "noise-uniform (perfect) 60.0% at a median L2 of 3.00, fim 8/255 (perfect) 4.0%" in flag.text


def test_lengths_are_of_what_the_attack_did():
    """Met before: unchanged, so of length 0; they would make any attack look short."""
    made = before(trial(hits=60, l2=2.0), 50)
    moved = replace(made, l2=np.where(np.arange(N) < 50, 0.0, 2.0))
    assert moved.length == moved.size == 2.0
    nothing = before(trial(hits=50, l2=0.0), 50)
    assert (nothing.length, nothing.size, nothing.share) == (math.inf, 0.0, 0.0)
    everything = before(trial(hits=100), 100)
    assert (everything.counts.success_of_rest, everything.share, everything.size) == (None, 0.0, 0.0)


def test_an_attack_that_changes_nothing_is_no_sign_of_noise_that_wins():
    still = before(trial(eps=1e-5, hits=20, l2=0.0), 20)
    noise = before(trial("noise-uniform", "noise", None, hits=90, l2=30.0), 20)
    assert signs(noise, still) == []
    # one without a radius could have looked as far as the noise did
    assert signs(noise, replace(still, attack="cw-l2", eps=None)) == ["noise"]


def test_a_radius_that_gains_nothing_is_found_below_what_was_met_before():
    small, large = before(trial(eps=4 / 255, hits=60), 40), before(trial(eps=16 / 255, hits=60), 40)
    assert signs(small, large) == ["radius"]
    met = before(trial(eps=4 / 255, hits=100), 100)
    assert signs(met, replace(met, eps=16 / 255)) == []


def test_errors(model, faces):
    with pytest.raises(ValueError, match=r"met: expected shape \(100,\) like hits, got \(3,\)"):
        replace(trial(), met=np.zeros(3, bool))
    with pytest.raises(ValueError, match="family: expected one of one-step, iterative, noise, got 'slow'"):
        trial(family="slow")
    with pytest.raises(ValueError, match=r"hits, l2: expected \(N,\) with N >= 1, got \(3,\) and \(2,\)"):
        Trial(
            attack="fim",
            family="iterative",
            eps=None,
            threat="zero",
            white_box=False,
            hits=np.zeros(3, bool),
            l2=np.zeros(2),
        )
    short = Trial(
        attack="f", family="noise", eps=None, threat="zero", white_box=False, hits=np.ones(3, bool), l2=np.ones(3)
    )
    with pytest.raises(ValueError, match=r"trials: expected trials of the same images, got \[3, 100\] of them"):
        suspicions([trial(), short])
    with pytest.raises(ValueError, match="targets: expected one for each image"):
        gradient_ratio(model, model, faces(2), faces(3))
    with pytest.raises(ValueError, match="targets: expected one for each image"):
        gradient_ratio(model, Chain(parts=(BitDepth(),)).wrap(model), faces(0), faces(0))
