"""The cover of pairs: against every choice on small graphs, against an integer program on LFW's pairs."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import LinearConstraint, milp

from fastadv.data import Pair, PairError
from fastadv.data.cover import cover
from fastadv.data.lfw import read_lfw_pairs

Edges = list[tuple[int, int]]


def pairs_of(edges: Iterable[tuple[int, int]]) -> list[Pair]:
    return [Pair(first=str(a), second=str(b), same=False) for a, b in edges]


def chosen_of(edges: Edges) -> set[int]:
    return {int(name) for name in cover(pairs_of(edges))}


def minimum(edges: Edges) -> int:
    """The size of the smallest cover, by trying every choice."""
    images = sorted({image for edge in edges for image in edge})
    for size in range(len(images) + 1):
        for choice in itertools.combinations(images, size):
            if all(a in choice or b in choice for a, b in edges):
                return size
    raise AssertionError


graphs = st.integers(2, 12).flatmap(
    lambda n: st.lists(
        st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] != e[1]), min_size=1, max_size=30
    )
)


@st.composite
def forests(draw) -> Edges:
    """Every image after the first hangs on an earlier one or on none; names and order are shuffled."""
    n = draw(st.integers(2, 11))
    parents = [draw(st.integers(-1, k - 1)) for k in range(1, n)]
    names = draw(st.permutations(range(n)))
    edges = [(names[k], names[parent]) for k, parent in enumerate(parents, 1) if parent >= 0]
    return draw(st.permutations(edges)) if edges else [(0, 1)]


def test_it_is_a_minimum_on_every_graph_of_up_to_five_images() -> None:
    possible = list(itertools.combinations(range(5), 2))
    for bits in range(1, 1 << len(possible)):
        edges = [edge for k, edge in enumerate(possible) if bits >> k & 1]
        assert len(chosen_of(edges)) == minimum(edges), edges


@given(edges=forests())
def test_it_is_a_minimum_where_the_pairs_form_no_circle(edges: Edges) -> None:
    assert len(chosen_of(edges)) == minimum(edges)


@given(edges=graphs)
def test_every_pair_is_covered_and_no_image_is_spare(edges: Edges) -> None:
    chosen = chosen_of(edges)
    assert all(a in chosen or b in chosen for a, b in edges)
    for image in chosen:
        assert any({a, b} & chosen == {image} for a, b in edges)


@given(edges=graphs, data=st.data())
def test_a_pair_that_occurs_again_changes_nothing(edges: Edges, data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(edges), max_size=5))
    turned = [(b, a) for a, b in again]
    assert cover(pairs_of(edges + again + turned)) == cover(pairs_of(edges))


def test_ties_and_order_follow_the_list() -> None:
    assert cover(pairs_of([(7, 3)])) == ("7",)
    assert cover(pairs_of([(5, 6), (1, 2)])) == ("5", "1")
    star = cover(pairs_of([(9, 4), (8, 4), (7, 4)]))
    assert star == ("4",)
    assert cover([]) == ()


def test_few_pairs_have_both_images() -> None:
    """Of the smallest covers of a path of three pairs, the one with both images of the middle pair is not taken."""
    chosen = chosen_of([(0, 1), (1, 2), (2, 3)])
    assert chosen in ({0, 2}, {1, 3})


def test_a_pair_of_one_image_is_refused() -> None:
    with pytest.raises(PairError, match="pairs: expected two images in each, got 4 with itself"):
        cover(pairs_of([(1, 2), (4, 4)]))


def test_many_pairs_are_all_touched() -> None:
    """About 0.4 s on one free core; a search for the largest in every round would take minutes."""
    rng = np.random.default_rng(0)
    pairs = pairs_of((int(a), int(b)) for a, b in rng.integers(0, 60_000, (50_000, 2)) if a != b)
    chosen = set(cover(pairs))
    assert all(pair.first in chosen or pair.second in chosen for pair in pairs)


@pytest.mark.faces
def test_lfw_needs_3410_images(lfw_root: Path) -> None:
    """An integer program finds the minimum; the paper reports 4,069."""
    pairs = read_lfw_pairs(lfw_root / "pairs.txt")
    chosen = set(cover(pairs))
    assert all(pair.first in chosen or pair.second in chosen for pair in pairs)
    assert len(chosen) == 3410
    assert sum(pair.first in chosen and pair.second in chosen for pair in pairs) == 295
    names = sorted({name for pair in pairs for name in (pair.first, pair.second)})
    column = {name: k for k, name in enumerate(names)}
    ends = [column[name] for pair in pairs for name in (pair.first, pair.second)]
    touches = sparse.csr_array((np.ones(len(ends)), (np.repeat(np.arange(len(pairs)), 2), ends)))
    best = milp(np.ones(len(names)), constraints=LinearConstraint(touches, 1, np.inf), integrality=1, bounds=(0, 1))
    assert (len(names), best.fun) == (7701, 3410)
