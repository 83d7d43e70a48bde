"""Image files: every mode that people have, every way a file can be wrong."""

import contextlib
import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fastadv.data import ImageError, encode_png, read_image, to_tensor, to_uint8, write_png
from fastadv.data.images import decode_image, read_size, readable, sniff

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_png_comes_back_exactly(tmp_path: Path) -> None:
    got = read_image(save(tmp_path / "a.png", Image.fromarray(RGB)))
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_array_equal(got, RGB)


@pytest.mark.parametrize("extension", ["bmp", "ppm"])
def test_other_lossless_formats(tmp_path: Path, extension: str) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a.{extension}", Image.fromarray(RGB))), RGB)


def test_grey_is_three_equal_channels(tmp_path: Path) -> None:
    got = read_image(save(tmp_path / "a.png", Image.fromarray(RGB[..., 0])))
    np.testing.assert_array_equal(got, np.repeat(RGB[..., :1], 3, axis=2))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_image(save(tmp_path / "a.png", bits)).tolist() == [[[0] * 3, [255] * 3]]


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert read_image(save(tmp_path / "a.png", image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_transparent_pixels_are_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0]]], np.uint8)
    assert read_image(save(tmp_path / "a.png", Image.fromarray(rgba))).tolist() == [[[200, 100, 0], [255] * 3]]


def test_palette_with_transparency_is_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    got = read_image(save(tmp_path / "a.png", image, transparency=b"\x00\xff"))
    assert got.tolist() == [[[255] * 3, [40, 50, 60]]]


def test_cmyk_jpeg_is_read(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    got = read_image(save(tmp_path / "a.jpg", image, quality=100))
    assert got.shape == (16, 16, 3)
    assert got[..., 0].min() > 200
    assert got[..., 1:].max() < 60


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90), (2, lambda a: a[:, ::-1])],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, undo) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = read_image(save(tmp_path / "a.png", Image.fromarray(RGB), exif=exif))
    np.testing.assert_array_equal(got, undo(RGB))


def test_sixteen_bit_grey_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "deep.png", Image.fromarray(np.full((3, 3), 40000, np.uint16)))
    with pytest.raises(ImageError, match=r"deep\.png: expected 8 bits per channel"):
        read_image(path)


def png(width: int, height: int, depth: int, colour: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_is_refused_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png(1, 1, 16, 2, zlib.compress(b"\x00" + bytes(6))))
    with pytest.raises(ImageError, match=r"deep\.png: expected 8 bits per channel"):
        read_image(path)


@pytest.mark.parametrize("side", [7_000, 12_000, 60_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 2, zlib.compress(b"")))
    with pytest.raises(ImageError, match=r"bomb\.png: expected at most 40000000 pixels"):
        read_image(path)


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.jpg", Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ImageError, match=r"cut\.jpg: the image is damaged: .*truncated"):
        read_image(path)


@pytest.mark.parametrize("keep", [9, 20, 30, 45, 60])
def test_truncated_png(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(encode_png(RGB)[:keep])
    with pytest.raises(ImageError, match=r"cut\.png: "):
        read_image(path)


def test_text_named_png(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("this is no image")
    with pytest.raises(ImageError, match=r"text\.png: not a JPEG, PNG, BMP, WebP, TIFF, AVIF or PPM image"):
        read_image(path)


def test_other_formats_are_not_even_tried(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not a JPEG"):
        read_image(path)


def test_no_bytes_no_pixels_no_file_a_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png: expected an image file, got an empty one"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "zero.png").write_bytes(png(0, 4, 8, 2, zlib.compress(b"")))
    with pytest.raises(ImageError, match=r"zero\.png: "):
        read_image(tmp_path / "zero.png")
    with pytest.raises(ImageError, match=r"none\.png: cannot be read: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="expected an image file, got a folder"):
        read_image(tmp_path)


def test_a_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe\.png: expected an image file, got something that is not a plain file"):
        read_image(tmp_path / "pipe.png")


@given(st.binary(max_size=200))
def test_any_bytes_give_an_image_or_an_image_error(data: bytes) -> None:
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"P6\n", encode_png(RGB)[:40]):
        with contextlib.suppress(ImageError):
            assert decode_image(head + data, "x").dtype == np.uint8


def test_every_8_bit_value_survives_the_round_trip() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(values)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 16, 16)
    np.testing.assert_array_equal(to_uint8(tensor), values)
    np.testing.assert_array_equal(tensor[0].flatten().numpy(), np.arange(256, dtype=np.float32) / np.float32(255))


def test_batches_keep_their_order() -> None:
    batch = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    tensor = to_tensor(batch)
    assert tensor.shape == (4, 3, 6, 5)
    assert torch.equal(tensor[2], to_tensor(batch[2]))
    np.testing.assert_array_equal(to_uint8(tensor), batch)


def test_to_uint8_rounds_and_does_not_cut_off() -> None:
    values = torch.tensor([0.4 / 255, 0.6 / 255, 254.6 / 255]).view(3, 1, 1)
    assert to_uint8(values).ravel().tolist() == [0, 1, 255]


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan"), float("inf")])
def test_to_uint8_refuses_what_is_outside(bad: float) -> None:
    image = torch.full((3, 2, 2), 0.5)
    image[1, 0, 1] = bad
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        to_uint8(image)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 2\) torch.float32"):
        to_uint8(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="int64"):
        to_uint8(torch.zeros(3, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(2, 2, 4\) uint8"):
        to_tensor(np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        encode_png(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"got \(0, 2, 3\)"):
        encode_png(np.zeros((0, 2, 3), np.uint8))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_png_holds_the_pixels_and_is_deterministic(image: np.ndarray) -> None:
    data = encode_png(image)
    assert data == encode_png(np.asfortranarray(image))
    with Image.open(io.BytesIO(data)) as decoded:
        decoded.verify()
    with Image.open(io.BytesIO(data)) as decoded:
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), image)


def test_encode_png_of_a_view() -> None:
    image = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(image[::2, ::-1]))) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), image[::2, ::-1])


def test_write_png(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RGB, fsync=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("call", ["replace", "write", "fsync"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.png"
    write_png(path, RGB)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.png'"):
        write_png(path, RGB[::-1], fsync=True)
    assert os.listdir(tmp_path) == ["a.png"]
    np.testing.assert_array_equal(read_image(path), RGB)


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / "a.png", RGB)
    assert os.listdir(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data[:7])))
    write_png(tmp_path / "a.png", RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def test_threads_may_write_one_folder(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for index in range(20):
            write_png(tmp_path / f"{number}-{index}.png", RGB)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir(tmp_path)) == 80


@pytest.mark.parametrize(
    "data",
    [
        b"P6 1 1 65535\n" + bytes(6),
        b"P6\n# a comment\n1 1\n# another\n256\n" + bytes(6),
        b"P5 1 1 65535\n" + bytes(2),
        b"P3 1 1 1023 1 2 3\n",
    ],
)
def test_a_ppm_of_more_than_8_bits_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.ppm").write_bytes(data)
    with pytest.raises(ImageError, match="expected 8 bits per channel"):
        read_image(tmp_path / "a.ppm")
    with pytest.raises(ImageError, match="expected 8 bits per channel"):
        read_size(io.BytesIO(data), "a.ppm")


def test_a_ppm_of_fewer_levels_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 3\n" + bytes([0, 1, 3]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.ppm"), [[[0, 85, 255]]])


@pytest.mark.parametrize(
    ("format", "found"),
    [
        ("JPEG", "JPEG"),
        ("PNG", "PNG"),
        ("BMP", "BMP"),
        ("WEBP", "WebP"),
        ("PPM", "PPM"),
        ("GIF", "GIF"),
        ("TIFF", "TIFF"),
        ("AVIF", "AVIF"),
        ("JPEG2000", "JPEG 2000"),
    ],
)
def test_the_format_is_told_by_content(tmp_path: Path, format: str, found: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (7, 5)).save(file, format)
    assert sniff(file.getvalue()[:64]) == found
    if readable(found):
        assert read_size(io.BytesIO(file.getvalue()), "x") == (7, 5)
        return
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    with pytest.raises(
        ImageError, match=f"a.jpg: not a JPEG, PNG, BMP, WebP, TIFF, AVIF or PPM image but {found}; save it as"
    ):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "head", [b"", b"BM is a text", b"P6", b"hello", b"\0\0\0\x18ftypisom", b"PK\x03\x04", b"\xd0\xcf\x11\xe0"]
)
def test_what_is_no_image_by_content(head: bytes) -> None:
    assert sniff(head) is None
    with pytest.raises(ImageError, match="got an empty one|not a JPEG|damaged"):
        read_size(io.BytesIO(head), "x")


def test_memory_that_runs_out_is_no_damaged_image(monkeypatch):
    def none(*given, **how):
        raise MemoryError

    monkeypatch.setattr(Image, "open", none)
    with pytest.raises(MemoryError):
        decode_image(encode_png(np.zeros((4, 4, 3), np.uint8)), "a.png")
