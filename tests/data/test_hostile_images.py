"""Files made to cost their reader time or memory: only what decides the pixels is read, in bounded memory."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from image_bytes import encoded
from PIL import Image, ImageOps, PngImagePlugin

from fastadv.data import ImageError
from fastadv.data.images import BudgetError, ImageBudget, decode_image, read_size

RGB = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png: bytes, chunks: bytes) -> bytes:
    return png[:33] + chunks + png[33:]  # behind the header


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def exif_of(turn: int, entries: int = 0, size: int = 0) -> bytes:
    """A table with the orientation behind many other tags that all point to the same bytes."""
    table = struct.pack("<2sHIH", b"II", 42, 8, entries + 1)
    end = 8 + 2 + 12 * (entries + 1)
    tags = [struct.pack("<HHII", 0x0200 + i, 7, size, end) for i in range(entries)]
    return table + b"".join(tags) + struct.pack("<HHIHH", 0x0112, 3, 1, turn, 0) + bytes(size)


@pytest.fixture
def given(monkeypatch):
    """How many bytes Pillow was given, file by file."""
    seen: list[int] = []
    original = Image.open

    def opened(file: io.BytesIO, **options: object) -> Image.Image:
        seen.append(len(file.getvalue()))
        return original(file, **options)

    monkeypatch.setattr(Image, "open", opened)
    return seen


BOMB = zlib.compress(bytes(1 << 22), 9)
JPEG = encoded(RGB, "JPEG")
EXIF_BOMB = b"Exif\0\0" + exif_of(1, 5000, 5000)
COSTLY = {
    "text that unpacks to gigabytes": with_chunks(encoded(RGB, "PNG"), 200 * chunk(b"zTXt", b"key\0\0" + BOMB)),
    "a profile": with_chunks(encoded(RGB, "PNG"), chunk(b"iCCP", b"name\0\0" + BOMB)),
    "thousands of chunks": with_chunks(encoded(RGB, "PNG"), 20_000 * chunk(b"tEXt", b"a\0b")),
    "tables of EXIF in a PNG": with_chunks(encoded(RGB, "PNG"), chunk(b"eXIf", exif_of(1, 60_000, 1 << 20))),
    "filler": JPEG[:2] + b"\xff" * 2_000_000 + JPEG[2:],
    "what is no segment": JPEG[:20] + b"\0" * 2_000_000 + JPEG[20:],
    "thousands of segments": JPEG[:2] + 20_000 * segment(0xFE, b"") + JPEG[2:],
    "segments without a length": JPEG[:2] + 20_000 * b"\xff\xfe\0\0" + JPEG[2:],
    "tables of EXIF in a JPEG": JPEG[:2] + segment(0xE1, EXIF_BOMB) + JPEG[2:],
    "tables of pictures": JPEG[:2] + segment(0xE2, b"MPF\0" + exif_of(1, 5000, 5000)) + JPEG[2:],
    "pictures behind the first": encoded(RGB, "MPO", save_all=True, append_images=[Image.fromarray(RGB)] * 50),
}


@pytest.mark.parametrize("what", COSTLY)
def test_what_decides_no_pixel_is_not_given_to_pillow(what: str, given: list[int]) -> None:
    data = COSTLY[what]
    right = RGB if data.startswith(b"\x89PNG") else np.asarray(Image.open(io.BytesIO(JPEG)))
    given.clear()
    found = decode_image(data, "x")
    if what != "pictures behind the first":  # encoded with another quality
        np.testing.assert_array_equal(found, right)
    assert read_size(io.BytesIO(data), "x") == (5, 7)
    assert max(given) < 1000


@pytest.mark.parametrize("turn", range(10))
def test_every_orientation_from_every_place(turn: int) -> None:
    exif, xmp = exif_of(turn), b'<x tiff:Orientation="%d"/>' % turn
    old = Image.fromarray(RGB)
    old.getexif()[0x0112] = turn
    right = np.asarray(ImageOps.exif_transpose(old))

    def text(keyword: str, value: str, packed: bool) -> bytes:
        info = PngImagePlugin.PngInfo()
        info.add_itxt(keyword, value, zip=packed)
        return encoded(RGB, "PNG", pnginfo=info)

    raw = f"\nexif\n{len(exif):8}\n{exif.hex()}\n"
    files = [encoded(RGB, "PNG", exif=exif), encoded(RGB, "WEBP", lossless=True, exif=exif)]
    files += [text("XML:com.adobe.xmp", xmp.decode(), packed) for packed in (False, True)]
    files += [text("Raw profile type exif", raw, packed) for packed in (False, True)]
    files.append(encoded(RGB, "WEBP", lossless=True, xmp=xmp))
    for data in files:
        np.testing.assert_array_equal(decode_image(data, "x"), right)
        assert read_size(io.BytesIO(data), "x") == right.shape[1::-1]
    for data in (encoded(RGB, "JPEG", exif=b"Exif\0\0" + exif), encoded(RGB, "JPEG", xmp=xmp)):
        assert decode_image(data, "x").shape == right.shape
        assert read_size(io.BytesIO(data), "x") == right.shape[1::-1]


@pytest.mark.parametrize("exif", [b"", b"II", b"garbage of some length", exif_of(6)[:12], exif_of(6, 9)[:-13]])
def test_exif_that_cannot_be_read_turns_nothing(exif: bytes) -> None:
    found = decode_image(with_chunks(encoded(RGB, "PNG"), chunk(b"eXIf", exif)), "x")
    np.testing.assert_array_equal(found, RGB)


def test_a_jpeg_of_hundreds_of_scans_is_refused() -> None:
    data = encoded(np.zeros((64, 64), np.uint8), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), len(data) - 2
    many = data[:last] + 100 * data[last:end] + data[end:]
    with pytest.raises(ImageError, match="x: the JPEG image has more than 100 scans"):
        decode_image(many, "x")
    assert decode_image(data[:last] + 50 * data[last:end] + data[end:], "x").shape == (64, 64, 3)


def test_a_webp_is_too_large_before_it_is_opened(given: list[int]) -> None:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\0\xfe\x3f\0"
    data = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    with pytest.raises(ImageError, match="x: expected at most 40000000 pixels, got more"):
        decode_image(data, "x")
    assert given == []


@pytest.mark.parametrize(
    ("format", "before", "size"),
    [
        ("PNG", b"IHDR", struct.pack(">II", 10_000, 9001)),
        ("JPEG", b"\xff\xc0\0\x11\x08", struct.pack(">HH", 9001, 10_000)),
        ("BMP", struct.pack("<I", 40), struct.pack("<ii", 10_000, -9001)),
    ],
)
def test_an_image_is_too_large_without_a_warning(format: str, before: bytes, size: bytes) -> None:
    data = bytearray(encoded(RGB, format))
    start = data.index(before) + len(before)
    data[start : start + len(size)] = size
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for read in (decode_image, lambda data, name: read_size(io.BytesIO(data), name)):
            with pytest.raises(ImageError, match="x: expected at most 40000000 pixels, got 10000x9001"):
                read(bytes(data), "x")
    assert told == []


@pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3"])
def test_decimal_values_are_those_of_the_binary_form(kind: bytes) -> None:
    grey = np.random.default_rng(1).integers(0, 2 if kind == b"P1" else 201, (40, 30, 3 if kind == b"P3" else 1))
    text = b"# what it shows\n" + b" ".join(b"%d" % v for v in grey.ravel()) + b" # the end"
    head = kind + b"\n#a\r30 40" + (b"\n" if kind == b"P1" else b" 200\n")
    right = (1 - grey) * 255 if kind == b"P1" else np.rint(grey / 200 * 255)
    np.testing.assert_array_equal(decode_image(head + text, "x"), np.broadcast_to(right, (40, 30, 3)))
    with pytest.raises(ImageError, match="x: the image is damaged: the file "):
        decode_image(head + text[:1000], "x")
    with pytest.raises(ImageError, match="x: the image is damaged: a (value|pixel) is"):
        decode_image(head + text.replace(b" 1", b" 7999" if kind != b"P1" else b" 7"), "x")


def test_millions_of_comments_are_passed_over() -> None:
    body = b"#\n" * 500_000 + b"1 2 3"
    np.testing.assert_array_equal(decode_image(b"P3 1 1 255\n" + body, "x"), [[[1, 2, 3]]])


def test_binary_values_below_255_are_scaled() -> None:
    np.testing.assert_array_equal(decode_image(b"P5 3 1 100\n\x00\x32\xff", "x")[..., 0], [[0, 128, 255]])
    np.testing.assert_array_equal(decode_image(b"P4 9 1\n\x80\x80", "x")[..., 0], [[0] + 7 * [255] + [0]])
    found = decode_image(b"P6 1 1 255\n\x01\x02\x03", "x")
    assert found.flags.writeable
    assert found.tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P6 1", "the image is damaged: the header is not whole"),
        (b"P5 1 1 0\n\0", "the largest value is 0, expected 1 to 65535"),
        (b"P6 0 1 255\n", r"expected an image with pixels, got 0x1"),
        (b"P6 1 1 255\n\0\0", "the file ends after 2 of 3 bytes of pixels"),
        (b"P6 90000 90000 255\n", "expected at most 40000000 pixels, got 90000x90000"),
        (b"P3 1 1 255\n1 +2 3", "the file has 1 of 3 values"),
        (b"P3 1 1 255\n1 2 00000000003", "the file has 2 of 3 values"),
    ],
)
def test_a_ppm_that_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(data, "x")


def test_images_take_what_is_left_of_their_budget() -> None:
    budget = ImageBudget(pixels=100, parts=1000)
    for data in (encoded(RGB, "PNG"), encoded(RGB, "PPM")):
        assert decode_image(data, "x", budget=budget).shape == (7, 5, 3)
    with pytest.raises(BudgetError, match="the images: expected at most 100 pixels in all of them, got more"):
        decode_image(encoded(RGB, "WEBP"), "x", budget=budget)
    with pytest.raises(ImageError, match="x: expected at most 30 pixels, got 5x7"):
        decode_image(encoded(RGB, "PNG"), "x", most=30)


@pytest.mark.parametrize("what", ["thousands of chunks", "thousands of segments"])
def test_parts_take_their_share_of_the_budget(what: str) -> None:
    with pytest.raises(ImageError, match="x: the (PNG|JPEG) image has more than 1000 (chunks|segments)"):
        decode_image(COSTLY[what], "x", budget=ImageBudget(pixels=1000, parts=1000))
    budget = ImageBudget(pixels=1000, parts=30_000)
    decode_image(COSTLY[what], "x", budget=budget)
    with pytest.raises(BudgetError, match="expected at most 30000 chunks and segments in all of them, got more"):
        decode_image(COSTLY[what], "x", budget=budget)


def test_a_bmp_of_runs_is_many_parts() -> None:
    """Pillow expands run lengths in Python: an end of line in two bytes is a row of steps."""
    width = height = 400
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 2 * height, 0, 0, 0, 0)
    palette = b"".join(bytes((i, 0, 255 - i, 0)) for i in range(256))
    runs = b"\x01\x07\0\0" * height
    data = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 14 + len(head) + len(palette)) + head + palette + runs
    assert decode_image(data, "x")[0, 0].tolist() == [248, 0, 7]
    with pytest.raises(BudgetError, match="expected at most 9000 chunks and segments"):
        decode_image(data, "x", budget=ImageBudget(pixels=10**6, parts=9000))


def test_memory_is_bounded_by_the_pixels() -> None:
    """It took 24 bytes a pixel: the image, its RGBA, a white one, the two over each other, RGB, and the array."""
    width, height = 3000, 2000
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 4 * width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    def memory(key: str) -> int:
        with open("/proc/self/status") as file:
            return 1024 * int(re.search(key + r":\s+(\d+)", file.read())[1])

    decode_image(encoded(RGB, "PNG"), "x")  # what is allocated once
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("the peak of the memory can be read on Linux only")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from here
    before = memory("VmRSS")
    assert decode_image(data, "x").min() == 255
    assert memory("VmHWM") - before < 12 * width * height
