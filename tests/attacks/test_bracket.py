"""The searches inside the slots: growth, bisection, and where they end, slot by slot."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv.attacks.bracket import Bracket, LineSearch, most_tries


def test_a_bracket_grows_until_a_success_and_halves_after_it():
    bracket = Bracket.allocate(torch.zeros(2, 3))
    bracket.begin(torch.tensor([0, 1]), 1.0)
    tried = []
    for _ in range(6):
        tried.append(bracket.value.tolist())
        bracket.narrow(torch.tensor([True, True]), bracket.value >= torch.tensor([50.0, 0.3]), growth=10.0)
    assert [row[0] for row in tried] == [1, 10, 100, 55, 32.5, 43.75]
    assert [row[1] for row in tried] == [1, 0.5, 0.25, 0.375, 0.3125, 0.28125]


def test_only_what_is_done_moves():
    bracket = Bracket.allocate(torch.zeros(2, 3))
    bracket.begin(torch.tensor([0, 1]), 1.0)
    bracket.narrow(torch.tensor([True, False]), torch.tensor([False, True]), growth=2.0)
    assert bracket.value.tolist() == [2, 1]
    assert bracket.low.tolist() == [1, 0]
    assert torch.isinf(bracket.high).all()


@settings(max_examples=80, deadline=None)
@given(
    border=st.floats(0.001, 2.0),
    first=st.floats(0.001, 0.5),
    growth=st.floats(1.1, 4.0),
    bisections=st.integers(0, 12),
)
def test_a_line_search_ends_at_the_border_within_its_number_of_tries(border, first, growth, bisections):
    search = LineSearch.allocate(torch.zeros(1, 3))
    search.begin(torch.tensor([0]), first, bisections)
    tries, before, over = 0, 0.0, False
    while not over:
        value = float(search.bracket.value)
        success = value >= border
        before = before if success else max(before, value)
        over = bool(search.advance(torch.tensor([True]), torch.tensor([success]), growth=growth, largest=1.0))
        tries += 1
        assert tries <= most_tries(first, growth, bisections, 1.0) + 1
    found = float(search.bracket.value)
    if border > 1.0:
        assert found == 1.0
        assert before == 1.0
        return
    assert found >= border
    interval = found if before == 0 else found * (growth - 1) + before
    assert found - border <= max(interval, first) * 1.01


def test_a_slot_that_waits_is_left_alone():
    search = LineSearch.allocate(torch.zeros(2, 3))
    search.begin(torch.tensor([0, 1]), 0.25, 1)
    for _ in range(3):
        search.advance(torch.tensor([True, False]), torch.tensor([True, True]), growth=2.0, largest=1.0)
    assert search.bracket.value.tolist()[1] == 0.25
    assert search.left.tolist()[1] == 1
