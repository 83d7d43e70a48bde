"""LFW's list of pairs, written."""

from pathlib import Path

import pytest

from fastadv.data import Pair, PairError
from fastadv.data.lfw import read_lfw_pairs, write_lfw_pairs


def same(person: str, i: int, j: int, fold: int | None = None) -> Pair:
    return Pair(first=f"{person}/{person}_{i:04d}", second=f"{person}/{person}_{j:04d}", same=True, fold=fold)


def other(person: str, i: int, second: str, j: int, fold: int | None = None) -> Pair:
    return Pair(first=f"{person}/{person}_{i:04d}", second=f"{second}/{second}_{j:04d}", same=False, fold=fold)


FOLDED = (
    same("Ann_A", 1, 2, 0),
    other("Ann_A", 1, "Bo", 10000, 0),
    same("Bo", 3, 4, 1),
    other("Bo", 3, "Ann_A", 2, 1),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_lfw_pairs(tmp_path / "pairs.txt", FOLDED)
    assert (tmp_path / "pairs.txt").read_text() == "2\t1\nAnn_A\t1\t2\nAnn_A\t1\tBo\t10000\nBo\t3\t4\nBo\t3\tAnn_A\t2\n"
    assert read_lfw_pairs(tmp_path / "pairs.txt") == FOLDED


def test_pairs_without_folds(tmp_path: Path) -> None:
    pairs = (same("Bo", 3, 4), other("Bo", 3, "Cy", 2))
    write_lfw_pairs(tmp_path / "pairs.txt", pairs)
    assert (tmp_path / "pairs.txt").read_text() == "1\nBo\t3\t4\nBo\t3\tCy\t2\n"
    assert read_lfw_pairs(tmp_path / "pairs.txt") == pairs


def test_another_order_and_other_folds_are_put_in_lfw_s_own(tmp_path: Path) -> None:
    mixed = [
        Pair(first=p.first, second=p.second, same=p.same, fold=None if p.fold is None else 3 * p.fold + 4)
        for p in (FOLDED[3], FOLDED[1], FOLDED[0], FOLDED[2])
    ]
    write_lfw_pairs(tmp_path / "pairs.txt", mixed)
    assert read_lfw_pairs(tmp_path / "pairs.txt") == FOLDED


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((), "as many pairs of each class"),
        (FOLDED[:1], r"as many pairs of each class, got sizes \[0, 1\]"),
        (FOLDED[:3], r"got sizes \[0, 1\]"),
        ((*FOLDED[:2], same("Bo", 3, 4), other("Bo", 3, "Cy", 2)), "as many pairs of each class"),
        ((same("Bo", 1, 2), Pair(first="a/1", second="b/2", same=False)), "names like person/person_0001, got 'a/1'"),
        ((same("Bo\tx", 1, 2), other("Bo", 3, "Cy", 2)), r"names like person/person_0001, got 'Bo\\tx/Bo\\tx_0001'"),
        (
            (same("Bo", 1, 2), Pair(first="Bo/Bo_001", second="Cy/Cy_0001", same=False)),
            "names like person/person_0001, got 'Bo/Bo_001'",
        ),
        ((same("Bo", 1, 2), other("Bo", 1, "Bo", 2)), "expected two people, got Bo and Bo"),
        (
            (Pair(first="Bo/Bo_0001", second="Cy/Cy_0001", same=True), other("Bo", 3, "Cy", 2)),
            "expected one person, got Bo and Cy",
        ),
    ],
)
def test_what_the_form_cannot_say_is_refused_and_nothing_is_written(pairs, message: str, tmp_path: Path) -> None:
    with pytest.raises(PairError, match=message):
        write_lfw_pairs(tmp_path / "pairs.txt", pairs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faces
def test_lfw_s_own_list_gets_its_own_bytes(lfw_root: Path, tmp_path: Path) -> None:
    for name, count in (("pairs.txt", 6000), ("pairsDevTest.txt", 1000)):
        pairs = read_lfw_pairs(lfw_root / name)
        assert len(pairs) == count
        write_lfw_pairs(tmp_path / name, pairs)
        assert (tmp_path / name).read_bytes() == (lfw_root / name).read_bytes()
