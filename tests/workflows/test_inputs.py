"""What people type, as numbers."""

import pytest

from fastadv.workflows.inputs import parse_eps, parse_folds, show_eps


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), ("2", 2.0), ("1e-2", 0.01)])
def test_a_radius_is_a_number_or_a_fraction(text, value):
    assert parse_eps(text) == value


@pytest.mark.parametrize("text", ["", "eight", "8/0", "0", "-1/255", "nan", "inf", "1/2/3"])
def test_another_text_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="eps: expected a positive number such as 8/255 or 0.03"):
        parse_eps(text)


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "8/255"), (0.03, "0.03"), (2.0, "2"), (1.5 / 255, "0.005882")])
def test_a_radius_is_shown_as_it_was_typed(eps, text):
    assert show_eps(eps) == text


def test_folds_count_from_one():
    assert parse_folds("1-2") == (0, 1)
    assert parse_folds("3,1,5-6") == (0, 2, 4, 5)
    for wrong in ("0", "2-1", "a", "1-", ""):
        with pytest.raises(ValueError, match="folds: expected numbers from 1"):
            parse_folds(wrong)
