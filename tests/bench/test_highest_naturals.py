import pytest
import torch

from bench import highest_naturals as highest
from fastadv.detection import images_for

NAMES = [f"{'abcdefghij'[k % 10]}/{k}" for k in range(200)]
CALM = NAMES, torch.arange(200).float()  # the highest are j/199 and i/198; 1 % of 200 images are two


def test_the_first_natural_score_that_is_not_flagged_decides():
    groups = {"seen": [(["a/0", "b/1"], torch.tensor([197.5, 196.5])), (["a/0"], torch.tensor([300.0]))]}
    assert highest.rates(CALM, groups) == {"natural": 200, "score_that_decides": 197.0, "seen": 0.75}


def test_images_and_people_are_left_out():
    groups = {"seen": [(["j/199", "a/0"], torch.tensor([194.5, 300.0]))]}
    further = [f"k/{k}" for k in range(100)], torch.full((100,), 250.0)
    found = highest.sensitivity(CALM, further, groups)
    assert found["without_the_two_images"] == {"natural": 198, "score_that_decides": 196.0, "seen": 0.5}
    # j and i have 20 images each, among them 189, 188, 199 and 198; of 160 images one may be flagged
    assert found["without_their_people"] == {"natural": 160, "score_that_decides": 196.0, "seen": 1.0}
    assert found["with_unchanged_sources"] == {"natural": 300, "score_that_decides": 250.0, "seen": 0.5}


def test_a_draw_without_the_people_of_the_highest_has_another_threshold():
    # of ten images none may be flagged, so the highest decides: the person is drawn with a chance of 1 - 0.9^10
    names, scores = [f"p{k}/0" for k in range(10)], torch.arange(10).float()
    assert highest.decided_by_highest((names, scores), count=1) == pytest.approx(1 - 0.9**10, abs=0.03)
    assert highest.decided_by_highest((names, scores), count=10) == 1


def test_the_interval_of_the_rate_narrows_with_the_images():
    low, high = highest.rate_interval(188)
    assert 0.001 < low < 0.0188 < high < 0.03
    assert highest.rate_interval(images_for(0.01))[1] < high
