"""What a wrong name may have meant."""

import pytest

from fastadv.core.nearest import meant, nearest

KNOWN = ("fgsm", "pgd", "pgd-l2", "cw-l2", "cw-linf", "dfanet-fim", "learning_rate")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pdg", "pgd"),
        ("PGD", "pgd"),
        ("cw", "cw-l2"),
        ("CW_L2", "cw-l2"),
        ("dfanet_fim", "dfanet-fim"),
        ("learning-rate", "learning_rate"),
        ("", None),
        ("nothing like it", None),
        (8, None),
    ],
)
def test_the_nearest_name(name, expected):
    assert nearest(name, KNOWN) == expected
    assert meant(name, KNOWN) == ("" if expected is None else f"; did you mean {expected!r}?")
