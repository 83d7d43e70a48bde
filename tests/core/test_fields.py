"""The checks of numbers in fields: what passes, and what the message says of what does not."""

import math

import pytest

from fastadv.core import fields


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lambda: fields.check_count("steps", True), "steps: expected an integer of at least 1, got True"),
        (lambda: fields.check_count("steps", -1, least=0), "steps: expected an integer of at least 0, got -1"),
        (lambda: fields.check_int("bits", 9, 1, 8), r"bits: expected an integer in \[1, 8\], got 9"),
        (lambda: fields.check_odd("size", 4, 7), r"size: expected an odd integer in \[3, 7\], got 4"),
        (lambda: fields.check_number("margin", math.nan), "margin: expected a number of at least 0, got nan"),
        (lambda: fields.check_number("eps", 0, positive=True), "eps: expected a positive number, got 0"),
        (lambda: fields.check_open("rate", "a"), "rate: expected None or a positive number, got 'a'"),
        (lambda: fields.check_range("p", 1.5, 0, 1), r"p: expected a number in \[0, 1\], got 1.5"),
        (lambda: fields.check_range("p", 0, 0, 1, positive=True), r"p: expected a number in \(0, 1\], got 0"),
        (lambda: fields.check_seed(1 << 64), r"seed: expected an integer in \[0, 2\*\*64\), got 18446744073709551616"),
        (lambda: fields.check_least("epochs", 0, 1), "epochs: expected 1 or more, got 0"),
        (lambda: fields.check_positive("lr", math.inf), "lr: expected a positive number, got inf"),
    ],
)
def test_what_is_out_of_range_is_named(check, text):
    with pytest.raises(ValueError, match=text):
        check()


def test_what_is_in_range_passes():
    fields.check_count("steps", 1)
    fields.check_int("bits", 8, 1, 8)
    fields.check_odd("size", 7, 7)
    fields.check_number("margin", 0)
    fields.check_open("rate", None)
    fields.check_range("p", 1, 0, 1, positive=True)
    fields.check_seed((1 << 64) - 1)
    fields.check_positive("clip", None)
