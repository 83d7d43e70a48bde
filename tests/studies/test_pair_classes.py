"""Pairs that cannot be verified are refused before a network is run, wherever they come from."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from fastadv.core.errors import Error
from fastadv.data import IdentityFolder, PairBin
from fastadv.data.images import encode_png, write_png
from fastadv.runs.inputs import open_pairs

GREY = np.full((112, 112, 3), 128, np.uint8)


def bin_of(tmp_path: Path, flags: list[bool]) -> PairBin:
    file = tmp_path / "x.bin"
    file.write_bytes(pickle.dumps(([encode_png(GREY)] * (2 * len(flags)), flags)))
    return PairBin(file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([True] * 20, "pairs: expected pairs of one person and pairs of two people, got 20 of one person and 0 of two"),
        ([False] * 20, "got 0 of one person and 20 of two"),
        ([True] * 7 + [False] * 13, "expected at least 10 of each class for the 10 folds, got 7 of one person and 13"),
    ],
)
def test_a_bin(tmp_path: Path, flags: list[bool], message: str) -> None:
    with pytest.raises(Error, match=message):
        open_pairs(bin_of(tmp_path, flags))
    assert len(open_pairs(bin_of(tmp_path, flags), verified=False)) == 20


def test_enough_pairs(tmp_path: Path) -> None:
    assert len(open_pairs(bin_of(tmp_path, [True, False] * 10))) == 20


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a/0,a/1,1", "a/1,a/2,1"], "got 2 of one person and 0 of two"),
        (["a/0,a/1,1", "a/0,b/0,0", "a/1,b/1,0", "a/2,b/2,0"], "at least 3 of each class for the 3 folds"),
        (["a/0,a/1,1,0", "a/0,b/0,0,0", "a/1,b/1,0,1"], "at least 2 of each class for the 2 folds"),
    ],
)
def test_a_csv_file(tmp_path: Path, lines: list[str], message: str) -> None:
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / "f" / f"{name}.png", GREY)
    head = "first,second,same,fold" if lines[0].count(",") == 3 else "first,second,same"
    (tmp_path / "p.csv").write_text("\n".join((head, *lines)))
    with pytest.raises(Error, match=message):
        open_pairs(IdentityFolder(tmp_path / "f"), file=tmp_path / "p.csv")
