"""Numbers as people write them: lists of counts and of rates."""

import pytest

from fastadv.core.numbers import parse_counts, parse_rates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("13", (13,)),
        ("13, 50,200", (13, 50, 200)),
        ("1-4,9", (1, 2, 3, 4, 9)),
        ("50-200:50", (50, 100, 150, 200)),
        ("5-12:5,2", (5, 10, 2)),
        ("7-7", (7,)),
    ],
)
def test_counts(text, expected):
    assert parse_counts("at", text) == expected


@pytest.mark.parametrize("text", ["", "0", "x", "3,", "-3", "5-3", "0-3", "3-", "5:2", "1-9:0", "1-9:", "1-10001"])
def test_what_is_no_list_of_counts(text):
    with pytest.raises(ValueError, match=r"at: expected positive whole numbers .* at most 10,000, got"):
        parse_counts("at", text)


def test_a_list_is_no_longer_than_ten_thousand():
    assert len(parse_counts("at", "1-10000")) == 10_000
    with pytest.raises(ValueError, match="at: expected positive whole numbers"):
        parse_counts("at", "1-9999,1,2")


def test_rates():
    assert parse_rates("far", "1e-3") == (1e-3,)
    assert parse_rates("far", "0.1, 1e-4") == (0.1, 1e-4)
    for text in ("", "0", "1", "-1", "nan", "inf", "x", "0.1,"):
        with pytest.raises(ValueError, match="far: expected rates between 0 and 1 with commas between them such as"):
            parse_rates("far", text)
