"""Every kind of source at a URL has the faces of the same source on the disk."""

import struct
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fastadv.core import places
from fastadv.core.errors import RemoteError
from fastadv.core.remote import RemotePath
from fastadv.data import (
    IJB,
    LFW,
    AlignmentError,
    FaceSource,
    IdentityFolder,
    ImageError,
    ImageList,
    PairBin,
    RecordIO,
    Shards,
    SourceError,
    encode_png,
    read_image,
    read_landmarks,
    read_pair_list,
    write_shards,
)
from fastadv.data.hashes import KnownHashes
from fastadv.runs.faces import open_faces

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: the extra `remote`")

PEOPLE = ("ann", "bob")


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Two people in each form that a data set may have."""
    root = tmp_path_factory.mktemp("sources")
    made = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    images = {f"{who}/{i}": encode_png(made[k, i]) for k, who in enumerate(PEOPLE) for i in range(2)}
    for name, data in images.items():
        write(root / "tree" / f"{name}.png", data)
        write(root / "lfw" / "images" / f"{name.replace('/', '/' + name.split('/')[0] + '_000')}.png", data)
        write(root / "ijb" / "loose_crop" / f"{name.replace('/', '')}.png", data)
    write(root / "tree" / ".hidden" / "a.png", b"no image")
    write(root / "list.txt", "".join(f"tree/{name}.png {k}\n" for k, name in enumerate(images)).encode())
    write(root / "pairs.csv", b"first,second,same\nann/0,ann/1,1\nann/0,bob/0,0\n")
    write(root / "lfw" / "pairs.txt", b"1\nann\t0\t1\nann\t0\tbob\t1\n")
    names = [name.replace("/", "") for name in images]
    listed = "".join(f"{name}.png {k} {k}\n" for k, name in enumerate(names))
    write(root / "ijb" / "meta" / "x_face_tid_mid.txt", listed.encode())
    write(root / "ijb" / "meta" / "x_template_pair_label.txt", b"0 1 1\n0 2 0\n")
    points = " ".join(map(str, np.array([[10, 10], [22, 10], [16, 16], [12, 22], [20, 22]]).ravel()))
    write(root / "ijb" / "meta" / "x_name_5pts_score.txt", "".join(f"{n}.png {points} .9\n" for n in names).encode())
    write_shards(IdentityFolder(root / "tree", size=None), root / "shards", per_shard=2)
    write(root / "faces.rec", b"".join(record(k // 2, k, data) for k, data in enumerate(images.values())))
    write(root / "pairs.bin", pickled([*images.values()], [True, False]))
    return root


def write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def record(label: int, number: int, image: bytes) -> bytes:
    content = struct.pack("<IfQQ", 0, label, number, 0) + image
    return struct.pack("<II", 0xCED7230A, len(content)) + content + bytes(-len(content) % 4)


def pickled(images: list[bytes], flags: list[bool]) -> bytes:
    import pickle

    return pickle.dumps((images, flags))


@pytest.fixture(scope="module")
def memory(local):
    store = fsspec.filesystem("memory")
    store.put(f"{local}/", "/sources", recursive=True)
    yield "memory://sources"
    store.rm("/sources", recursive=True)


def same(one: FaceSource, other: FaceSource) -> None:
    assert one.names == other.names
    assert len(one) == 4
    assert one.identity() == other.identity()
    for mine, yours in zip(one.stream(), other.stream(), strict=True):
        assert mine.source_hash == yours.source_hash
        assert mine.image.equal(yours.image)
        assert isinstance(one.path(mine.name), RemotePath)


KINDS = [
    pytest.param(IdentityFolder, "tree", id="tree"),
    pytest.param(Shards, "shards/shard-{000000..000001}.tar", id="shards"),
    pytest.param(ImageList, "list.txt", id="list"),
    pytest.param(LFW, "lfw", id="lfw"),
    pytest.param(RecordIO, "faces.rec", id="rec"),
    pytest.param(PairBin, "pairs.bin", id="bin"),
    pytest.param(IJB, "ijb", id="ijb"),
]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_source_in_memory_is_the_local_one(kind, name, memory, local):
    same(kind(f"{memory}/{name}", size=32), kind(f"{local}/{name}", size=32))


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_source_is_recognised_at_a_url(kind, name, memory, local):
    found = open_faces(Path(f"{memory}/{name}"), size=32)
    assert type(found) is kind
    same(found, open_faces(local / name, size=32))


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_source_behind_a_cache_of_files_is_the_local_one(kind, name, memory, local):
    same(kind(f"simplecache::{memory}/{name}", size=32), kind(f"{local}/{name}", size=32))


def test_lists_at_a_url_are_those_of_the_disk(memory, local):
    assert read_pair_list(f"{memory}/pairs.csv") == read_pair_list(local / "pairs.csv")
    assert LFW(f"{memory}/lfw").pairs == LFW(local / "lfw").pairs
    points, expected = (read_landmarks(f"{root}/ijb/meta/x_name_5pts_score.txt") for root in (memory, local))
    assert {name: value.tolist() for name, value in points.items()} == {n: v.tolist() for n, v in expected.items()}
    found, wanted = (IJB(f"{root}/ijb").template_pairs() for root in (memory, local))
    assert (found.first.tolist(), found.same.tolist()) == (wanted.first.tolist(), wanted.same.tolist())
    assert (read_image(f"{memory}/tree/ann/0.png") == read_image(local / "tree/ann/0.png")).all()


def test_a_list_names_urls_too(memory, local, tmp_path):
    (tmp_path / "list.txt").write_text(f"{memory}/tree/ann/0.png 7\n{local}/tree/bob/0.png 8\n")
    source = ImageList(tmp_path / "list.txt", size=32)
    hashes = {name.partition("/")[0]: source.load(name).source_hash for name in source.names}
    expected = IdentityFolder(local / "tree", size=32)
    assert hashes == {"7": expected.load("ann/0").source_hash, "8": expected.load("bob/0").source_hash}


def test_a_list_at_a_url_reads_no_file_of_this_machine(memory, local):
    places.write_bytes(f"{memory}/absolute.txt", f"{local}/tree/ann/0.png 7\n".encode())
    with pytest.raises(SourceError, match="absolute.txt:1: expected a path below the list's folder, or a URL, got /"):
        ImageList(f"{memory}/absolute.txt")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (IdentityFolder, "nothing", "memory://sources/nothing: expected a folder, got no such folder"),
        (IdentityFolder, "list.txt", "memory://sources/list.txt: expected a folder of identities, got a file"),
        (Shards, "nothing.tar", "memory://sources/nothing.tar: there is no such shard"),
        (Shards, "list.txt", "memory://sources/list.txt: cut short"),
        (ImageList, "nothing.txt", "memory://sources/nothing.txt: the list cannot be read: no such file or bucket"),
        (PairBin, "nothing.bin", "memory://sources/nothing.bin: there is no such file"),
        (RecordIO, "nothing.rec", "memory://sources/nothing.rec: there is no such file"),
    ],
)
def test_what_is_not_there_is_named(kind, name, message, memory):
    with pytest.raises(SourceError, match=message):
        kind(f"{memory}/{name}")


def test_files_that_are_no_images_are_named(memory):
    places.write_bytes("memory://bad/ann/0.png", b"")
    places.write_bytes("memory://bad/ann/1.png", b"no image")
    source = IdentityFolder("memory://bad")
    with pytest.raises(ImageError, match="2 of 2 images cannot be used, first memory://bad/ann/0.png: .* an empty one"):
        source.check(source.names)
    with pytest.raises(AlignmentError, match="memory://bad/points.txt: the landmarks cannot be read"):
        IdentityFolder("memory://bad", landmarks="memory://bad/points.txt")


def test_a_change_between_two_reads_is_an_error(memory):
    places.write_bytes("memory://changing/ann/0.png", encode_png(np.zeros((32, 32, 3), np.uint8)))
    source = IdentityFolder("memory://changing", size=32)
    source.identity()
    places.write_bytes("memory://changing/ann/0.png", encode_png(np.ones((32, 32, 3), np.uint8)))
    with pytest.raises(SourceError, match="memory://changing/ann/0.png: expected the file as it was when"):
        source.unchanged(source.load("ann/0"))


def test_hashes_that_are_known_are_not_computed_again(memory, monkeypatch):
    known = KnownHashes()
    first = IdentityFolder(f"{memory}/tree", size=32).identity(known=known)
    monkeypatch.setattr(RemotePath, "fetch", None)
    assert IdentityFolder(f"{memory}/tree", size=32).identity(known=known) == first


def test_a_connection_that_fails_skips_no_image(memory, monkeypatch):
    source = IdentityFolder(f"{memory}/tree", size=32)

    def fetch(path: RemotePath, start: int, end: int) -> bytes:
        raise RemoteError(5, "no answer", str(path))

    monkeypatch.setattr(RemotePath, "fetch", fetch)
    with pytest.raises(RemoteError, match="no answer: 'memory://sources/tree/ann/0.png'"):
        list(source.stream(on_error="skip"))


def test_a_folder_over_http_is_the_local_one(local):
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *given, **how):
            super().__init__(*given, directory=str(local), **how)

        def log_message(self, *text: object) -> None:
            pass

    pytest.importorskip("aiohttp", reason="aiohttp is not installed: the extra `remote`")
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        same(open_faces(Path(f"{url}/tree"), size=32), open_faces(local / "tree", size=32))
        same(open_faces(Path(f"{url}/list.txt"), size=32), open_faces(local / "list.txt", size=32))
        with pytest.raises(SourceError, match=f"{url}/nothing: expected a folder, got no such folder"):
            open_faces(Path(f"{url}/nothing"), size=32)
        server.shutdown()
