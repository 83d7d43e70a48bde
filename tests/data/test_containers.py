"""TIFF, AVIF and HEIC: the first picture, upright, in bounded memory; what decides no pixel is not given to Pillow."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from image_bytes import encoded
from PIL import Image, ImageOps

from fastadv.data import IdentityFolder, ImageError, formats, read_image
from fastadv.data.images import BudgetError, ImageBudget, decode_image, read_size

RGB = np.random.default_rng(0).integers(0, 256, (18, 34, 3), dtype=np.uint8)
_X, _Y = np.meshgrid(np.arange(34), np.arange(18))
SMOOTH = np.stack([7 * _X, 14 * _Y, 4 * _X + 6 * _Y], 2).astype(np.uint8)  # for formats that halve the colours
COMPRESSIONS = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"]
TURN = 0x0112


def turned(turn: int, pixels: np.ndarray = RGB) -> tuple[np.ndarray, bytes]:
    """What an orientation makes of the picture, and its EXIF."""
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[TURN] = turn
    return np.asarray(ImageOps.exif_transpose(image)), exif.tobytes()


def described() -> bytes:
    """EXIF that says more than the orientation, which alone becomes a property of the picture."""
    exif = Image.fromarray(RGB).getexif()
    exif[0x010E] = "a description"
    return exif.tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tiff_of_every_compression_and_byte_order(compression: str, order: str) -> None:
    data = encoded(RGB, "TIFF", compression=compression, **({} if order == "<" else {"big_endian": True}))
    np.testing.assert_array_equal(decode_image(data, "x"), RGB)
    assert read_size(io.BytesIO(data), "x") == (34, 18)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_a_tiff_of_every_mode_is_that_of_a_png_or_of_pillow(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(128)
        expected = decode_image(encoded(image, "PNG"), "x")
    else:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(image, "TIFF"), "x"), expected)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_tiff_and_an_avif_are_upright(turn: int) -> None:
    expected, exif = turned(turn)
    tiff = encoded(RGB, "TIFF", tiffinfo={TURN: turn})
    np.testing.assert_array_equal(decode_image(tiff, "x"), expected)
    avif = decode_image(encoded(RGB, "AVIF", exif=exif, quality=100, subsampling="4:4:4"), "x")
    assert avif.shape == expected.shape
    assert np.abs(avif.astype(int) - expected).mean() < 3
    for data in (tiff, encoded(RGB, "AVIF", exif=exif)):
        assert read_size(io.BytesIO(data), "x") == expected.shape[1::-1]


def test_of_several_pictures_the_first_is_taken() -> None:
    other = Image.fromarray(255 - RGB)
    tiff = encoded(RGB, "TIFF", save_all=True, append_images=[other])
    np.testing.assert_array_equal(decode_image(tiff, "x"), RGB)
    moving = encoded(RGB, "AVIF", save_all=True, append_images=[other], quality=100, subsampling="4:4:4")
    assert np.abs(decode_image(moving, "x").astype(int) - RGB).mean() < 5


def test_a_tiff_of_16_bits_is_refused() -> None:
    deep = encoded(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "TIFF")
    with pytest.raises(ImageError, match="x: expected 8 bits per channel"):
        decode_image(deep, "x")
    with pytest.raises(ImageError, match="x: expected 8 bits per channel"):
        decode_image(tiff_of(RGB.astype("<u2") * 257, bits=16), "x")  # Pillow would cut it to 8 bits


def tiff_of(pixels: np.ndarray, *, bits: int = 8, more: bytes = b"", count: int = 0) -> bytes:
    """A raw RGB TIFF by hand, with further entries of its table."""
    height, width = pixels.shape[:2]
    body = pixels.tobytes()
    depth = struct.pack("<3H", bits, bits, bits)
    start = 8 + len(body) + len(depth)
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + len(body)), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(body))]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries) + more
    head = struct.pack("<2sHI", b"II", 42, start)
    return head + body + depth + struct.pack("<H", len(entries) + count) + table + bytes(4)


def test_a_tiff_by_hand() -> None:
    np.testing.assert_array_equal(decode_image(tiff_of(RGB), "x"), RGB)


def test_metadata_of_a_tiff_is_not_given_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty thousand tags that each hold the whole file would be gigabytes."""
    count = 20_000
    more = b"".join(struct.pack("<HHII", 40_000 + i, 7, 240_000, 8) for i in range(count))
    data = tiff_of(RGB, more=more, count=count)
    seen: list[int] = []
    original = Image.open

    def opened(file: io.BytesIO, **options: object) -> Image.Image:
        image = original(file, **options)
        seen.append(len(image.tag_v2))
        return image

    monkeypatch.setattr(Image, "open", opened)
    np.testing.assert_array_equal(decode_image(data, "x"), RGB)
    assert seen == [9]
    with pytest.raises(ImageError, match="the TIFF image has more than 5000 tags"):
        decode_image(data, "x", budget=ImageBudget(pixels=10_000, parts=5000))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (struct.pack("<HHII", 324, 4, 1 << 30, 8), "its tag 324 has more values than the file"),
        (struct.pack("<HHII", 325, 9999, 1, 8), None),  # an unknown type
    ],
)
def test_a_tag_that_cannot_be(more: bytes, message: str | None) -> None:
    data = tiff_of(RGB, more=more, count=1)
    if message is None:
        np.testing.assert_array_equal(decode_image(data, "x"), RGB)
        return
    with pytest.raises(ImageError, match=message):
        decode_image(data, "x")


@pytest.mark.parametrize("format", ["TIFF", "AVIF"])
def test_a_file_that_was_cut_is_damaged_or_whole(format: str) -> None:
    data = encoded(RGB, format)
    for end in range(16, len(data), max(1, len(data) // 60)):
        with contextlib.suppress(ImageError):
            assert decode_image(data[:end], "x").shape == RGB.shape


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    large = struct.pack("<HHII", 256, 4, 1, 100_000) + struct.pack("<HHII", 257, 4, 1, 100_000)
    whole = tiff_of(RGB)
    at = whole.rindex(struct.pack("<HHII", 256, 3, 1, 34))
    data = whole[:at] + large + whole[at + 24 :]
    with pytest.raises(ImageError, match="expected at most 40000000 pixels, got 100000x100000"):
        decode_image(data, "x")
    for format in ("TIFF", "AVIF"):
        with pytest.raises(BudgetError, match="expected at most 100 pixels"):
            decode_image(encoded(RGB, format), "x", budget=ImageBudget(pixels=100, parts=5000))


def test_exif_of_an_avif_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(RGB, "AVIF", exif=described())
    assert b"Exif" in data
    found: list[bytes] = []
    original = Image.open

    def opened(file: io.BytesIO, **options: object) -> Image.Image:
        found.append(file.getvalue())
        return original(file, **options)

    monkeypatch.setattr(Image, "open", opened)
    assert decode_image(data, "x").shape == RGB.shape
    assert b"Exif" not in found[0][: found[0].index(b"mdat")]


def test_a_folder_of_all_formats(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for k, (format, ending) in enumerate(
        (("TIFF", "tif"), ("TIFF", "tiff"), ("AVIF", "avif"), ("MPO", "mpo"), ("PNG", "png"))
    ):
        (tmp_path / "a" / f"{k}.{ending}").write_bytes(encoded(RGB, format))
    source = IdentityFolder(tmp_path, size=18)
    assert source.names == tuple(f"a/{k}" for k in range(5))
    assert [source.load(name).image.shape for name in source.names] == [(3, 18, 18)] * 5


def heic(**options: object) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    return encoded(SMOOTH, "HEIF", quality=95, **options)


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_heic_is_read_with_its_extra(turn: int) -> None:
    expected, exif = turned(turn, SMOOTH)
    found = decode_image(heic(exif=exif), "x")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 3
    assert formats.sniff(heic()[:64]) == "HEIC"


def test_without_its_extra_a_heic_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "reads_heic", lambda: False)
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    with pytest.raises(ImageError, match=r"image but HEIC; pip install 'fastadv\[heic\]', or save it as PNG or JPEG"):
        read_image(path)


@pytest.mark.parametrize(
    ("major", "others", "found"),
    [
        (b"mif1", b"mif1avif", "AVIF"),
        (b"mif1", b"mif1heic", "HEIC"),
        (b"avif", b"mif1", "AVIF"),
        (b"isom", b"iso2", None),
    ],
)
def test_brands_tell_avif_from_heic(major: bytes, others: bytes, found: str | None) -> None:
    head = struct.pack(">I", 16 + len(others)) + b"ftyp" + major + bytes(4) + others
    assert formats.sniff(head) == found
