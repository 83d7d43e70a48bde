"""Every error of the package in one form: ``<argument>: expected <what>, got <value>[; <what to do next>]``."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fastadv

ROOT = Path(fastadv.__file__).parent
MODULES = sorted(p for p in ROOT.rglob("*.py") if ROOT / "kernels" not in p.parents)
SLOT = "{}"  # stands in a text for what is only known when the program runs
# what was given, in at most three parts ("{path}: image {number}: "), then what was expected and what came
FORM = re.compile(r"(?:\S.{0,70}?: ){1,3}expected \S.*?, got \S.*", re.DOTALL)

# by reason: the file and the texts, whole or the beginning with "..."
EXCEPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "a file or a line of it, before the text of the error that it had": {
        "core/files.py": ("{}: {}",),
        "data/faces.py": ("{}: {}",),
        "data/manifest.py": ("{}: {}",),
        "data/pairs.py": ("{}: {}", "{}:{}: {}"),
        "data/shards.py": ("{}: {}",),
        "data/stream.py": ("{}: {}: {}",),
        "detection/detectors.py": ("{}: {}",),
        "detection/representatives.py": ("{}: {}",),
        "models/description.py": ("{}: {}",),
    },
    "the text of another error with its place": {
        "detection/fitting.py": ("best: {}",),
        "models/independence.py": ("{} that fails: {}",),
        "recognition/metrics.py": ("folds: without fold {}: {}",),
        "studies/workers.py": ("shard {}: {}",),
    },
    "the end of a sentence that names the file and what was expected": {
        "core/pickle_bytes.py": ("...",),
        "core/pickle_objects.py": ("...",),
        "core/pickle_values.py": ("...",),
        "core/symbolic_pickle.py": ("...",),
        "data/pair_bin.py": ("its flags are {}; expected one row",),
        "models/pickled.py": ("...",),
    },
    "a folder of another run; the rest is the field, what was expected and what came": {
        "data/run_files.py": ("{}: holds another {}; {}",),
        "runs/merging.py": ("{}: holds another run; {}",),
        "runs/sharding.py": ("{}: holds shards of another run; {}",),
        "runs/production.py": ("{}: holds another run; {}",),
        "studies/demo.py": ("{}: holds another demo; {}",),
        "studies/detection/study.py": ("{}: {}",),
        "training/cache.py": ("cache: holds other faces; {}",),
        "training/checkpoint.py": ("{}: holds another training; {}",),
    },
    "the operating system's own words": {
        "data/folder.py": ("{}: the folder cannot be listed: {}",),
        "data/image_files.py": ("{}: cannot be read: {}",),
        "data/pair_bin.py": ("{}: cannot be read: {}",),
        "data/record_io.py": ("{}: cannot be read: {}",),
        "data/shards.py": ("{}: cannot be read: {}", "{}: the .json cannot be read: {}: {}"),
        "data/tar_index.py": ("{}: cannot be read: {}",),
    },
    "a damaged or refused file: what is wrong in it, and where": {
        "data/images.py": (
            "{}: the image is damaged: {}",
            "{}: the {} image has {}",
            "{}: the {} image is damaged",
            "{} but {}; {}",
            "{}, but {}",
        ),
        "data/pair_bin.py": ("{}: refused as a .bin of pairs: {}{}",),
        "data/record_io.py": (
            "{}: cut short: ...",
            "{}: {}",
            "{}: the record at {} is not in {}",
            "{}: the record at {} is split in parts, ...",
        ),
        "data/shards.py": ("{}: a label of {} bytes, ...", "{}: {}: two images named {}"),
        "data/tar_index.py": (
            "{}: an extended header of {} bytes at {}, at most {}",
            "{}: compressed with {}; ...",
            "{}: cut short: ...",
            "{}: damaged: ...",
            "{}: holds a sparse file, ...",
            "{}: not a tar file, but {}",
            "{}: the member {} has a path ...",
            "{}: {} has {} bytes, at most {} are read",
            "{}: {} is {}, not a plain file",
        ),
    },
    "names of files: what is wrong with them, or which are missing": {
        "data/folder.py": ("{}: {}; rename it",),
        "data/image_list.py": ("{}: images are missing: {}",),
        "data/landmark_lists.py": ("{}: cannot tell the name, ...",),
        "data/lfw.py": ("{}: images are missing below {}: {}", "{}: there is no such list, but pairs.csv; ..."),
        "data/pair_lists.py": ("{}: {} images of the pairs are missing, first {}{}",),
        "data/run_files.py": ("{}: images are missing or damaged: {}; ...",),
        "data/template_pairs.py": ("{}: images are missing: {}",),
        "data/writer.py": ("{}: {}: {}",),
    },
    "no argument is wrong: too little memory, a busy server, a missing checkout": {
        "cli/bench.py": ("the benchmarks are part of the source: ...",),
        "detection/microbatch.py": ("this server is stopping", "{} images are waiting; at most {} may"),
        "engine/loop.py": ("not enough memory for a single image; ...",),
    },
    "caught where it is raised": {
        "studies/talfw/files.py": ("this folder is not read as LFW's is",),
    },
}
# texts that a variable or a call brings: how many in which file
MADE_ELSEWHERE = {
    "_native.py": 1,
    "core/files.py": 1,
    "core/remote.py": 2,
    "data/pair_bin.py": 1,
    "data/run_files.py": 1,
    "distributed/output.py": 1,
}


@cache
def trees() -> dict[str, ast.Module]:
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in MODULES}


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def error_classes(modules: dict[str, ast.Module]) -> set[str]:
    """``Error`` of fastadv.core.errors and what the package derives from it."""
    bases = {
        node.name: {last_name(base) for base in node.bases}
        for tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"Error"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


def text_of(node: ast.expr) -> str | None:
    """A literal with `SLOT` for its values; None for a text that is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else SLOT for part in node.values)
    if isinstance(node, ast.BinOp) and (text := text_of(node.left)) is not None:
        return text + (text_of(node.right) or SLOT)
    return None


def texts(modules: dict[str, ast.Module]) -> Iterator[tuple[str, str | None]]:
    """The file and the text of every error that the package makes."""
    classes = error_classes(modules)
    for file, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and last_name(node.func) in classes:
                yield file, text_of(node.args[0])


def outside_of_the_form(modules: dict[str, ast.Module]) -> list[tuple[str, str]]:
    return [(file, text) for file, text in texts(modules) if text is not None and not FORM.fullmatch(text)]


def fits(text: str, pattern: str) -> bool:
    return text.startswith(pattern.removesuffix("...")) if pattern.endswith("...") else text == pattern


def unused(outside: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The exceptions that no text needs."""
    return [
        (file, start)
        for table in EXCEPTIONS.values()
        for file, starts in table.items()
        for start in starts
        if not any(place == file and fits(text, start) for place, text in outside)
    ]


def is_excepted(file: str, text: str) -> bool:
    return any(fits(text, start) for table in EXCEPTIONS.values() for start in table.get(file, ()))


def test_every_text_is_in_the_form_or_an_exception():
    outside = outside_of_the_form(trees())
    assert [(file, text) for file, text in outside if not is_excepted(file, text)] == []
    assert unused(outside) == []


def test_texts_that_are_made_elsewhere_are_few():
    modules = trees()
    assert sum(text is not None for _, text in texts(modules)) > 900
    assert Counter(file for file, text in texts(modules) if text is None) == MADE_ELSEWHERE


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('"eps: expected a positive number, got -1"', True),
        ("f'{path}: image {n}: expected the bytes of an image, got {kind}; encode it first'", True),
        ("f'{name}[{i}]: expected 3 rows, got {n}'", True),
        ('"eps must be positive, got -1"', False),
        ('"eps is -1; expected a positive number"', False),
        ('"eps: expected a positive number"', False),
        ('"expected a positive number, got -1"', False),
        ('"eps: expected , got -1"', False),
    ],
)
def test_the_check_can_fail(text, right):
    error = "class Own(SourceError): ...\nclass SourceError(Error, ValueError): ...\n"
    for made in (f"raise Own({text})", f"raise data.SourceError({text}, what='x') from error", f"wrong = Own({text})"):
        assert (outside_of_the_form({"bad.py": ast.parse(error + made)}) == []) is right
    assert list(texts({"bad.py": ast.parse(f"{error}raise KeyError({text})")})) == []


def test_an_exception_must_be_needed(monkeypatch):
    monkeypatch.setitem(globals(), "EXCEPTIONS", {"a reason": {"gone.py": ("a text that no error has",)}})
    assert unused(outside_of_the_form(trees())) == [("gone.py", "a text that no error has")]
