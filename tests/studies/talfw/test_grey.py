"""The adversarial copy of grey pictures and as JPEG."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from talfw_pairs import EPS, PAIRS, make, mode, name, pixels

from fastadv import attacks
from fastadv.data import LFW, read_manifest
from fastadv.data.stored import ImageFormat
from fastadv.studies.talfw.measure import plan
from fastadv.surrogates import Ensemble, Surrogate


@pytest.fixture(scope="module")
def greys(lfw, tmp_path_factory):
    """The same faces: Ann's and Di's grey as one channel, Bo's grey as three, Cy's in colour."""
    root = tmp_path_factory.mktemp("grey") / "lfw"
    shutil.copytree(lfw, root)
    for path in root.glob("images/*/*"):
        if not path.name.startswith("Cy"):
            with Image.open(path) as image:
                grey = image.convert("L")
            (grey.convert("RGB") if path.name.startswith("Bo") else grey).save(path)
    return root


def test_grey_pictures_come_back_grey_in_the_mode_of_their_files(greys, model, tmp_path):
    source, grey = LFW(greys), {}
    for option in (False, True):
        out = tmp_path / str(option)
        grey[option] = make(source, PAIRS, model, out, grey=option)
        for each in LFW(out).names:
            before, after = source.path(each), LFW(out).path(each)
            assert mode(after) == mode(before)
            moved = pixels(after) - pixels(before)
            assert np.abs(moved).max() <= 16
            if not each.startswith("Cy"):
                assert (moved == moved[..., :1]).all()
        crops = [pixels(out / "crops" / "images" / f"{row.name}.png") for row in read_manifest(out / "crops")]
        same = [bool((crop == crop[..., :1]).all()) for crop in crops]
        assert same == [option, option, False, option]  # the third is Cy's, in colour
    assert grey[True].grey == grey[False].grey == 3
    assert grey[True].kept > grey[False].kept  # nothing of the change is lost to the mean of the channels
    assert grey[True].impersonation_written is not None


def test_a_random_start_and_an_ensemble_stay_grey_too(greys, model, tmp_path):
    recipe = replace(
        attacks.pgd(eps=EPS, steps=3), surrogate=Surrogate(ensemble=Ensemble(others=(copy.deepcopy(model),)))
    )
    make(LFW(greys), PAIRS, model, tmp_path / "out", recipe, targets="one", grey=True)
    changed = pixels(LFW(tmp_path / "out").path(name(0, 1)))
    assert (changed == changed[..., :1]).all()


def test_jpeg_is_measured_as_it_is_decoded(made, lfw, greys, model, tmp_path):
    source, out = LFW(lfw), tmp_path / "out"
    summary = make(source, PAIRS, model, out, stored=ImageFormat(name="jpeg", quality=30))
    assert summary.stored == "jpeg, quality 30"
    assert {path.suffix for path in (out / "images").glob("*/*")} == {".jpg"}
    assert {line.split()[0][-4:] for line in (out / "landmarks.txt").read_text().splitlines()[1:]} == {".jpg"}
    largest = max(
        np.abs(pixels(LFW(out).path(aim.name)) - pixels(source.path(aim.name))).max() for aim in plan(source, PAIRS)
    )
    assert summary.linf == pytest.approx(largest / 255)
    assert summary.linf > made[1].linf  # the budget does not hold in a JPEG file
    assert summary.kept < made[1].kept
    tables = set()
    for path in (out / "images").glob("*/*"):
        with Image.open(path) as image:
            tables.add(bytes(image.quantization[0]))
    assert len(tables) == 1
    grey = tmp_path / "grey"
    make(LFW(greys), PAIRS, model, grey, stored=ImageFormat(name="jpeg"))
    assert {mode(path) for path in (grey / "images" / "Ann_A").glob("*")} == {"L"}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"name": "gif"}, "format: expected one of png, jpeg, got 'gif'"),
        ({"name": "jpeg", "quality": 0}, "quality: expected a whole number from 1 to 100, got 0"),
        ({"name": "jpeg", "quality": 95.5}, "quality: expected a whole number from 1 to 100, got 95.5"),
    ],
)
def test_a_format_is_checked(values, text):
    with pytest.raises(ValueError, match=text):
        ImageFormat(**values)
