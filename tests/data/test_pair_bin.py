"""InsightFace's .bin files: what they hold is read, what they want to run is not."""

import io
import math
import os
import pickle
import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from damage import mutated
from PIL import Image

from fastadv.data import ImageError, SourceError
from fastadv.data.images import encode_png, to_uint8
from fastadv.data.pair_bin import PairBin, contiguous_folds

RNG = np.random.default_rng(0)
FACES = [RNG.integers(0, 256, (112, 112, 3), dtype=np.uint8) for _ in range(6)]
IMAGES = [encode_png(face) for face in FACES]
FLAGS = [True, False, True]


def written(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [bool, int, np.bool_])
def test_every_protocol_and_kind_of_flag(tmp_path: Path, protocol: int, kind: type) -> None:
    source = PairBin(written(tmp_path / "lfw.bin", (IMAGES, [kind(f) for f in FLAGS]), protocol))
    assert [p.same for p in source.pairs] == FLAGS
    assert (source.pairs[1].first, source.pairs[1].second) == ("pair/000001_a", "pair/000001_b")
    assert source.names == tuple(f"pair/00000{i}_{s}" for i in range(3) for s in "ab")
    for name, face in zip(source.names, FACES, strict=True):
        np.testing.assert_array_equal(to_uint8(source.load(name).image), face)


def test_what_python_2_wrote(tmp_path: Path) -> None:
    """Its protocol 2 has byte strings (T, U) where Python 3 has calls of `_codecs.encode`."""
    body = b"\x80\x02]q\x00("
    for number, image in enumerate(IMAGES):
        body += b"T" + struct.pack("<i", len(image)) + image + b"q" + bytes([number + 1])
    body += b"e]q\x20(\x88\x89\x88e\x86q\x21."
    (tmp_path / "lfw.bin").write_bytes(body)
    assert pickle.loads(body, encoding="bytes") == (IMAGES, FLAGS)
    source = PairBin(tmp_path / "lfw.bin")
    assert [p.same for p in source.pairs] == FLAGS
    np.testing.assert_array_equal(to_uint8(source.load("pair/000002_b").image), FACES[5])


def test_a_source_like_any_other(tmp_path: Path) -> None:
    import hashlib

    source = PairBin(written(tmp_path / "lfw.bin", (IMAGES, FLAGS)), size=64)
    with source.stream(["pair/000001_b", "pair/000000_a"]) as faces:
        first, second = faces
    assert (first.name, second.name, first.identity) == ("pair/000001_b", "pair/000000_a", "pair")
    assert first.source_hash == hashlib.sha256(IMAGES[3]).hexdigest()
    assert first.image.shape == (3, 64, 64)
    with pytest.raises(KeyError, match="pair/9"):
        source.load("pair/9")


def test_folds_are_contiguous_tenths() -> None:
    from sklearn.model_selection import KFold

    for count in (6000, 7000, 23, 10, 4):
        expected = [0] * count
        if count >= 10:
            for fold, (_, test) in enumerate(KFold(10).split(np.zeros(count))):
                for place in test:
                    expected[place] = fold
        else:
            expected = list(range(count))
        assert contiguous_folds(count) == expected


class _Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self._what = function, arguments

    def __reduce__(self) -> tuple:
        return self._what


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_of_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "was_here"
    evil = _Evil(os.system, f"touch {mark}")
    path = written(tmp_path / "lfw.bin", (IMAGES[:0], [evil]), protocol)
    with pytest.raises(SourceError, match=r"lfw\.bin: refused as a \.bin of pairs: it asks for posix\.system, which"):
        PairBin(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the same file, trusted, does it
    assert mark.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((IMAGES, [_Evil(eval, "1")]), r"asks for (builtins|__builtin__)\.eval"),
        (
            (FACES, FLAGS),
            r"image 0: expected the bytes of an image file, got pixels, an array of shape \(112, 112, 3\)",
        ),
        (({}, FLAGS), "uses the opcode EMPTY_DICT"),
        ((IMAGES, [1.0, 0.0, 1.0]), "uses the opcode BINFLOAT"),
        (IMAGES, r"expected a pickle of \(list of images, list of flags\), got a list of 6"),
        ((IMAGES, FLAGS, FLAGS), r"expected a pickle of \(list of images, list of flags\), got a tuple of 3"),
        ((7, FLAGS), "expected a pickle of"),
        (7, "expected a pickle of .* got 7"),
        ((IMAGES[:5], FLAGS), "expected two images for each flag, got 5 images, 3 flags"),
        ((IMAGES, FLAGS[:2]), "expected two images for each flag, got 6 images, 2 flags"),
        (([], []), "expected two images for each flag, got 0 images, 0 flags"),
        ((IMAGES, [True, False, 2]), "flag 2: expected true or false, got 2"),
        ((IMAGES, [True, False, None]), "flag 2: expected true or false, got None"),
        (([*IMAGES[:5], 5], FLAGS), "image 5: expected the bytes of an image file, got 5"),
    ],
    ids=range(14),
)
def test_other_pickles_are_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(SourceError, match=message) as error:
        PairBin(written(tmp_path / "lfw.bin", value))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'lfw.bin'}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected an InsightFace \.bin of pairs .*, got an empty file; download it again"),
        (b"\x89PNG\r\n\x1a\n", "got a PNG image"),
        (b"\x80\x04\xff", "not a readable pickle: the byte 0xff is no opcode"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "a string of 1152921504606846976 bytes"),
        (b"\x80\x04B" + struct.pack("<I", 2**26 + 1) + b"x.", "a string of 67108865 bytes"),
        (b"\x80\x04B" + struct.pack("<I", 1000) + b"x.", "cut short: 1000 bytes expected at 7, the file has 9"),
        (b"\x80\x02c" + b"a" * 5000 + b"\nb\n.", "a line of 4096 bytes or more"),
        (b"\x80\x04K\x01K\x02.", "ends with 2 values"),
        (b"\x80\x04h\x05.", "recalls memo 5"),
        (b"\x80\x04\x86.", "takes more from its stack"),
        (b"\x80\x04a.", "takes more from its stack"),
        (b"\x80\x04e.", "closes a list that it did not open"),
        (b"\x80\x04K\x01K\x02a.", "appends to something that is no list"),
        (b"\x80\x04\x94.", "looks at an empty stack"),
        (b"\x80\x04K\x01K\x02R.", "calls something that is no function"),
        (b"\x80\x04c_codecs\nencode\n)R.", r"calls _codecs\.encode in a way"),
        (b"\x80\x04]K\x01b.", "sets the state of an object"),
        (b"\x80\x04K\x01K\x02\x93.", "names a global by something that is no short text"),
        (b"\x80\x04\x82\x01.", "uses the opcode EXT1"),
        (b"\x80\x04Pid\n.", "uses the opcode PERSID"),
    ],
)
def test_hostile_files_give_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(SourceError, match=message) as error:
        PairBin(tmp_path / "x.bin")
    assert "\n" not in str(error.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.new("RGB", (2, 2)).save(small, "PNG")
    whole = pickle.dumps(([small.getvalue()] * 4, [True, False]), protocol=4)
    for end in range(len(whole)):
        (tmp_path / "x.bin").write_bytes(whole[:end])
        with pytest.raises(SourceError, match=r"x\.bin: "):
            PairBin(tmp_path / "x.bin")


def test_a_bad_image_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    source = PairBin(written(tmp_path / "x.bin", ([b"no image", *IMAGES[1:]], FLAGS)))
    with pytest.raises(ImageError, match=r"x\.bin/pair/000000_a: not a JPEG, PNG, BMP, WebP, TIFF, AVIF or PPM image"):
        source.load("pair/000000_a")
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ImageError, match=r"x\.bin/pair/000001_a: cannot be read: .* bytes expected"):
        source.load("pair/000001_a")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such file"):
        PairBin(tmp_path / "no.bin")
    with pytest.raises(SourceError, match="this is not a file"):
        PairBin(tmp_path)


def test_images_stay_in_the_file(tmp_path: Path) -> None:
    """1,000 images of 64 KiB: a few images at a time are in memory."""
    import tracemalloc

    image = os.urandom(65536)
    path = tmp_path / "x.bin"
    with open(path, "wb") as file:
        file.write(b"\x80\x04](")
        for _ in range(1000):
            file.write(b"B" + struct.pack("<I", len(image)) + image)
        file.write(b"e](" + b"\x88" * 500 + b"e\x86.")
    tracemalloc.start()
    source = PairBin(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 1000
    assert peak < 4 * 2**20


FLAT = [np.frombuffer(image, np.uint8).copy() for image in IMAGES]
KINDS = {
    "bytes": IMAGES,
    "bytearrays": [bytearray(image) for image in IMAGES],
    "rows": FLAT,
    "columns": [array[:, None] for array in FLAT],
    "read-only rows": [np.frombuffer(image, np.uint8) for image in IMAGES],
    "an array of objects": np.array([*FLAT, None], dtype=object)[:6],
    "a tuple": tuple(IMAGES),
}
MARKS = {
    "bool": FLAGS,
    "int64": [np.int64(flag) for flag in FLAGS],
    "numpy bool": [np.bool_(flag) for flag in FLAGS],
    "an array": np.array(FLAGS),
    "an array of int64": np.array(FLAGS, np.int64),
    "a big-endian column": np.array(FLAGS, ">i4")[:, None],
    "floats": np.array(FLAGS, np.float32),
    "arrays of one": [np.array([flag]) for flag in FLAGS],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("numpy_1", [False, True])
def test_what_packers_write(tmp_path: Path, protocol: int, numpy_1: bool) -> None:
    """Images and flags of every kind, under every protocol and both of NumPy's module names."""
    for kind, images in KINDS.items():
        for mark, flags in MARKS.items():
            if kind != "bytes" and mark not in ("bool", "an array"):
                continue
            data = pickle.dumps((images, flags), protocol=protocol)
            if numpy_1 and protocol < 4:  # later ones say how long a name is
                data = data.replace(b"numpy._core.", b"numpy.core.")
            (tmp_path / "x.bin").write_bytes(data)
            source = PairBin(tmp_path / "x.bin")
            assert [p.same for p in source.pairs] == FLAGS, (kind, mark)
            np.testing.assert_array_equal(to_uint8(source.load("pair/000002_b").image), FACES[5])


def test_protocol_0_of_python_2(tmp_path: Path) -> None:
    """Byte strings as quoted, escaped lines."""
    body = b"((lp1\n"
    for image in IMAGES:
        text = "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in image)
        body += f"S'{text}'\na".encode("ascii")
    (tmp_path / "x.bin").write_bytes(body + b"(lp2\nI01\naI00\naI01\nat.")
    source = PairBin(tmp_path / "x.bin")
    assert [p.same for p in source.pairs] == FLAGS
    np.testing.assert_array_equal(to_uint8(source.load("pair/000002_b").image), FACES[5])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((IMAGES, np.array([[True, False], [False, True]])), r"its flags are an array of shape \(2, 2\)"),
        ((IMAGES, np.array(["yes", "no", "no"])), "NumPy values of type 'U3'"),
        ((IMAGES, np.array([1, 2, 0])), "flag 1: expected true or false, got 2"),
        ((np.stack(FACES), FLAGS), "expected a pickle of .* got a tuple of 2"),
        (([image.decode("latin-1") for image in IMAGES], FLAGS), "image 0: expected the bytes .* got text"),
        ((IMAGES, np.zeros(3, dtype=[("a", "i4")])), "NumPy values of type 'V4'"),
        ((IMAGES, [1 << 5000]), "an integer of 626 bytes"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        PairBin(written(tmp_path / "x.bin", value, protocol=2))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"name,other,1\n", "a CSV text|a text"),
        (pickle.dumps((IMAGES, FLAGS))[:-500], r"cut short: .*; download it again"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(SourceError, match=words):
        PairBin(tmp_path / "x.bin")


def test_damaged_files_give_one_sentence(tmp_path: Path) -> None:
    small = encode_png(np.zeros((2, 2, 3), np.uint8))
    arrays = [np.frombuffer(small, np.uint8).copy()] * 4
    wholes = [
        pickle.dumps(v, protocol=p) for p in range(6) for v in (([small] * 4, [True, False]), (arrays, np.eye(1, 2)))
    ]
    chance, refused = random.Random(3), 0
    for _ in range(500):
        (tmp_path / "x.bin").write_bytes(mutated(chance.choice(wholes), chance))
        try:
            source = PairBin(tmp_path / "x.bin")
            source.load(source.names[0])
        except (SourceError, ImageError):
            refused += 1
    assert refused > 250


def test_time_is_linear_in_the_size(tmp_path: Path) -> None:
    """A file of nothing but opcodes, the slowest there is: four times the size in about four times the time."""

    def seconds(count: int) -> float:
        (tmp_path / "x.bin").write_bytes(b"\x80\x04](" + b"\x88" * count + b"e](e\x86.")
        best = math.inf
        for _ in range(3):
            begin = time.process_time()
            with pytest.raises(SourceError, match="image 0"):
                PairBin(tmp_path / "x.bin")
            best = min(best, time.process_time() - begin)
        return best

    assert seconds(200_000) < 12 * seconds(50_000) + 0.1
