"""The ordered, bounded prefetcher."""

import gc
import itertools
import threading
import time
from concurrent.futures import Future

import pytest

from fastadv.core.errors import FileError
from fastadv.core.notices import Notice
from fastadv.data import Skipped, Stream, StreamError


def running() -> int:
    return sum(thread.name.startswith("fastadv-stream") and thread.is_alive() for thread in threading.enumerate())


def wait_until_none_runs() -> None:
    end = time.monotonic() + 5
    while running() and time.monotonic() < end:
        time.sleep(0.01)
    assert running() == 0


def test_the_order_is_kept_whatever_is_ready_first() -> None:
    def slow_at_even(name: str) -> int:
        time.sleep(0.004 if int(name) % 2 == 0 else 0)
        return int(name)

    assert list(Stream(slow_at_even, map(str, range(50)), workers=4, ahead=8)) == list(range(50))
    wait_until_none_runs()


def test_no_more_than_ahead_is_ever_drawn() -> None:
    drawn = itertools.count()
    last = -1

    def names():
        nonlocal last
        for last in drawn:
            yield str(last)

    with Stream(int, names(), workers=2, ahead=5) as stream:  # the names are endless
        for index, value in enumerate(itertools.islice(stream, 100)):
            assert value == index
            assert last - index < 5
    wait_until_none_runs()


def test_an_error_comes_at_its_place() -> None:
    def function(name: str) -> str:
        if name == "c":
            raise ValueError("c is bad")
        return name

    stream = Stream(function, "abcdef")
    assert next(stream) == "a"
    assert next(stream) == "b"
    with pytest.raises(ValueError, match="c is bad"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    wait_until_none_runs()


def test_an_unforeseen_error_names_the_item() -> None:
    def function(name: str) -> str:
        raise OSError("the disk fell off")

    with pytest.raises(StreamError, match="A/a: OSError: the disk fell off"):
        list(Stream(function, ["A/a"], on_error="skip"))


def test_skipped_items_are_reported_in_order() -> None:
    def function(name: str) -> str:
        if name in "bd":
            raise ValueError(f"{name} is bad")
        return name

    stream = Stream(function, "abcde", on_error="skip", workers=3)
    assert list(stream) == ["a", "c", "e"]
    assert stream.skipped == [Skipped(name="b", reason="b is bad"), Skipped(name="d", reason="d is bad")]


def test_stopping_early_ends_the_threads() -> None:
    done = []

    def function(name: str) -> str:
        time.sleep(0.002)
        done.append(name)
        return name

    with Stream(function, map(str, range(10_000)), workers=2, ahead=16) as stream:
        next(stream)
    wait_until_none_runs()
    assert len(done) < 100


def test_a_forgotten_stream_ends_its_threads() -> None:
    stream = Stream(str, map(str, range(1000)), ahead=4)
    next(stream)
    del stream
    gc.collect()
    wait_until_none_runs()


def test_ctrl_c_while_waiting_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Future, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    stream = Stream(str, map(str, range(100)))
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    wait_until_none_runs()


def test_an_item_that_does_not_come_is_named_and_nobody_waits_for_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastadv.data.stream._PATIENCE", 0.05)
    monkeypatch.setattr("fastadv.data.stream._GRACE", 0.05)
    answered = threading.Event()

    def function(name: str) -> str:
        if name == "b":
            answered.wait(60)
        return name

    stream = Stream(function, "abc")
    assert next(stream) == "a"
    with pytest.raises(Notice, match=r"b: still being read after 0 s; Ctrl-C stops the run"):  # an error in these tests
        next(stream)
    assert running() == 1
    answered.set()
    wait_until_none_runs()
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("error", [MemoryError(), FileError(30, "Read-only file system", "x.png")])
def test_memory_that_runs_out_and_a_refusal_that_names_its_file_are_passed_on(error: Exception) -> None:
    def function(name: str) -> str:
        raise error

    with pytest.raises(type(error), match="^$|Read-only file system: 'x.png'"):
        list(Stream(function, "ab", on_error="skip"))


def test_no_names_no_items() -> None:
    assert list(Stream(str, [])) == []


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"ahead": 0}, {"on_error": "ignore"}], ids=["workers", "ahead", "on_error"]
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Stream(str, [], **options)
