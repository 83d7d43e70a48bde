"""What fuzzing and a hostile reading of the readers have found: the smallest input of each kind, and its answer."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import archives, images, lists, networks, targets, weights
from fuzz.files import _row

from fastadv import cli
from fastadv.core.brief import brief
from fastadv.core.differences import difference
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import is_number
from fastadv.data import ImageError, ManifestError, SourceError, names, read_manifest
from fastadv.data.images import BudgetError, ImageBudget, decode_image
from fastadv.data.kept_landmarks import ABOUT, KeptLandmarks
from fastadv.data.manifest import journal_line
from fastadv.data.pair_lists import read_pairs_of
from fastadv.data.pairs import PairError
from fastadv.data.run_files import Description, RunFolderError
from fastadv.models import CheckpointError, read_state_dict, tensor_content
from fastadv.models.state_fit import groups
from fastadv.runs.sharding import found_shards
from fastadv.studies.align.report import read_report

DIGITS = b"9" * 5000  # more than Python makes a number of
LINE = journal_line(_row(), 100)
ABOUT_RUN = b'{"config": {}, "versions": {}, %s}'
REFUSED = {
    # numbers of thousands of digits
    "pairs, numbers": ("pairs", b"a.jpg " + DIGITS + b"\nb.jpg " + DIGITS, ":1: expected an image and a number"),
    "lfw, head": ("lfw", DIGITS, ":1: expected the number of folds and of pairs, got '999"),
    "lfw, product of the head": ("lfw", DIGITS[:4000] + b" " + DIGITS[:4000], ":1: expected the number of folds"),
    "lfw, number of an image": ("lfw", b"1\na\t1\t" + DIGITS + b"\na\t1\tb\t1", ":2: expected 'person number number'"),
    "videos, split": ("videos", b"split number\n" + DIGITS + b", a/0, a/1, 1", ":2: expected a split, two videos"),
    "ijb, template": ("ijb", b"1.jpg " + DIGITS + b" 7\n%%1 1 1\n%%", ":1: expected an image, a template and a medium"),
    "ijb, beyond 64 bits": ("ijb", b"1.jpg 1 9223372036854775808\n%%1 1 1\n%%", ":1: expected an image, a template"),
    "an option": ("arguments", b"\x09bim,steps=" + DIGITS, "steps of bim: expected a value of the type int"),
    "samples": ("arguments", b"\x0dperfect:" + DIGITS, r"threat: expected zero, perfect\[:SAMPLES\]"),
    "a range of shards": ("arguments", b"\x14f-{0.." + DIGITS + b"}.tar", r"\.tar: there is no such shard"),
    "hexadecimal digits": ("toml", b"mean = 0x" + b"f" * 5000, "mean: expected a number, or one each for red"),
    "no float can hold": ("toml", b"std = " + b"9" * 400, "std: expected a number, or one each for red"),
    "dots of a key": ("toml", b"a." * 50_000 + b"b = 1", "expected at most 16,384 bytes, got more"),
    "a radius beyond all levels": ("arguments", b"\x09bim:30@1e308", "eps: expected"),
    # lists without their images, and names that no file can have
    "ijb, no images": ("ijb", b"\n%%1 1 1\n%%", "expected images in its list of templates, got none"),
    "a long path": ("image list", b"a/" * 3000 + b"1.png", "images are missing: "),
    "a long path of a template": ("ijb", b"a/" * 3000 + b"1.jpg 1 7\n%%1 1 1\n%%", "images are missing: "),
    "a long path of weights": ("toml", b'weights = "' + b"a/" * 3000 + b'"', "expected architecture, a name of"),
    "a long name of a network": ("arguments", b"\x10b=" + b"a" * 5000, "network: expected NAME"),
    # long lines
    "a field beyond csv's limit": ("landmarks", b"x" * 140_000 + b" 1", ":1: expected a name, ten coordinates"),
    "thousands of numbers": ("lfw", b"1\n" + b"1 " * 60_000 + b"\nb", ":2: expected 'person number number'"),
    "coordinates that overflow": ("landmarks", b"a/1" + b" 1e200" * 10, ":1: expected finite numbers, got NaN"),
    # nested
    "brackets": (
        "arguments",
        b"\x0c" + b"one(" * 3000 + b"mean" + b")" * 3000,
        "defence: expected at most 20 brackets",
    ),
    "lists in a journal": ("journal", b"[" * 100_000 + b"\n", "not a row of a manifest: "),
    "lists in a row": (
        "journal",
        LINE.replace(b"0.1,", archives.NESTED + b",", 1),
        "eps: expected float, got a value of type list",
    ),
    "lists as an identity": (
        "tar",
        archives._hostile_samples()[1],
        "expected a .cls or .json with an identity|cannot be read",
    ),
    "lists as a study": ("study.json", b"[" * 100_000, "expected the description of a study"),
    "lists as classes": ("classes", b"[" * 100_000, "expected a JSON list of distinct names"),
    # values of other types
    "a float that is too large": (
        "journal",
        LINE.replace(b'"eps": 0.1', b'"eps": ' + b"9" * 400),
        "eps: expected float, got 9",
    ),
    "an infinite size": ("journal", LINE.replace(b": 100}", b": 1e999}"), "not a row of a manifest: cannot convert"),
    "a name that is no text": ("journal", LINE.replace(b"a/b", b"a/\\ud800"), "not UTF-8"),
    "a name with an escape": ("journal", LINE.replace(b"a/b", b"a/\\u001b[2J"), "a control character"),
    "shown that is a number": (
        "study.json",
        b'{"config": {}, "versions": {}, "shown": 7}',
        "expected the description of a study",
    ),
    "an infinite number of images": (
        "run.json",
        b'{"config": {}, "versions": {}, "images": 1e999}',
        "got a damaged file",
    ),
    "images beyond an index": (
        "run.json",
        b'{"config": {}, "versions": {}, "images": 1' + b"0" * 30 + b"}",
        "got a damaged file",
    ),
    # sizes
    "a tile beyond its image": (
        "tiff",
        images.tiled(1 << 15, 1 << 14),
        "expected at most 262144 pixels, got 32768x16384",
    ),
    "a side of another type": ("tiff", images.tiled(16, 16, tag=9), "its tag 256 is no whole number"),
    "boxes without end": ("avif", images.boxes(20_000), "has more than 4096 boxes"),
    "scans without end": ("jpeg", images.scans(200), "the JPEG image has more than 100 scans"),
    "a template that overflows": ("template", b"112 112" + b" 1e308" * 10, "template: expected five points"),
    "a text that is cut": ("png", b"\xef\xbb\xbf\xe2\x82\xaca\xc3", "not a JPEG, PNG, BMP"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_file_is_refused_in_one_sentence(what: str, tmp_path: Path) -> None:
    name, data, message = REFUSED[what]
    target = targets.by_name(name)
    with pytest.raises(target.errors, match=message):
        target.read(data, tmp_path)


def test_hundreds_of_thousands_of_boxes_are_copied_once() -> None:
    """Each one made a copy of the file: eight mebibytes of them took hours."""
    with pytest.raises(ImageError, match="x: the (AVIF )?image is damaged"):
        decode_image(images.boxes(1 << 17), "x")
    budget = ImageBudget(pixels=1, parts=5000)
    for error in (ImageError, BudgetError):
        with pytest.raises(error):
            decode_image(images.boxes(3000), "x", budget=budget)


def test_marks_on_a_letter_are_not_sorted_where_no_name_can_have_them() -> None:
    """Sorting a letter's marks takes the square of their number."""
    marks = "a" + "\u0301\u0323" * 300_000
    assert names.canonical(marks) == marks
    assert names.canonical("e\u0301") == "\xe9"


def test_a_list_of_other_names_is_not_compared_with_every_image(tmp_path: Path) -> None:
    """Hundreds of thousands of names took the product of both numbers, and one of many folders the square of them."""
    made = lists.source([f"folder/person {k}/a" for k in range(8_000)])
    rows = "".join(f"other/{k},other/b{k},0\n" for k in range(8_000)) + f"{'a/' * 20_000}b,person 7/a,1\n"
    (tmp_path / "pairs.csv").write_text(f"first,second,same\n{rows}")
    with pytest.raises(PairError, match="16001 images of the pairs are missing"):
        read_pairs_of(made, tmp_path / "pairs.csv")


def test_hashes_and_reports_of_a_hostile_folder_are_left_out(tmp_path: Path) -> None:
    face = json.loads(b'{"name": "a/b", "score": 0.5, "box": [1], "landmarks": [1.0], "image_hash": ""}')
    rows = [{"picture": "a", "faces": [{**face, "landmarks": ["x"]}]}, {"picture": 7, "faces": []}, 7, {"faces": 1}]
    rows += [{"picture": "b", "faces": [face]}, {"picture": "c", "faces": [], "width": [1]}]
    (tmp_path / "report.jsonl").write_bytes(
        b"".join(json.dumps(row).encode() + b"\n" for row in rows) + b"[" * 9999 + b"\n"
    )
    assert [row.picture for row in read_report(tmp_path / "report.jsonl")] == ["b"]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": [], "sha256": "", "search": "", "skipped": "x"}',
        '{"name": "../a", "sha256": "", "search": "", "skipped": "x"}',
        '{"name": "a", "sha256": "", "search": "", "skipped": ""}\na' + "\tnan" * 11,
        "[" * 9999,
        '{"skipped": 1e999}',
    ],
)
def test_landmarks_that_are_none_are_looked_for_again(text: str, tmp_path: Path) -> None:
    good = lists._FOUND.lines()
    (tmp_path / "landmarks.txt").write_text(f"{ABOUT}\n# {text}\n{good}")
    assert list(KeptLandmarks.open(tmp_path / "landmarks.txt").rows) == ["a/b"]


def test_landmarks_of_one_line_without_its_end_are_none(tmp_path: Path) -> None:
    (tmp_path / "landmarks.txt").write_text(ABOUT)
    assert not KeptLandmarks.open(tmp_path / "landmarks.txt").rows


def test_a_folder_cannot_have_millions_of_shards(tmp_path: Path) -> None:
    for name in ("1-of-3", "000001-of-999999", "0000001-of-9999999"):
        (tmp_path / "shards" / name).mkdir(parents=True)
    assert [str(shard) for shard in found_shards(tmp_path)] == ["1/3", "1/999999"]


def test_a_description_that_is_nested_too_deep_is_another(tmp_path: Path) -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    said = difference({"seed": deep}, {"seed": 1}, where="run.json")
    assert said is not None
    assert said.startswith("seed: expected a value of type list that is too long to show (as in run.json), got 1")
    (tmp_path / "run.json").write_text('{"config": {}, "versions": {}, "images": -1}')
    with pytest.raises(RunFolderError, match=r"got a damaged file \(ArgumentError\)"):
        Description.read(tmp_path)


def test_numbers_that_nothing_can_show() -> None:
    assert brief(16**5000) == "a value of type int that is too long to show"
    assert not is_number(10**400)
    assert is_number(10**300)


def test_parquet_with_other_values_is_named(tmp_path: Path) -> None:
    from fuzz.files import _hostile_parquet

    for data in _hostile_parquet():
        (tmp_path / "x.parquet").write_bytes(data)
        with pytest.raises(ManifestError, match=r"x\.parquet: "):
            read_manifest(tmp_path / "x.parquet")


# -- weights --


@pytest.mark.parametrize("k", [0, 1])
def test_an_archive_that_unpacks_to_more_than_itself_is_refused(k: int, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(weights.bombs()[k])
    with pytest.raises(CheckpointError, match="its parts are compressed, as torch.save does not write them"):
        read_state_dict(tmp_path / "w")


@pytest.mark.parametrize("legacy", [True, False])
def test_a_name_of_thousands_of_letters_is_no_task_for_torch(legacy: bool, tmp_path: Path) -> None:
    """Its message searches the name three times, in the square of its length."""
    named = b"\x80\x02c" + b"a" * 100_000  # without an end, which torch takes
    if legacy:
        whole = weights._saved({"a": torch.zeros(2)}, _use_new_zipfile_serialization=False)
        named = whole[: whole.rindex(b"\x80\x02}")] + named
    (tmp_path / "w").write_bytes(named if legacy else weights.repacked(named))
    with pytest.raises(CheckpointError, match="a line of 4096 bytes or more"):
        read_state_dict(tmp_path / "w")


def test_arrays_that_share_one_text_are_not_copied_without_end(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(weights.multiplied(count=200))
    with pytest.raises(CheckpointError, match="its arrays have more bytes than the file"):
        read_state_dict(tmp_path / "w")
    (tmp_path / "w").write_bytes(weights.multiplied(count=3, size=1000))
    assert {value.shape for value in read_state_dict(tmp_path / "w").values()} == {(1000,)}


def test_names_that_multiply_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(weights.named_long())
    with pytest.raises(CheckpointError, match="or 16777216 letters of names"):
        read_state_dict(tmp_path / "w")


def test_arrays_that_unpack_to_more_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(5000, np.float32))
    assert read_state_dict(tmp_path / "w.npz")["a"].shape == (5000,)
    monkeypatch.setattr(tensor_content, "_MOST_BYTES", 10_000)
    with pytest.raises(CheckpointError, match="arrays: expected at most 10000 bytes in all"):
        read_state_dict(tmp_path / "w.npz")


def test_a_file_of_many_dicts_of_tensors_is_refused() -> None:
    value = torch.zeros(1)
    with pytest.raises(CheckpointError, match="weights: expected at most 10,000 dicts of tensors in a file"):
        groups([{"w": value} for _ in range(10_001)])


def test_a_type_is_not_looked_for_in_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attribute that torch does not have yet may be a module, which is imported when it is asked for."""
    data = pickle.dumps({"a": torch.zeros(2, dtype=torch.uint16)}, protocol=4)
    assert data.count(b"uint16") == 1
    (tmp_path / "w").write_bytes(data.replace(b"uint16", b"hidden"))
    asked: list[str] = []

    def looked_for(name: str) -> object:
        asked.append(name)
        raise AttributeError(name)

    monkeypatch.setattr(torch, "__getattr__", looked_for, raising=False)
    read_state_dict(tmp_path / "w")
    assert "hidden" not in asked


def test_flags_are_counted_before_they_are_read(tmp_path: Path) -> None:
    data = pickle.dumps(([images.PNG, images.PNG], np.zeros(200_000, np.int64)), protocol=4)
    with pytest.raises(SourceError, match="expected two images for each flag, got 2 images, 200000 flags"):
        targets.by_name("bin").read(data, tmp_path)


# -- graphs --


@pytest.mark.skipif("onnx" not in {target.name for target in targets.TARGETS}, reason="onnx is not installed")
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0, "constants of more than 134,217,728 numbers that are computed from others"),
        (1, "constants of more than 134,217,728 numbers"),
        (2, "constants of more than 134,217,728 numbers"),
        (3, "constants of more than 134,217,728 numbers"),
        (4, "constants of more than 134,217,728 numbers"),
        (6, "constants of more than 134,217,728 numbers"),
        (11, "a value of .* more than 268,435,456 numbers"),
    ],
)
def test_constants_that_grow_are_refused(place: int, message: str, tmp_path: Path) -> None:
    target = targets.by_name("onnx")
    with pytest.raises(CheckpointError, match=message):
        target.read(networks._hostile_graphs()[place], tmp_path)


@pytest.mark.skipif("onnx" not in {target.name for target in targets.TARGETS}, reason="onnx is not installed")
@pytest.mark.parametrize("place", [7, 8])
def test_onnxruntime_is_given_what_the_output_depends_on(place: int, tmp_path: Path) -> None:
    """Gigabytes, or an endless loop, that nothing reads."""
    import onnx

    from fastadv.models.onnx_convert import OPERATORS
    from fastadv.models.onnx_file import read_onnx

    path = lists.written(tmp_path, "net.onnx", networks._hostile_graphs()[place])
    assert len(onnx.load(path).graph.node) == 2
    runnable = read_onnx(path, size=None, output=None, known=OPERATORS).runnable
    assert isinstance(runnable, bytes)
    assert [node.op_type for node in onnx.load_model_from_string(runnable).graph.node] == ["Flatten"]
    targets.by_name("onnx").read(path.read_bytes(), tmp_path)


def test_an_option_of_the_command_line_is_refused_by_its_name() -> None:
    with pytest.raises(ArgumentError, match="shard: expected K/N with K from 1 to N"):
        targets.by_name("arguments").read(b"\x081/1000000", Path())


def test_a_message_cannot_control_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastadv", "status", str(tmp_path / "a\x1b[2J\x9bb")])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "a?[2J?b: expected the folder of a run" in said
    assert "\x1b" not in said
