"""Which rates so many trials can show."""

import pytest

from fastadv.core.resolution import measurable, notes_of, unmeasurable


@pytest.mark.parametrize(
    ("rate", "trials", "can"),
    [
        (1e-3, 999, False),
        (1e-3, 1000, True),
        (1e-2, 4, False),
        (0.05, 20, True),
        (0.05, 19, False),
        (1 / 49, 49, True),
        (0.1, 10, True),
        (1.0, 1, True),
        (0.0, 10**9, False),
        (1.0, 0, False),
        (float("nan"), 100, False),
    ],
)
def test_one_trial_must_fit_into_the_rate(rate: float, trials: int, can: bool) -> None:
    assert measurable(rate, trials) is can


def test_the_sentence_says_how_many_are_needed() -> None:
    assert unmeasurable("TAR at FAR 1e-3", 1e-3, 20, "negative pairs") == (
        "TAR at FAR 1e-3: not measurable from 20 negative pairs; needs at least 1,000"
    )
    assert unmeasurable("FAR 0", 0.0, 20, "negative pairs") == "FAR 0: not measurable from 20 negative pairs"
    assert unmeasurable("x", 1 / 49, 3, "y").endswith("needs at least 49")
    rates = {"a": 0.5, "b": 0.05}
    assert notes_of(rates, 3, "images") == ("b: not measurable from 3 images; needs at least 20",)
    assert notes_of(rates, 20, "images") == ()
