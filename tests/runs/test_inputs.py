"""What people type, as numbers."""

from contextlib import nullcontext

import numpy as np
import pytest

from fastadv.core.notices import Notice
from fastadv.core.numbers import parse_eps, parse_folds, show_eps
from fastadv.data import SyntheticFaces, write_png
from fastadv.runs.inputs import open_faces, open_pairs


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


def test_labels_that_all_contradict_the_folders_are_noted(tmp_path):
    people = SyntheticFaces(identities=4, per_identity=2, size=32)
    names = people.names
    pairs = [(names[0], names[1], 1), (names[2], names[3], 1), (names[0], names[2], 0), (names[4], names[6], 0)]
    for inverted in (False, True):
        lines = [f"{first},{second},{same ^ inverted}\n" for first, second, same in pairs]
        (tmp_path / "pairs.csv").write_text("first,second,same\n" + "".join(lines))
        with pytest.warns(Notice, match="all 4 labels contradict the identity folders") if inverted else nullcontext():
            assert len(open_pairs(people, file=tmp_path / "pairs.csv", verified=False)) == 4


def test_a_data_set_with_pairs_as_csv_says_so(tmp_path):
    for person in ("a", "b"):
        (tmp_path / "images" / person).mkdir(parents=True)
        for k in (1, 2):
            write_png(tmp_path / "images" / person / f"{k}.png", np.zeros((112, 112, 3), np.uint8))
    (tmp_path / "pairs.csv").write_text("first,second,same\na/1,a/2,1\n")
    with pytest.raises(ValueError, match=r"pairs\.txt: there is no such list, but pairs\.csv; give it with --pairs"):
        open_pairs(open_faces(tmp_path, size=112))
