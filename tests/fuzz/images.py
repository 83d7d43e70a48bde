"""Image files: every format that is read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, features

from fastadv.data.images import ImageBudget, ImageError, decode_image, encode_png, read_size

from .judge import Target

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
PNG = encode_png(PIXELS)
_MOST = 1 << 18  # pixels of an image, and so the memory
_PARTS = 4096
_RGB = Image.fromarray(PIXELS)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def read(data: bytes, folder: Path) -> None:
    """Decodes; what is decoded has the size that was told before."""
    try:
        size = read_size(io.BytesIO(data), "x", most=_MOST)
    except ImageError:
        size = None
    found = decode_image(data, "x", most=_MOST, budget=ImageBudget(pixels=_MOST, parts=_PARTS))
    assert size is not None, "decoded without a size"
    assert found.shape == (size[1], size[0], 3), "another size than was told"


def right_sums(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks."""
    made, at = bytearray(data), 8
    while at + 12 <= len(made):
        end = at + 8 + int.from_bytes(made[at : at + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(made)


def _png() -> list[bytes]:
    palette = _RGB.quantize(4)
    deep = Image.fromarray(np.arange(35, dtype=np.uint16).reshape(7, 5) * 999)
    exif = Image.Exif()
    exif[0x0112] = 6
    animated = encoded(_RGB, "PNG", save_all=True, append_images=[_RGB.rotate(90)])
    modes = [encoded(_RGB.convert(mode), "PNG") for mode in ("L", "LA", "RGBA", "1", "P")]
    return [
        PNG,
        *modes,
        encoded(palette, "PNG", transparency=0),
        encoded(deep, "PNG"),
        animated,
        encoded(_RGB, "PNG", exif=exif),
    ]


def _hostile_png() -> list[bytes]:
    bomb = zlib.compress(bytes(1 << 22), 9)
    text = b"Raw profile type exif\0" + b"\n" * 100_000
    head = struct.pack(">IIBBBBB", 500, 500, 8, 6, 0, 0, 1)
    return [
        PNG[:33] + chunk(b"iCCP", b"n\0\0" + bomb) + PNG[33:],
        PNG[:33] + 50 * chunk(b"zTXt", b"key\0\0" + bomb) + PNG[33:],
        PNG[:33] + chunk(b"tEXt", text) + PNG[33:],
        PNG[:33] + 5000 * chunk(b"tEXt", b"a\0b") + PNG[33:],
        PNG[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", bomb) + chunk(b"IEND", b""),
    ]


def _jpeg() -> list[bytes]:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 33, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 8
    modes = [encoded(_RGB.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    forms = [encoded(large, "JPEG", progressive=True), encoded(large, "JPEG", subsampling=2, restart_marker_blocks=1)]
    return [
        encoded(_RGB, "JPEG"),
        *modes,
        *forms,
        encoded(_RGB, "JPEG", exif=exif),
        encoded(_RGB, "MPO", save_all=True, append_images=[_RGB]),
    ]


def scans(count: int) -> bytes:
    """A JPEG with a scan many times."""
    data = encoded(_RGB.convert("L"), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), len(data) - 2
    return data[:last] + count * data[last:end] + data[end:]


def _bmp() -> list[bytes]:
    head = struct.pack("<IiiHHIIiiII", 40, 12, -9, 1, 8, 1, 2, 0, 0, 2, 0)
    runs = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 14 + len(head) + 8) + head + bytes(8) + b"\x0c\1\0\0" * 9 + b"\0\1"
    return [encoded(_RGB.convert(mode), "BMP") for mode in ("RGB", "L", "P", "1")] + [runs]


def _webp() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 3
    made = [encoded(_RGB, "WEBP", lossless=True), encoded(_RGB, "WEBP"), encoded(_RGB.convert("RGBA"), "WEBP")]
    return [*made, encoded(_RGB, "WEBP", save_all=True, append_images=[_RGB]), encoded(_RGB, "WEBP", exif=exif)]


def _tiff() -> list[bytes]:
    forms = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
    made = [encoded(_RGB.convert("1" if form == "group4" else "RGB"), "TIFF", compression=form) for form in forms]
    return [*made, encoded(_RGB.convert("P"), "TIFF"), encoded(_RGB.convert("CMYK"), "TIFF"), tiled(16, 16)]


def tiled(width: int, length: int, tag: int = 4) -> bytes:
    """A TIFF of 5x7 grey pixels in one deflated tile of zeros."""
    data = zlib.compress(bytes(min(width * length, 1 << 22)), 9)
    tags = [(256, tag, 5), (257, tag, 7), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), (322, 4, width)]
    tags += [(323, 4, length), (324, 4, 8), (325, 4, len(data))]
    table = b"".join(struct.pack("<HHII", number, kind, 1, value) for number, kind, value in tags)
    start = 8 + len(data) + len(data) % 2
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + data.ljust(start - 8, b"\0")
        + struct.pack("<H", len(tags))
        + table
        + bytes(4)
    )


def _hostile_tiff() -> list[bytes]:
    return [tiled(1 << 15, 1 << 14), tiled(1 << 31, 1 << 31), tiled(16, 16, tag=9), tiled(16, 16, tag=1)]


def boxes(count: int, kind: bytes = b"meta") -> bytes:
    """The head of an AVIF, and many empty boxes."""
    head = b"\0\0\0\x18ftypavif\0\0\0\0avifmif1"
    return head + (b"\0\0\0\x08" + kind) * count


def _avif() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return [encoded(_RGB, "AVIF", speed=10), encoded(_RGB, "AVIF", speed=10, exif=exif)]


def _netpbm() -> list[bytes]:
    text = b" ".join(b"%d" % value for value in PIXELS.ravel())
    return [
        b"P1\n# bits\n3 2\n101\n010",
        b"P2 3 2 9\n1 2 3 # end\n4 5 6",
        b"P3\n5 7\n255\n" + text,
        b"P4 9 2\n\xaa\x80\x55\0",
        b"P5 3 1 100\n\0\x32\x64",
        b"P6 5 7 255\n" + PIXELS.tobytes(),
    ]


def _hostile_netpbm() -> list[bytes]:
    return [
        b"P3 1 1 255\n" + b"#\n" * 100_000 + b"1 2 3",
        b"P2 " + b"# " * 60_000,
        b"P4 262144 1\n",
        b"P2 1 1 255\n" + b"0" * 200_000,
    ]


def _target(name: str, seeds: Callable[[], Sequence[bytes]], **more: object) -> Target:
    return Target(name=name, seeds=seeds, read=read, errors=(ImageError,), **more)  # type: ignore[arg-type]


TARGETS = [
    _target(
        "png",
        _png,
        hostile=_hostile_png,
        repair=right_sums,
        weight=5,
        tokens=(b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"zTXt", b"iTXt", b"acTL", b"fdAT", b"sRGB"),
    ),
    _target(
        "jpeg",
        _jpeg,
        hostile=lambda: [scans(200)],
        weight=6,
        tokens=(*tuple(bytes((255, k)) for k in range(192, 256)), b"Exif\x00\x00"),
    ),
    _target("bmp", _bmp, weight=8, guided=False),
    _target("webp", _webp, weight=8, guided=False, tokens=(b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH")),
    _target("tiff", _tiff, hostile=_hostile_tiff, weight=10),
    _target("netpbm", _netpbm, hostile=_hostile_netpbm, weight=3, tokens=(b"P1", b"P3", b"P6", b"255", b"65535")),
]
if features.check("avif"):
    TARGETS.append(
        _target(
            "avif",
            _avif,
            hostile=lambda: [boxes(20_000), boxes(20_000, b"free")],
            weight=0.3,
            guided=False,
            examples=20,
            tokens=(b"ftyp", b"meta", b"iloc", b"ispe", b"mdat", b"iinf", b"Exif", b"irot", b"imir", b"pixi", b"av01"),
        )
    )
