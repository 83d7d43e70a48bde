"""Rows and the two forms of a manifest."""

import hashlib
import subprocess
import sys
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from rows import row

from fastadv.core.notices import Notice
from fastadv.core.provenance import commit
from fastadv.data import ManifestError, RunFolder, encode_png, manifest, read_manifest
from fastadv.data.manifest import in_order, iterate_manifest, journal_line, write_parquet

IMAGE = np.zeros((2, 2, 3), np.uint8)


def test_numbers_of_numpy_and_torch_become_plain() -> None:
    got = row("a", eps=np.float32(0.5), ticks=np.int64(3), success=np.True_, l2=torch.tensor(2.0), linf=1)
    assert got == row("a", eps=0.5, ticks=3, success=True, l2=2.0, linf=1.0)
    assert [type(v) for v in (got.eps, got.ticks, got.success, got.l2, got.linf)] == [
        float,
        int,
        bool,
        float,
        float,
    ]


@pytest.mark.parametrize("finished", [False, True])
def test_what_was_not_measured_reads_back_as_none(tmp_path: Path, finished: bool) -> None:
    rows = [row(name, success_float=value) for name, value in (("a", None), ("b", True), ("c", False))]
    with RunFolder.open(tmp_path / "run", {}) as run:
        for each in rows:
            run.write(each, IMAGE)
        if finished:
            run.finish(["a", "b", "c"])
    assert [each.success_float for each in read_manifest(tmp_path / "run")] == [None, True, False]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eps", "8/255"),
        ("ticks", 1.5),
        ("success", 1),
        ("name", 3),
        ("id", -1),
        ("id", 2**63),
        ("seed", 2**64),
        ("steps", True),
    ],
)
def test_wrong_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(ManifestError, match=f"{field}: expected"):
        row("a", **{field: value})


@pytest.mark.parametrize("finished", [False, True])
def test_every_float_reads_back(tmp_path: Path, finished: bool) -> None:
    rows = [row(f"{i}", score_after=value) for i, value in enumerate([5e-324, 0.1, float("inf"), float("nan")])]
    with RunFolder.open(tmp_path / "run", {}) as run:
        for each in rows:
            run.write(each, IMAGE)
        if finished:
            run.finish([each.name for each in rows])
    got = read_manifest(tmp_path / "run")
    assert all(each.image_hash == hashlib.sha256(encode_png(IMAGE)).hexdigest() for each in got)
    assert [repr(replace(each, image_hash="")) for each in got] == [repr(each) for each in rows]


def test_manifests_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="expected a manifest, got no such file"):
        read_manifest(tmp_path)
    journal = tmp_path / "manifest.jsonl"
    journal.write_text('{"name": "a"}\n')
    with pytest.raises(ManifestError, match=r"manifest\.jsonl:1: not a row of a manifest"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"manifest\.parquet: expected a Parquet file, got one that cannot be read"):
        read_manifest(tmp_path)


def test_a_parquet_file_of_something_else(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"name": ["a"]}), tmp_path / "manifest.parquet")
    with pytest.raises(ManifestError, match="expected the manifest of a run, got one without the column 'id'"):
        read_manifest(tmp_path / "manifest.parquet")


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git = tmp_path / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{'a' * 40} refs/heads/main\n")
    assert commit(tmp_path) == "a" * 40
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text("b" * 40 + "\n")
    assert commit(tmp_path) == "b" * 40
    (git / "HEAD").write_text("c" * 40 + "\n")
    assert commit(tmp_path) == "c" * 40


@pytest.mark.parametrize("absolute", [True, False])
def test_the_commit_of_a_further_worktree(tmp_path: Path, absolute: bool) -> None:
    own = tmp_path / "main" / ".git" / "worktrees" / "other"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/other\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / "main" / ".git" / "packed-refs").write_text(f"{'a' * 40} refs/heads/other\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / ".git").write_text(f"gitdir: {own if absolute else '../main/.git/worktrees/other'}\n")
    assert commit(other) == "a" * 40
    (tmp_path / "main" / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / "main" / ".git" / "refs" / "heads" / "other").write_text("b" * 40 + "\n")
    assert commit(other) == "b" * 40


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret", "a//b", "", "a\\b"])
@pytest.mark.parametrize("form", ["journal", "parquet"])
def test_a_name_that_leaves_the_folder_is_refused_by_every_reader(tmp_path: Path, name: str, form: str) -> None:
    hostile = row(name)
    if form == "journal":
        (tmp_path / "manifest.jsonl").write_bytes(journal_line(hostile, 7))
    else:
        write_parquet([hostile], tmp_path / "manifest.parquet")
    with pytest.raises(ManifestError, match=r"name: expected 'identity/file' without '\.', '\.\.' or a leading '/'"):
        read_manifest(tmp_path)


def test_a_manifest_of_an_earlier_version_lacks_the_later_columns(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([asdict(row("a", seed=7))]).drop_columns(
        ["image_hash", "target_hash", "software"]
    )
    pyarrow.parquet.write_table(table, tmp_path / "manifest.parquet")
    (read,) = read_manifest(tmp_path)
    assert (read.image_hash, read.target_hash, read.software) == ("", "", "")


def test_a_long_journal_becomes_a_file_in_another_order_without_its_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read and written a block of rows at a time; a row alone takes more than 1,000 bytes.

    More than 20 levels: Python keeps the memory of shorter tuples for later ones.
    """
    count = 1_000
    monkeypatch.setattr(manifest, "_AT_A_TIME", 16)
    journal, finished = tmp_path / "manifest.jsonl", tmp_path / "manifest.parquet"
    example = row("name", levels=tuple(range(990, 1020)), source_hash="ab" * 32, software="x" * 100)
    with journal.open("wb") as file:
        for k in range(count):
            line = journal_line(example, 7).replace(b'"name": "name"', b'"name": "p/%d"' % k)
            file.write(line.replace(b"1019", b"%d" % k))
    names = [f"p/{k}" for k in reversed(range(count))]
    write_parquet([example], finished)  # the modules that Arrow imports when it first converts rows
    assert [each.name for each in iterate_manifest(finished)] == ["name"]
    tracemalloc.start()
    try:
        write_parquet(in_order(journal, names), finished)
        assert [each.name for each in iterate_manifest(finished)] == names
        assert tracemalloc.get_traced_memory()[1] < 800 * count
    finally:
        tracemalloc.stop()
    assert [each.levels[-1] for each in iterate_manifest(finished)] == list(reversed(range(count)))
    assert read_manifest(journal)[17] == replace(example, name="p/17", levels=(*range(990, 1019), 17))


def test_a_finished_run_is_opened_again_without_its_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of rows at a time; a row alone takes more than 8,000 bytes. A damaged image is found all the same."""
    count = 200
    monkeypatch.setattr(manifest, "_AT_A_TIME", 8)
    names = [f"p/{k}" for k in range(count)]
    with RunFolder.open(tmp_path / "run", {}) as run:
        for k, name in enumerate(names):
            run.write(row(name, software=f"{k}" + "x" * 8000), IMAGE)
        run.finish(names)
    tracemalloc.start()
    try:
        with RunFolder.open(tmp_path / "run", {}) as run:
            assert run.done == set(names)
        assert tracemalloc.get_traced_memory()[1] < 4000 * count
    finally:
        tracemalloc.stop()
    run.image_path("p/3").unlink()
    with pytest.warns(Notice, match="generated again: p/3"), RunFolder.open(tmp_path / "run", {}) as run:
        assert run.done == set(names) - {"p/3"}
    assert len(read_manifest(tmp_path / "run")) == count - 1


LITTLE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from rows import row
from fastadv.data.manifest import write_parquet
rows = [row("a")]
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**25, taken + 2**25))
try:
    write_parquet(rows, Path(sys.argv[1]) / "manifest.parquet")
except MemoryError:
    sys.exit(3)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_without_the_memory_that_arrow_takes_nothing_is_written(tmp_path: Path) -> None:
    call = [sys.executable, "-c", LITTLE, str(tmp_path), str(Path(__file__).parents[1])]
    assert subprocess.run(call, timeout=120).returncode == 3
    assert list(tmp_path.iterdir()) == []
