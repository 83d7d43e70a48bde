"""Files at URLs: fsspec's file systems behind a path, with errors of ours and without secrets."""

import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed: the extra `remote`")

from fastadv.core import places, remote
from fastadv.core.errors import ArgumentError, FileError, MissingPackageError, RemoteError
from fastadv.core.extras import Package
from fastadv.core.remote import RemotePath, is_remote, to_path


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *text: object) -> None:
        pass


@pytest.mark.parametrize("text", ["a", "/a/b.tar", "./s3:/a", "C:/a", "a:b", "s3:a"])
def test_a_path_stays_a_path(text):
    assert to_path(text) == Path(text)
    assert not is_remote(to_path(text))


def test_the_url_of_a_local_file_is_its_path():
    assert to_path("file:///a/b") == Path("/a/b")
    assert not is_remote(to_path("file:///a/b"))


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/a/b.tar", "memory://a", "simplecache::s3://bucket/a"])
def test_a_url_is_a_path_also_after_pathlib_has_taken_it(url):
    for path in (to_path(url), to_path(Path(url)), pickle.loads(pickle.dumps(to_path(url)))):
        assert is_remote(path)
        assert (str(path), path.url) == (url, url)


def test_the_parts_of_a_url_are_those_of_a_path():
    path = to_path("s3://bucket/shards/a.tar")
    assert (path.name, path.suffix, str(path.parent)) == ("a.tar", ".tar", "s3://bucket/shards")
    assert str(path.with_suffix(".idx")) == "s3://bucket/shards/a.idx"
    assert str(path.parent / "b/c.png") == "s3://bucket/shards/b/c.png"
    assert path.relative_to(path.parent).as_posix() == "a.tar"


@pytest.mark.parametrize(
    ("given", "shown", "sent"),
    [
        ("https://me:secret@host/a/b", "https://host/a/b", "https://me:secret@host/a/b"),
        ("https://host/a/b.tar?token=secret", "https://host/a/b.tar", "https://host/a/b.tar?token=secret"),
        ("sftp://me:secret@host/a", "sftp://host/a", "sftp://me:secret@host/a"),
        ("abfs://container@account/a", "abfs://container@account/a", "abfs://container@account/a"),
        ("https://host/a%20b/%C3%A9", "https://host/a b/\u00e9", "https://host/a%20b/%C3%A9"),
    ],
)
def test_secrets_are_sent_and_not_shown(given, shown, sent, monkeypatch):
    monkeypatch.setattr(remote, "_LOGINS", {})
    monkeypatch.setattr(remote, "_QUERIES", {})
    path = to_path(given)
    assert (str(path), repr(path), path.url) == (shown, f"RemotePath({shown!r})", sent)
    assert to_path(Path(path)).url == sent
    assert pickle.loads(pickle.dumps(path)).url == sent
    assert "secret" not in remote.without_secrets(f"refused: {given}")


def test_the_query_of_a_pattern_is_that_of_each_file(monkeypatch):
    monkeypatch.setattr(remote, "_QUERIES", {})
    to_path("https://host/a/{0..1}.tar?token=secret")
    assert to_path("https://host/a/1.tar").url == "https://host/a/1.tar?token=secret"
    assert to_path("https://host/b/1.tar").url == "https://host/b/1.tar"


@pytest.fixture
def folder():
    import fsspec

    memory = fsspec.filesystem("memory")
    yield "memory://places"
    if memory.exists("/places"):
        memory.rm("/places", recursive=True)


def check_writing(folder: str) -> None:
    file = f"{folder}/a/b.bin"
    assert not places.exists(file)
    places.write_bytes(file, b"0123456789")
    assert places.exists(file)
    path = to_path(file)
    assert path.read_bytes() == b"0123456789"
    assert (path.is_file(), path.is_dir()) == (True, False)
    assert (path.parent.is_file(), path.parent.is_dir()) == (False, True)
    assert [str(each) for each in path.parent.iterdir()] == [file]
    assert [each.name for each in path.parent.glob("*.bin")] == ["b.bin"]
    assert list(path.parent.glob("*.txt")) == []
    with places.open_binary(file, block=4) as opened:
        assert places.length(opened) == 10
        assert (opened.read(3), opened.seek(8), opened.read(9), opened.read(1)) == (b"012", 8, b"89", b"")
    with places.open_binary(file, block=0) as opened:
        opened.seek(4)
        assert opened.read(3) == b"456"
    with places.local_file(path) as copied:
        assert copied.read_bytes() == b"0123456789"
    places.write_bytes(file, b"")
    assert path.read_bytes() == b""
    places.remove(file)
    places.remove(file)
    assert not places.exists(file)


def test_files_of_any_file_system_are_written_read_and_removed(folder, tmp_path):
    check_writing(folder)
    check_writing(str(tmp_path))


def test_files_on_s3_are_written_read_and_removed(s3):
    check_writing(f"{s3}/places")


@pytest.mark.parametrize("cache", ["", "simplecache::"])
def test_a_tree_is_listed_as_a_local_one(folder, cache, tmp_path):
    names = ["b/1.png", "a/2.png", "a/1.png", "a/deep/3.png", "c.png"]
    for root in (folder, str(tmp_path)):
        for name in names:
            places.write_bytes(f"{root}/{name}", b"x")

    def below(root: Path, folder: Path, scan: places.Scan) -> list[str]:
        with scan(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        return [
            name
            for entry in found
            for name in (below(root, folder / entry.name, scan) if entry.is_dir() else [str(folder / entry.name)])
        ]

    roots = (to_path(f"{cache}{folder}"), tmp_path)
    listed = [[name.removeprefix(str(root)) for name in below(root, root, places.scanner(root))] for root in roots]
    assert listed[0] == listed[1] == [f"/{name}" for name in sorted(names)]
    assert places.not_files([root / name for root in roots for name in ("c.png", "d.png")]) == [
        root / "d.png" for root in roots
    ]


def test_a_name_that_no_path_has_is_refused(folder):
    places.write_bytes(f"{folder}/a/1.png", b"x")
    import fsspec

    fsspec.filesystem("memory").store["/places/a//2.png"] = fsspec.filesystem("memory").store["/places/a/1.png"]
    with pytest.raises(FileError, match="expected names without an empty part or '.', got 'a//2.png'"):
        places.scanner(to_path(folder))


def test_the_stamp_of_a_file_changes_with_it(s3):
    path = to_path(f"{s3}/stamp.bin")
    assert isinstance(path, RemotePath)
    places.write_bytes(path, b"one")
    first = path.stamp()
    assert first is not None
    assert first[0] == 3
    assert path.stamp() == first
    places.write_bytes(path, b"two")
    assert path.stamp() != first


def test_what_is_missing_is_told_from_what_is_refused(s3, monkeypatch):
    assert not places.exists(f"{s3}/nothing")
    assert not places.exists("s3://no-such-bucket/a")
    with pytest.raises(FileError, match="no such file or bucket: 's3://no-such-bucket/a'") as caught:
        to_path("s3://no-such-bucket/a").read_bytes()
    assert not isinstance(caught.value, RemoteError)


def test_a_server_that_is_not_there_is_an_error_and_no_empty_folder():
    for answer in (lambda path: path.exists(), lambda path: path.read_bytes()):
        with pytest.raises(RemoteError, match="Cannot connect to host 127.0.0.1:9 .*: 'http://127.0.0.1:9/a'"):
            answer(to_path("http://127.0.0.1:9/a"))


def test_a_refusal_names_the_url_without_its_secrets():
    class Refusing(Quiet):
        def do_GET(self) -> None:
            self.send_error(403, "not for you")

        def do_HEAD(self) -> None:
            self.do_GET()

    with serving(Refusing) as url:
        path = to_path(f"{url}/a.png?token=secret")
        for answer in (path.exists, path.read_bytes):
            with pytest.raises(RemoteError, match="access is denied; check the credentials.*/a.png'") as caught:
                answer()
            assert "secret" not in str(caught.value)


def test_an_answer_that_breaks_off_is_asked_for_again_and_then_an_error(monkeypatch):
    monkeypatch.setattr(remote, "_AGAIN", (0.0, 0.0))
    breaks: list[int] = []

    class Breaking(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"0123456789"[: 4 if breaks.pop() else 10])
            self.close_connection = True

    with serving(Breaking) as url:
        breaks[:] = [0, 1, 1]
        assert to_path(f"{url}/a").read_bytes() == b"0123456789"
        assert breaks == []
        breaks[:] = [0, 1, 1, 1]
        with pytest.raises(RemoteError, match="ClientPayloadError"):
            to_path(f"{url}/a").read_bytes()
        assert breaks == [0]


def test_a_server_that_stalls_is_an_error_in_bounded_time(monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    release = threading.Event()

    class Stalling(Quiet):
        def do_GET(self) -> None:
            release.wait(30)

    with serving(Stalling) as url:
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"no answer within 0.2 s"):
            to_path(f"{url}/a").read_bytes()
        assert time.monotonic() - began < 20
        release.set()


def test_a_server_that_sends_no_parts_of_files_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(100))

    class Whole(SimpleHTTPRequestHandler):
        def __init__(self, *given, **how):
            super().__init__(*given, directory=str(tmp_path), **how)

        log_message = Quiet.log_message

    refused = pytest.raises(RemoteError, match="expected a server that sends a part of a file, got the whole")
    with serving(Whole) as url, places.open_binary(f"{url}/a.bin", block=0) as file, refused:
        file.read(10)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(Package, "present", property(lambda package: package.module != "s3fs"))
    with pytest.raises(MissingPackageError, match=r"s3://a/b: expected s3fs .*; pip install 'fastadv\[s3\]'"):
        to_path("s3://a/b").exists()
    monkeypatch.setattr(Package, "present", property(lambda package: package.module != "fsspec"))
    with pytest.raises(MissingPackageError, match=r"memory://a: expected fsspec .*; pip install 'fastadv\[remote\]'"):
        to_path("memory://a").exists()


def test_an_unknown_protocol_is_named():
    with pytest.raises(ArgumentError, match="nonsense://a: expected a protocol of fsspec, .*, got nonsense"):
        to_path("nonsense://a").exists()
