"""Shards of a run and their merge, on made-up images: the bytes of one process, whatever happens in between."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from killed import Killed
from run_files import content
from shard_files import CONFIG, names, write, write_shards

from fastadv.core.errors import FileError
from fastadv.core.lock import FolderLock
from fastadv.core.notices import Notice
from fastadv.data import RunFolder, RunFolderError
from fastadv.runs import merging
from fastadv.runs.merging import merge_shards
from fastadv.runs.sharding import Shard, found_shards
from fastadv.runs.status import run_status


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The content of the run that one process writes, by its number of images."""
    made: dict[int, dict[str, bytes]] = {}

    def of(count: int) -> dict[str, bytes]:
        if count not in made:
            path = tmp_path_factory.mktemp("single") / "run"
            write(path, CONFIG, names(count), total=count)
            made[count] = content(path)
        return made[count]

    return of


@pytest.mark.parametrize(
    "text",
    ["", "3", "3/", "/4", "0/4", "5/4", "-1/3", "1/2/3", "1.0/2", "a/b", " 1/2 x", "٣/٤", "1/99999999999", "3-16"],
)
def test_a_wrong_shard_is_one_sentence(text):
    with pytest.raises(ValueError, match=r"shard: expected K/N with K from 1 to N, such as 3/16, got "):
        Shard.parse(text)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_shards_divide_the_list_in_turn(sizes):
    images, count = sizes
    shards = [Shard(number=k, count=count) for k in range(1, count + 1)]
    parts = [list(shard.part(range(images))) for shard in shards]
    assert sorted(index for part in parts for index in part) == list(range(images))
    assert [len(part) for part in parts] == [shard.size(images) for shard in shards]
    assert all(index % count == shard.number - 1 for shard, part in zip(shards, parts, strict=True) for index in part)
    assert [Shard.parse(str(shard)) for shard in shards] == shards
    assert sorted(shard.name for shard in shards) == [shard.name for shard in shards]  # folders list in order


def test_names_of_folders():
    assert Shard.parse("3/16").name == "03-of-16"
    assert Shard.parse("16/16").folder(Path("run")) == Path("run/shards/16-of-16")
    with pytest.raises(ValueError, match="shard: expected at most one for each of the 2 images, got 1/3"):
        Shard.parse("1/3").part(["a", "b"])


@effort(max_examples=25)
@given(st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.randoms())))
def test_merged_shards_are_the_single_run(single, tmp_path_factory, drawn):
    images, count, random = drawn
    run = tmp_path_factory.mktemp("shards") / "run"
    numbers = list(range(1, count + 1))
    random.shuffle(numbers)
    for number in numbers:
        write_shards(run, names(images), count, only={number})
    assert merge_shards(run) == count
    assert content(run) == single(images)
    assert merge_shards(run) == 0  # again: nothing happens
    assert content(run) == single(images)
    with RunFolder.open(run, CONFIG, beside={".hashes.json": b"{}\n"}) as merged:
        assert merged.finished
        assert merged.done == set(names(images))


def test_killed_at_every_step_the_merge_goes_on(single, tmp_path, monkeypatch):
    replace, done = os.replace, False
    for step in range(100):
        for after in (False, True):
            run, left = tmp_path / f"{step} {after}", step
            write_shards(run, names(7), 3)

            def killing(source, target, after=after):
                nonlocal left
                left -= 1
                if left < 0 and not after:
                    raise Killed
                replace(source, target)
                if left < 0:
                    raise Killed

            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", killing)
                try:
                    merge_shards(run)
                    done = True
                except Killed:
                    pass
            merge_shards(run)
            assert content(run) == single(7), step
        if done:
            break
    assert 7 + 3 <= step < 100  # images, hashes, manifest, description, the shards' folder


def killed_in_the_merge(run: Path, moved: list[str]) -> None:
    for name in moved:
        (run / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        next(run.glob(f"shards/*/images/{name}.png")).rename(run / "images" / f"{name}.png")


def test_a_shard_takes_back_the_images_that_a_killed_merge_has_moved(single, tmp_path):
    write_shards(tmp_path, names(7), 2)
    shards, before = [Shard(number=k, count=2) for k in (1, 2)], content(tmp_path)
    killed_in_the_merge(tmp_path, names(7)[:3])
    for shard in shards:
        merging.take_back(tmp_path, shard)
    assert content(tmp_path) == before
    killed_in_the_merge(tmp_path, names(7)[:2])
    (tmp_path / "images" / f"{names(7)[1]}.png").write_bytes(b"damaged")
    lock = FolderLock(shards[0].folder(tmp_path) / ".lock")
    with pytest.raises(RunFolderError, match="expected a folder that no other process writes to"):
        merging.take_back(tmp_path, shards[0])
    lock.release()
    for shard in shards:
        merging.take_back(tmp_path, shard)
    assert [path.read_bytes() for path in (tmp_path / "images").rglob("*.png")] == [b"damaged"]  # it is made again
    assert (shards[0].folder(tmp_path) / "images" / f"{names(7)[0]}.png").is_file()


def test_an_image_on_another_file_system_is_copied(single, tmp_path, monkeypatch):
    write_shards(tmp_path, names(5), 2)
    replace = os.replace

    def elsewhere(source, target):
        if Path(source).suffix == ".png":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    monkeypatch.setattr(os, "replace", elsewhere)
    assert merge_shards(tmp_path) == 2
    assert content(tmp_path) == single(5)


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_lost(single, tmp_path, monkeypatch):
    write_shards(tmp_path, names(5), 2)
    before = content(tmp_path)

    def refused(source, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refused)
        with pytest.raises(FileError, match=r"Read-only file system: '.*images/P0/P0_0000\.png'"):
            merge_shards(tmp_path)
    assert content(tmp_path) == before
    merge_shards(tmp_path)
    assert content(tmp_path) == single(5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    write_shards(tmp_path / "run", names(4), 2)
    (tmp_path / "run").chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        merge_shards(tmp_path / "run")
    (tmp_path / "run").chmod(0o700)


def none_at_all(run: Path) -> None:
    shutil.rmtree(run / "shards")


def missing(run: Path) -> None:
    shutil.rmtree(run / "shards" / "2-of-4")
    shutil.rmtree(run / "shards" / "4-of-4")


def unfinished(run: Path) -> None:
    shutil.rmtree(run / "shards" / "3-of-4")
    write_shards(run, names(9), 4, only={3}, finish=False)


def both(run: Path) -> None:
    unfinished(run)
    shutil.rmtree(run / "shards" / "1-of-4")


def other_weights(run: Path) -> None:
    shutil.rmtree(run / "shards" / "3-of-4")
    write_shards(run, names(9), 4, only={3}, config={"weights": "0b" * 32})


def other_number(run: Path) -> None:
    write_shards(run, names(9), 2, only={1})


def renamed(run: Path) -> None:
    shutil.rmtree(run / "shards" / "3-of-4")
    shutil.copytree(run / "shards" / "2-of-4", run / "shards" / "3-of-4")


def damaged(run: Path) -> None:
    file = run / "shards" / "2-of-4" / "images" / f"{names(9)[1]}.png"
    file.write_bytes(file.read_bytes()[:-1])


def description(run: Path) -> None:
    (run / "shards" / "2-of-4" / "run.json").write_text("[]")


def fewer_rows(run: Path) -> None:
    shutil.rmtree(run / "shards" / "1-of-4")
    shard = Shard.parse("1/4")
    write(shard.folder(run), shard.identity(CONFIG), names(9)[:1], total=9)


def foreign(run: Path) -> None:
    (run / "thesis.txt").write_text("years of work")


def single_beside(run: Path) -> None:
    shutil.move(run / "shards", run.parent / "aside")
    write(run, CONFIG, names(3), total=9, finish=False)
    shutil.move(run.parent / "aside", run / "shards")


def other_beside(run: Path) -> None:
    shutil.move(run / "shards", run.parent / "aside")
    write(run, {**CONFIG, "seed": 8}, names(3), total=3)
    shutil.move(run.parent / "aside", run / "shards")


def images_of_none(run: Path) -> None:
    (run / "images" / "P9").mkdir(parents=True)
    (run / "images" / "P9" / "P9_0001.png").write_bytes(b"of shards that were begun anew")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (none_at_all, r"run: expected the shards of 'fastadv attack --shard K/N' below shards, got none"),
        (missing, r"run: expected 4 finished shards, got 2-of-4, 4-of-4 missing; their commands \(--shard K/N\)"),
        (unfinished, r"run: expected 4 finished shards, got 3-of-4 unfinished; "),
        (both, r"got 1-of-4 missing and 3-of-4 unfinished; "),
        (other_weights, r"3-of-4: holds another run; weights: expected w\.safe.* \(as in 1-of-4/run\.json\), got w\."),
        (other_number, r"run: expected shards of one number, got 2 and 4; remove those of the other"),
        (renamed, r"3-of-4: expected shard 3/4, got 2/4"),
        (damaged, r"2-of-4: expected the images of its .*, got missing or damaged ones: P1/P1_0001; --shard 2/4 gen"),
        (description, r"2-of-4/run\.json: expected the description of a run, got a damaged file"),
        (fewer_rows, r"1-of-4: expected 3 images, got 1"),
        (foreign, r"out: expected a new or empty folder, .* has no run\.json and holds thesis\.txt"),
        (single_beside, r"run: expected shards only, got an unfinished run of one process beside them"),
        (other_beside, r"1-of-4: holds another run; seed: expected 8 \(as in run\.json\), got 7"),
        (images_of_none, r"run: expected images of its shards only, got others: images/P9/P9_0001\.png; remove them"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_its_name_and_nothing_changes(change, text, tmp_path):
    run = tmp_path / "run"
    write_shards(run, names(9), 4)
    change(run)
    before = content(run)
    with pytest.raises(RunFolderError, match=text) as error:
        merge_shards(run)
    assert len(str(error.value).splitlines()) == 1
    assert content(run) == before


def test_a_shard_that_is_being_written_is_refused(tmp_path):
    write_shards(tmp_path, names(4), 2)
    lock = FolderLock(tmp_path / "shards" / "2-of-2" / ".lock")
    with pytest.raises(RunFolderError, match=r"2-of-2: expected a folder that no other process writes to"):
        merge_shards(tmp_path)
    lock.release()
    assert merge_shards(tmp_path) == 2


def test_a_shard_is_not_written_until_all_are_removed(single, tmp_path):
    write_shards(tmp_path, names(4), 2)
    refused = 0

    def mend(stage, done, total):
        nonlocal refused
        for shard in found_shards(tmp_path):
            with pytest.raises(RunFolderError, match="expected a folder that no other process writes to"):
                RunFolder.open(shard.folder(tmp_path), shard.identity(CONFIG))
            refused += 1

    assert merge_shards(tmp_path, progress=mend) == 2
    assert refused == 2 * 4 * 2  # both shards, with every image that is checked and moved
    assert content(tmp_path) == single(4)


def test_shards_are_listed_when_nobody_else_merges(single, tmp_path, monkeypatch):
    write_shards(tmp_path, names(4), 2)
    locked = merging.locked

    def waiting(folder):
        monkeypatch.setattr(merging, "locked", locked)
        assert merge_shards(tmp_path) == 2  # another call, a moment earlier
        return locked(folder)

    monkeypatch.setattr(merging, "locked", waiting)
    assert merge_shards(tmp_path) == 0
    assert content(tmp_path) == single(4)


def test_a_shard_with_landmarks_only_stands_in_nobodys_way(single, tmp_path):
    write_shards(tmp_path, names(5), 2)
    for merged in (2, 0):
        (tmp_path / "shards" / "1-of-3").mkdir(parents=True)
        (tmp_path / "shards" / "1-of-3" / "landmarks.txt").write_text("points")
        assert set(run_status(tmp_path)[1]) == ({"1-of-2", "2-of-2"} if merged else set())
        assert merge_shards(tmp_path) == merged
        assert content(tmp_path) == single(5)


def test_different_software_is_said(tmp_path, recwarn):
    lines = "torch 2.13.0, cpu AVX512, threads {}, device cuda:{}"
    for k in (1, 2, 3):
        write_shards(tmp_path, names(6), 3, only={k}, software=lines.format(2 if k == 2 else 1, k))
    with pytest.warns(Notice) as said:
        merge_shards(tmp_path)
    assert [str(each.message) for each in said] == [
        f"{tmp_path}: the shards were computed by different software, which can change bits: threads 1 in 1-of-3, "
        "3-of-3; threads 2 in 2-of-3"
    ]


def test_other_folders_are_no_shards(tmp_path):
    for name in ("1-of-2", "01-of-2", "3-of-2", "0-of-2", "x", "1-of-02", "2-of-2.old"):
        (tmp_path / "shards" / name).mkdir(parents=True)
    assert [shard.name for shard in found_shards(tmp_path)] == ["1-of-2"]
